"""Reads of a disk that was overwritten at random, and through many snapshots."""

from . import fio, machine, process
from .product import Region
from .row import OURS, Goal, rate

NAME = "layers"
OVERWRITTEN = "sequential read after random overwrites of half the disk"
OVERWRITTEN_COLD = "the same once, from the disk, nothing cached"
CHAIN_SEQUENTIAL = "sequential read through 64 snapshots"
CHAIN_RANDOM = "random read 4 KiB, depth 32, through 64 snapshots"
FRESH, ONE = "fresh disk", "one snapshot"
SNAPSHOTS = 64
MIB = 1 << 20
READ = ["--rw=read", "--bs=1M", "--iodepth=4"]
RANDOM = ["--rw=randread", "--bs=4k", "--iodepth=32"]


def row_names(place):
    return [OVERWRITTEN, *([] if place.in_memory else [OVERWRITTEN_COLD]), CHAIN_SEQUENTIAL, CHAIN_RANDOM]


def space(options):
    # Two disks, each written twice.
    return 4 * options.size + (1 << 30)


def measure(context):
    rows = []
    if context.wants(OVERWRITTEN) or context.wants(OVERWRITTEN_COLD):
        rows += _overwritten(context)
    if context.wants(CHAIN_SEQUENTIAL) or context.wants(CHAIN_RANDOM):
        rows += _chain(context)
    return rows


def _overwritten(context):
    warm, cold = rate(OVERWRITTEN, goals=[Goal(0.5, FRESH)]), rate(OVERWRITTEN_COLD)
    for number in range(context.rounds):
        context.say(f"round {number + 1} of {context.rounds}: {OVERWRITTEN}")
        folder = context.place.folder("overwritten")
        with Region(context.terrane, folder) as region:
            region.create("disk", context.size)
            region.mount(context.threads)
            region.fill("disk", context.size)
            _read_both(context, region, FRESH, warm, cold)
            half = ["--rw=randwrite", "--bs=4k", "--iodepth=32", f"--io_size={context.size // 2}", "--end_fsync=1"]
            fio.job(half, region.file("disk"), context.size, once=True)
            _read_both(context, region, OURS, warm, cold)
        process.remove(folder)
    return [row for row in (warm, cold) if row.samples]


def _read_both(context, region, who, warm, cold):
    machine.settle()
    if not context.place.in_memory:
        machine.forget(region.dir)
        cold.add(who, fio.measure("MiB/s", fio.job(READ, region.file("disk"), context.size)))
    # The cache is full of it then.
    fio.job(READ, region.file("disk"), context.size)
    warm.add(who, fio.measure("MiB/s", fio.job(READ + fio.timed(context.seconds), region.file("disk"), context.size)))


def _chain(context):
    """Two disks of equal writes, each MiB written a second time: on one over 64 snapshots, each of which then holds each 64th
    MiB, on the other over one."""
    rows = {CHAIN_SEQUENTIAL: READ, CHAIN_RANDOM: RANDOM}
    results = [rate(name, "MiB/s" if told is READ else "k/s", [Goal(0.95, ONE)]) for name, told in rows.items()]
    folder = context.place.folder("chain")
    with Region(context.terrane, folder) as region:
        for volume in ("one", "many"):
            region.create(volume, context.size)
        region.mount(context.threads)
        for volume in ("one", "many"):
            _write_through(context, region, volume)
        machine.settle()
        for row in results:
            for number in range(context.rounds):
                for who, volume in ((OURS, "many"), (ONE, "one")) if number % 2 == 0 else ((ONE, "one"), (OURS, "many")):
                    context.say(f"round {number + 1} of {context.rounds}: {row.name}: {who}")
                    found = fio.job(rows[row.name] + fio.timed(context.seconds), region.file(volume), context.size)
                    row.add(who, fio.measure(row.unit, found))
    process.remove(folder)
    return results


def _write_through(context, region, volume):
    context.say(f"writing the disk with {'64 snapshots' if volume == 'many' else 'one snapshot'}")
    region.fill(volume, context.size)
    for number in range(SNAPSHOTS):
        # fio goes on by so much after each MiB.
        stride = ["--bs=1M", f"--rw=write:{(SNAPSHOTS - 1) * MIB}", f"--offset={number * MIB}", "--iodepth=4"]
        count = len(range(number * MIB, context.size, SNAPSHOTS * MIB))
        fio.job([*stride, f"--io_size={count * MIB}"], region.file(volume), context.size - number * MIB)
        if volume == "many":
            region.snapshot(volume, f"{volume}-{number}")
    if volume == "one":
        region.snapshot(volume, "one-only")

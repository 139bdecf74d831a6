"""A volume from a snapshot: when it is usable, and whether its first reads are as fast as later ones."""

import os
import statistics
import time

from . import fio, machine, process
from .product import Region
from .row import OURS, Goal, cost, rate

NAME = "clones"
USABLE = "volume from a snapshot of {}: made, opened, first 4 KiB read"
FIRST = "its first random reads 4 KiB, depth 1"
LATER = "later ones"
VAST_BYTES = 1 << 40
VAST_WRITTEN = 64
CLONES = 5
READS = 4000
MIB = 1 << 20


def row_names(place):
    return [USABLE.format("the disk"), USABLE.format("1 TiB"), FIRST]


def space(options):
    return 2 * options.size + (1 << 30)


def measure(context):
    usable = {name: cost(USABLE.format(words), "ms", [Goal(50)]) for name, words in (("disk", "the disk"), ("vast", "1 TiB"))}
    # "As fast": within what two equal runs differ by.
    first = rate(FIRST, "k/s", [Goal(0.9, LATER)], [f"{READS} reads at the same places, twice"])
    folder = context.place.folder(NAME)
    with Region(context.terrane, folder) as region:
        region.create("disk", context.size)
        region.create("vast", VAST_BYTES)
        region.mount(context.threads)
        region.fill("disk", context.size)
        with open(region.file("vast"), "r+b", buffering=0) as vast:
            for number in range(VAST_WRITTEN):
                os.pwrite(vast.fileno(), os.urandom(MIB), number * (VAST_BYTES // VAST_WRITTEN))
        for volume in usable:
            region.snapshot(volume, f"{volume}-base")
        machine.settle()
        for number in range(context.rounds):
            context.say(f"round {number + 1} of {context.rounds}: volumes from snapshots")
            for volume, row in usable.items():
                row.add(OURS, statistics.median(_usable(region, volume, f"{volume}-{number}-{turn}") for turn in range(CLONES)))
            fresh = f"read-{number}"
            region.run("volume", "create", "--snapshot", "disk-base", "--name", fresh)
            # The places are the same both times.
            told = ["--rw=randread", "--bs=4k", "--iodepth=1", f"--number_ios={READS}", "--randrepeat=1", f"--randseed={number + 1}"]
            for who in (OURS, LATER):
                first.add(who, fio.measure("k/s", fio.job(told, region.file(fresh), context.size)))
    process.remove(folder)
    return [*usable.values(), first]


def _usable(region, volume, name):
    begin = time.monotonic()
    region.run("volume", "create", "--snapshot", f"{volume}-base", "--name", name)
    with open(region.file(name), "rb", buffering=0) as disk:
        os.pread(disk.fileno(), 4096, 0)
    return (time.monotonic() - begin) * 1000

"""Whole commands: fold, check, and opening after a crash."""

import os
import time

from . import disk_image, machine, process
from .product import Region
from .row import OURS, Goal, cost, rate

NAME = "commands"
FOLD = "fold of each second MiB into the layer below"
COPY = "copy"
CHECK = "region check"
CAT = "reading the same files"
CRASH = "1 TiB volume, mount killed amid writes, files not in memory: mounted and read"
VAST_BYTES = 1 << 40
MIB = 1 << 20


def row_names(place):
    return [FOLD, CHECK, CRASH]


def _crash_bytes(options):
    # A hundredth of 1 TiB, or ten times the other rows' disk.
    return min(VAST_BYTES // 100, 10 * options.size)


def space(options):
    # 200 MiB a round on top, and 16 KiB of map each MiB.
    return max(4 * options.size, _crash_bytes(options) * 17 // 16 + options.rounds * (200 << 20)) + (1 << 30)


def measure(context):
    rows = []
    folder = context.place.folder(NAME)
    with Region(context.terrane, folder) as region:
        if context.wants(FOLD) or context.wants(CHECK):
            rows += _fold_and_check(context, region)
        if context.wants(CRASH):
            rows.append(_open_after_crash(context, region))
    process.remove(folder)
    return rows


def _write(path, length, step):
    """Random bytes, a MiB at each `step`."""
    with open(path, "r+b", buffering=0) as disk:
        for offset in range(0, length, step):
            os.pwrite(disk.fileno(), os.urandom(MIB), offset)
        os.fsync(disk.fileno())


def _fold_and_check(context, region):
    """A disk written whole, a snapshot, each second MiB written again, a snapshot: the first copied under another key, all checked,
    then the first deleted, so that the layers are folded. Where there is a disk nothing of them is cached."""
    fold = rate(FOLD, goals=[Goal(0.5, COPY)], notes=["both read from the disk where there is one, nothing cached"])
    check = rate(CHECK, goals=[Goal(0.5, CAT)], notes=["both read from the disk where there is one, nothing cached"])
    size = context.size
    for number in range(context.rounds):
        context.say(f"round {number + 1} of {context.rounds}: copy, check, fold")
        region.create("disk", size)
        region.mount(context.threads)
        _write(region.file("disk"), size, MIB)
        region.snapshot("disk", "base")
        _write(region.file("disk"), size, 2 * MIB)
        region.snapshot("disk", "next")
        region.unmount()
        machine.settle()
        machine.forget(region.dir)
        fold.add(COPY, size / MIB / region.run("snapshot", "copy", "--wait", "base", "--to", region.name, "--key", "second", "--name", "copied"))
        region.run("snapshot", "delete", "copied")
        machine.settle()
        # A check reads the device: so does who it is compared with. Where that is memory nothing is forgotten.
        machine.forget(region.dir)
        stored = sum(os.stat(path).st_blocks * 512 for path in region.stored_files()) / MIB
        begin = time.monotonic()
        disk_image.read(region.stored_files())
        check.add(CAT, stored / (time.monotonic() - begin))
        machine.forget(region.dir)
        check.add(OURS, stored / region.run("region", "check"))
        machine.settle()
        machine.forget(region.dir)
        fold.add(OURS, size / 2 / MIB / region.run("snapshot", "delete", "base"))
        region.run("snapshot", "delete", "next")
        region.run("volume", "delete", "disk")
    return [fold, check]


def _open_after_crash(context, region):
    """So much of a volume of 1 TiB written, the mount killed amid writes; what the disk holds is no longer in memory."""
    written = _crash_bytes(context)
    row = cost(CRASH, "s", [Goal(1)], [f"{written >> 20} MiB of it written"])
    region.create("vast", VAST_BYTES)
    region.mount(context.threads)
    pieces = written // MIB
    _write(region.file("vast"), VAST_BYTES, VAST_BYTES // pieces // MIB * MIB)
    for number in range(context.rounds):
        context.say(f"round {number + 1} of {context.rounds}: opening after a crash")
        with open(region.file("vast"), "r+b", buffering=0) as disk:
            for piece in range(200):
                os.pwrite(disk.fileno(), os.urandom(MIB), (number * 200 + piece) * 5000 * MIB % VAST_BYTES)
        region.kill()
        machine.settle()
        machine.forget(region.dir)
        begin = time.monotonic()
        region.mount(context.threads)
        with open(region.file("vast"), "rb", buffering=0) as disk:
            os.pread(disk.fileno(), 4096, 12345 * MIB)
        row.add(OURS, time.monotonic() - begin)
    region.unmount()
    return row

"""The mounted volume beside a plain file, a bare mount and others' encrypted disks, in turn."""

import contextlib
import os
import time

from . import contestants, fio, machine
from .contestants import BARE, PLAIN, QEMU
from .row import OURS, Goal, cost, rate

NAME = "mounted"
SEQUENTIAL_GOALS = {"write": [Goal(0.85, BARE), Goal(10, QEMU)], "read": [Goal(0.75, BARE), Goal(10, QEMU)]}
DEPTH_ONE = "random read 4 KiB, depth 1"
BURN = "processors the mount keeps busy in random reads, depth 1"
IDLE = "processors the mount keeps busy when idle"
SYNCED = "write 4 KiB, each fdatasync'd"
FLUSHED = "sequential write 1 MiB, depth 4, fdatasync each 256 MiB"
IDLE_SECONDS = 4
# As much as a run writes to fresh places, at most.
WRITTEN_A_SECOND = 2 << 30
# Of the mount's process alone; its clock ticks 100 times a second.
IDLE_BOUND = 0.01


def _rows(place):
    """Rows with what fio is told."""
    read_ahead = "plain is read from the disk, all others through what the page cache holds" if not place.in_memory else None
    notes = [read_ahead] if read_ahead else []
    durable = [
        (rate(FLUSHED, notes=["all that is written reaches the disk within the measurement, of every side"]),
         ["--rw=write", "--bs=1M", "--iodepth=4", "--fdatasync=256"]),
    ]  # fmt: skip
    # In memory there is nothing that fdatasync would wait for.
    synced_goals = [] if place.in_memory else [Goal(1.2, PLAIN)]
    return [
        (rate("sequential write 1 MiB, depth 4", goals=SEQUENTIAL_GOALS["write"]), ["--rw=write", "--bs=1M", "--iodepth=4"]),
        *(durable if not place.in_memory else []),
        (rate("sequential read 1 MiB, depth 4", goals=SEQUENTIAL_GOALS["read"], notes=notes), ["--rw=read", "--bs=1M", "--iodepth=4"]),
        (rate("random read 4 KiB, depth 32", "k/s", [Goal(0.95, BARE), Goal(6, QEMU)], notes),
         ["--rw=randread", "--bs=4k", "--iodepth=32"]),
        (rate(DEPTH_ONE, "k/s", [Goal(1.2, BARE)], notes), ["--rw=randread", "--bs=4k", "--iodepth=1"]),
        (rate("random write 4 KiB, depth 32", "k/s", [Goal(0.92, BARE), Goal(6, QEMU)]),
         ["--rw=randwrite", "--bs=4k", "--iodepth=32"]),
        (rate("random write 4 KiB, depth 1", "k/s"), ["--rw=randwrite", "--bs=4k", "--iodepth=1"]),
        (cost(SYNCED, "µs", synced_goals), ["--rw=randwrite", "--bs=4k", "--ioengine=psync", "--fdatasync=1"]),
    ]  # fmt: skip


def row_names(place):
    return [row.name for row, _ in _rows(place)] + [BURN, IDLE]


def space(options):
    # Five disks; ours overwritten beside what waits for a flush.
    return 6 * options.size + (1 << 30)


def measure(context):
    place = context.place
    burn, idle = cost(BURN, "processors", [Goal(1.0)]), cost(IDLE, "processors", [Goal(IDLE_BOUND)])
    rows = [(row, told) for row, told in _rows(place) if context.wants(row.name) or (row.name == DEPTH_ONE and context.wants(BURN))]
    with contextlib.ExitStack() as stack:
        found = contestants.open_all(stack, context, place.folder(NAME))
        machine.settle()
        for row, told in rows:
            for number in range(context.rounds):
                for who in _turn(list(found), number):
                    context.say(f"round {number + 1} of {context.rounds}: {row.name}: {who}")
                    with context.leaving_out(who, found, row):
                        _one(context, row, told, who, found[who], burn)
        if context.wants(IDLE):
            _flush(found[OURS].file)
            for _ in range(context.rounds):
                idle.add(OURS, _idle_processors(found[OURS].pid))
    return [row for row, _ in rows] + [row for row in (burn, idle) if row.samples]


def _turn(names, number):
    """Another begins each round, so that no side always follows the same one."""
    start = number % len(names)
    return names[start:] + names[:start]


def _one(context, row, told, who, contestant, burn):
    if "--rw=randwrite" in told:
        machine.forget(context.place.work)
    if "--rw=write" in told:
        machine.warm_memory(int(WRITTEN_A_SECOND * context.seconds))
    used, begin = machine.processor_seconds(contestant.pid) if contestant.pid else 0, time.monotonic()
    row.add(who, fio.measure(row.unit, fio.job(told + fio.timed(context.seconds), contestant.file, context.size)))
    if who == OURS and row.name == DEPTH_ONE:
        # fio's own beginning and end count as time: 0.2 s or so.
        burn.add(OURS, (machine.processor_seconds(contestant.pid) - used) / (time.monotonic() - begin))
    machine.settle()


def _flush(path):
    """What was written may be written back until then: no idleness."""
    descriptor = os.open(path, os.O_RDWR)
    os.fsync(descriptor)
    os.close(descriptor)
    time.sleep(IDLE_SECONDS)


def _idle_processors(pid):
    used = machine.processor_seconds(pid)
    time.sleep(IDLE_SECONDS)
    return (machine.processor_seconds(pid) - used) / IDLE_SECONDS

"""Snapshots under full write load: what writers wait, and what the command takes."""

import os
import signal
import statistics
import time

from . import fio, process
from .product import Region
from .row import OURS, Goal, cost

NAME = "snapshots"
WAIT = "writers wait at p99 (above the median) for a snapshot, random writes of depth 32"
P99 = "p99 of writes that overlap a snapshot"
COMMAND = "snapshot command under that load, median"
COMMAND_MAX = "snapshot command under that load, slowest"
SNAPSHOTS = 20
GAP_SECONDS = 0.2
# In that time and while a snapshot is taken, at 300 thousand writes a second.
WRITTEN_BETWEEN = 384 << 20
DISK_MAX = 1 << 30


def row_names(place):
    return [WAIT, P99, COMMAND, COMMAND_MAX]


def space(options):
    # Each snapshot keeps what was written since the last.
    disk = min(options.size, DISK_MAX)
    return 2 * disk + SNAPSHOTS * min(disk, WRITTEN_BETWEEN) + (1 << 30)


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def measure(context):
    rows = [
        cost(WAIT, "ms", [Goal(10)], [f"{SNAPSHOTS} snapshots a round; of the writes under way during a snapshot command"]),
        cost(P99, "ms"),
        cost(COMMAND, "ms", [Goal(100)]),
        cost(COMMAND_MAX, "ms", [Goal(100)]),
    ]
    size = min(context.size, DISK_MAX)
    for number in range(context.rounds):
        context.say(f"round {number + 1} of {context.rounds}: {SNAPSHOTS} snapshots under random writes")
        folder = context.place.folder("snapshots")
        with Region(context.terrane, folder) as region:
            region.create("disk", size)
            region.mount(context.threads)
            region.fill("disk", size)
            everything, overlapping, taken = _under_load(context, region, folder, size)
        process.remove(folder)
        p99 = percentile(overlapping, 0.99)
        rows[0].add(OURS, p99 - percentile(everything, 0.5))
        rows[1].add(OURS, p99)
        rows[2].add(OURS, statistics.median(taken))
        rows[3].add(OURS, max(taken))
    return rows


def _under_load(context, region, folder, size):
    """Latencies of all writes, of those under way during a snapshot, and of the commands, in ms."""
    prefix = os.path.join(folder, "latency")
    told = [
        "--rw=randwrite", "--bs=4k", "--iodepth=32", "--time_based", "--runtime=600", f"--write_lat_log={prefix}",
        "--log_unix_epoch=1", "--output=/dev/null",
    ]  # fmt: skip
    writer = process.Background(fio.command(told, region.file("disk"), size))
    windows, done = [], False
    try:
        time.sleep(1.5)
        for number in range(SNAPSHOTS):
            begin = time.time()
            region.snapshot("disk", f"snapshot-{number}")
            windows.append((begin * 1000, time.time() * 1000))
            if writer.ended():
                raise process.Failed("fio ended before the last snapshot")
            time.sleep(GAP_SECONDS)
        done = True
    finally:
        # fio ends well at SIGINT, its log written.
        writer.end(signal.SIGINT if done else signal.SIGKILL)
    everything, overlapping = _latencies(f"{prefix}_lat.1.log", windows)
    if not overlapping:
        raise process.Failed("no write overlapped a snapshot: fio wrote too little")
    return everything, overlapping, [end - begin for begin, end in windows]


def _latencies(path, windows):
    everything, overlapping = [], []
    with open(path, encoding="ascii") as log:
        for line in log:
            end, nanoseconds = line.split(",", 2)[:2]
            end, latency = int(end), int(nanoseconds) / 1e6
            everything.append(latency)
            # The log counts whole milliseconds.
            if any(end + 1 >= begin and end - latency <= finish for begin, finish in windows):
                overlapping.append(latency)
    return everything, overlapping

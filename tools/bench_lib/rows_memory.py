"""What a mount keeps in memory while a volume of 1 TiB is written and read."""

import threading

from . import fio, machine, process
from .product import Region
from .row import OURS, Goal, cost

NAME = "memory"
PEAK = "memory of a mount under load, 1 TiB volume: most resident, less 0.1 % of what is dirty"
VAST_BYTES = 1 << 40
BOUND_MIB = 64
DIRTY_SHARE = 0.001
MIB = 1 << 20
PHASES = [
    ["--rw=write", "--bs=1M", "--iodepth=4", f"--io_size={1 << 30}"],
    # Each touches a chunk of its own, most likely, with 16 KiB of map: four checkpoints of 2^15 chunks.
    ["--rw=randwrite", "--bs=4k", "--iodepth=32", f"--io_size={512 * MIB}"],
    ["--rw=randwrite", "--bs=4k", "--ioengine=psync", "--fdatasync=1", "--number_ios=1000"],
    ["--rw=randread", "--bs=4k", "--iodepth=32", f"--io_size={128 * MIB}"],
    ["--rw=read", "--bs=1M", "--iodepth=4", f"--io_size={1 << 30}"],
]


def row_names(place):
    return [PEAK]


def space(options):
    return 6 << 30


def measure(context):
    row = cost(PEAK, "MiB", [Goal(BOUND_MIB)], ["VmHWM, mapped files and log included; dirty: not yet flushed, asked twice a second"])
    for number in range(context.rounds):
        context.say(f"round {number + 1} of {context.rounds}: memory under load, 1 TiB volume")
        folder = context.place.folder(NAME)
        with Region(context.terrane, folder) as region:
            region.create("disk", VAST_BYTES)
            region.mount(context.threads)
            with _Dirty(region) as dirty:
                for told in PHASES:
                    fio.job(told, region.file("disk"), VAST_BYTES)
            row.add(OURS, machine.peak_memory_mib(region.server.pid) - DIRTY_SHARE * dirty.most_bytes / MIB)
        process.remove(folder)
    return [row]


class _Dirty:
    """Asks a mount twice a second how much it has not flushed."""

    def __init__(self, region):
        self.region, self.most_bytes, self.stop = region, 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self):
        while not self.stop.wait(0.5):
            try:
                # 6: something is wrong, which is said in it.
                answer = self.region.ask("status", accept=(6,))
                live = answer["regions"][0]["mount"]["live"]
            except (process.Failed, KeyError, TypeError, IndexError):
                continue
            self.most_bytes = max([self.most_bytes, *(volume["unflushed_bytes"] for volume in live)])

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()

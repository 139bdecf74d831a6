"""Times whole commands for tools/bench: copy, fold, check, and opening after a crash."""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import time

MIB = 1 << 20
VAST_BYTES = 1 << 40


class Region:
    """A region of its own below `work`, mounted and unmounted at will."""

    def __init__(self, terrane, work):
        self.terrane, self.work = terrane, work
        self.dir, self.mount_point = os.path.join(work, "commands"), os.path.join(work, "commands-mount")
        self.environment = {**os.environ, "TERRANE_CONFIG_DIR": os.path.join(work, "commands-config"), "TERRANE_REGION": "commands"}
        os.mkdir(self.mount_point)
        self.run("region", "init", self.dir, "--name", "commands")
        self.run("key", "create", "--alias", "first")
        self.run("key", "create", "--alias", "second")

    def run(self, *arguments):
        """The seconds a command took."""
        begin = time.monotonic()
        done = subprocess.run([self.terrane, *arguments], env=self.environment, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"bench: terrane {' '.join(arguments)} failed: {done.stderr}")
        return time.monotonic() - begin

    def mount(self):
        return self.run("mount", self.mount_point)

    def unmount(self):
        self.run("unmount", self.mount_point)

    def kill(self):
        with open(os.path.join(self.dir, "run", "layers.lock"), encoding="ascii") as lock:
            pid = int(lock.readline())
        os.kill(pid, signal.SIGKILL)
        while os.path.exists(f"/proc/{pid}"):
            time.sleep(0.01)
        self.unmount()

    def file(self, volume):
        return os.path.join(self.mount_point, "by-name", "volumes", volume)

    def forget(self):
        """Writes all to the disk, and drops it from the page cache."""
        os.sync()
        for folder, _, files in os.walk(os.path.join(self.dir, "layers")):
            for name in files:
                descriptor = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)

    def stored_files(self):
        return [os.path.join(f, n) for f, _, names in os.walk(os.path.join(self.dir, "layers")) for n in names if n == "data"]

    def end(self):
        subprocess.run([self.terrane, "unmount", self.mount_point], env=self.environment, capture_output=True)
        shutil.rmtree(self.dir, ignore_errors=True)


def write(path, length, step, seed):
    """Random bytes, a MiB at each `step`."""
    block = os.urandom(MIB)
    with open(path, "r+b", buffering=0) as disk:
        for number, offset in enumerate(range(0, length, step)):
            os.pwrite(disk.fileno(), seed.to_bytes(8, "little") + number.to_bytes(8, "little") + block[16:], offset)
        os.fsync(disk.fileno())


def seconds_to_read(paths):
    begin = time.monotonic()
    for path in paths:
        # Holes are not what is compared.
        with open(path, "rb", buffering=0) as file:
            at, end = 0, os.fstat(file.fileno()).st_size
            while at < end:
                try:
                    at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                except OSError:
                    break
                hole = os.lseek(file.fileno(), at, os.SEEK_HOLE)
                while at < hole:
                    at += len(os.pread(file.fileno(), min(MIB, hole - at), at))
    return time.monotonic() - begin


def copy_fold_check(region, size, rounds):
    """A disk written whole, a snapshot, each second MiB written again, a snapshot: the first copied under another key, all checked,
    then the first deleted, so that the layers are folded."""
    samples = {"copy": [], "fold": [], "check": [], "cat": []}
    for number in range(rounds):
        print(f"bench: round {number + 1} of {rounds}: copy, check, fold", file=sys.stderr)
        region.run("volume", "create", "--name", "disk", "--size", str(size), "--key", "first")
        region.mount()
        write(region.file("disk"), size, MIB, 2 * number)
        region.run("snapshot", "create", "disk", "--name", "base")
        write(region.file("disk"), size, 2 * MIB, 2 * number + 1)
        region.run("snapshot", "create", "disk", "--name", "next")
        region.unmount()
        os.sync()
        samples["copy"].append(region.run("snapshot", "copy", "base", "--to", "commands", "--key", "second", "--name", "copied"))
        region.run("snapshot", "delete", "copied")
        os.sync()
        samples["cat"].append(seconds_to_read(region.stored_files()))
        samples["check"].append(region.run("region", "check"))
        samples["fold"].append(region.run("snapshot", "delete", "base"))
        region.run("snapshot", "delete", "next")
        region.run("volume", "delete", "disk")
    return {name: statistics.median(values) for name, values in samples.items()}, samples


def open_after_crash(region, written, rounds):
    """A volume of 1 TiB, so much of it written, the mount killed amid writes; what the disk holds is no longer in memory."""
    region.run("volume", "create", "--name", "vast", "--size", str(VAST_BYTES), "--key", "first")
    region.mount()
    with open(region.file("vast"), "r+b", buffering=0) as disk:
        block = os.urandom(MIB)
        pieces = written // MIB
        for number in range(pieces):
            os.pwrite(disk.fileno(), number.to_bytes(8, "little") + block[8:], number * (VAST_BYTES // pieces) // MIB * MIB)
        os.fsync(disk.fileno())
    samples = []
    for number in range(rounds):
        print(f"bench: round {number + 1} of {rounds}: opening after a crash", file=sys.stderr)
        with open(region.file("vast"), "r+b", buffering=0) as disk:
            for piece in range(200):
                os.pwrite(disk.fileno(), os.urandom(MIB), (number * 200 + piece) * 5000 * MIB % VAST_BYTES)
        region.kill()
        region.forget()
        begin = time.monotonic()
        region.mount()
        with open(region.file("vast"), "rb", buffering=0) as disk:
            os.pread(disk.fileno(), 4096, 12345 * MIB)
        samples.append(time.monotonic() - begin)
    region.unmount()
    return statistics.median(samples), samples


def measure(terrane, work, size, rounds):
    """All of it, printed and as a dictionary."""
    region = Region(terrane, work)
    try:
        seconds, samples = copy_fold_check(region, size, rounds)
        copied, folded = size / MIB / seconds["copy"], size / 2 / MIB / seconds["fold"]
        # A hundredth of 1 TiB, or ten times the other rows' disk.
        written = min(VAST_BYTES // 100, 10 * size)
        opened, opened_samples = open_after_crash(region, written, rounds)
    finally:
        region.end()
    print(f"copy under another key: {copied:.0f} MiB/s; fold: {folded:.0f} MiB/s, {folded / copied:.2f} of it (0.5 wanted)")
    ratio = seconds["cat"] / seconds["check"]
    print(f"region check: {seconds['check']:.2f} s, reading the same files: {seconds['cat']:.2f} s: {ratio:.2f} of its speed (0.5 wanted)")
    print(f"1 TiB volume, {written >> 20} MiB written, after a crash: mounted and read in {opened:.2f} s (1 s wanted)")
    return {
        "copy_mib_per_second": copied,
        "fold_mib_per_second": folded,
        "fold_to_copy": folded / copied,
        "check_to_cat": ratio,
        "open_after_crash_seconds": opened,
        "open_after_crash_written_bytes": written,
        "samples": {**samples, "open_after_crash": opened_samples},
    }

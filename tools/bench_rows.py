"""Runs fio on what tools/bench has set up, and prints the ratios as a table and as JSON."""

import argparse
import json
import mmap
import os
import platform
import signal
import stat
import statistics
import subprocess
import sys
import time

import bench_commands

# Row, what fio is told, and whether the number is a rate (higher is better) or a time (lower is better).
ROWS = [
    ("sequential write 1 MiB, depth 4", "rate", ["--rw=write", "--bs=1M", "--iodepth=4"]),
    ("sequential read 1 MiB, depth 4", "rate", ["--rw=read", "--bs=1M", "--iodepth=4"]),
    ("random read 4 KiB, depth 1", "rate", ["--rw=randread", "--bs=4k", "--iodepth=1"]),
    ("random read 4 KiB, depth 32", "rate", ["--rw=randread", "--bs=4k", "--iodepth=32"]),
    ("random write 4 KiB, depth 1", "rate", ["--rw=randwrite", "--bs=4k", "--iodepth=1"]),
    ("random write 4 KiB, depth 32", "rate", ["--rw=randwrite", "--bs=4k", "--iodepth=32"]),
    ("write 4 KiB, each fdatasync'd", "time", ["--rw=randwrite", "--bs=4k", "--ioengine=psync", "--fdatasync=1"]),
]
WARM_BYTES = 6 << 30
SNAPSHOTS = 20
SNAPSHOT_GAP_SECONDS = 0.5


def fio(arguments, path, size):
    """One run; the answer is fio's JSON for its only job."""
    command = [
        "fio", "--name=bench", "--thread", f"--filename={path}", f"--size={size}", "--direct=1", "--ioengine=libaio",
        "--allow_file_create=0", "--fallocate=none", "--norandommap", "--randrepeat=0", "--refill_buffers",
        "--output-format=json", *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"bench: fio failed on {path}:\n{done.stderr}{done.stdout}")
    # Warnings may come before the JSON.
    return json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]


def measure(kind, job):
    """MiB/s and operations a second for a rate, microseconds an operation for a time."""
    side = job["write"] if job["write"]["total_ios"] else job["read"]
    if kind == "time":
        return side["runtime"] * 1000 / side["total_ios"]
    return side["bw_bytes"] / (1 << 20)


def settle():
    """What one run left for the disk must not slow the next."""
    os.sync()


def forget(work):
    """Drops the page cache of what lies below the mounts, which must be clean. The sequential rows leave it in folios of
    up to 2 MiB, and over those a small write makes the kernel write out all of one: 4 KiB and fdatasync took 1.6 ms
    instead of 0.3. Reads are measured on a full cache, where there is the least to hide behind."""
    for folder, folders, files in os.walk(work):
        folders[:] = [name for name in folders if not os.path.ismount(os.path.join(folder, name))]
        for name in files:
            path = os.path.join(folder, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


def warm_memory():
    """Touches and frees as much memory as the page cache of a run takes. A virtual machine may have given its free memory
    back to the host, and gets it again at 0.6 GB/s: that was measured instead of what writes to fresh places, as copy on write
    does."""
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        fields = dict(line.split(":", 1) for line in meminfo)
    size = min(WARM_BYTES, int(fields["MemAvailable"].split()[0]) * 1024 // 2)
    mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


def fill(targets, size):
    for path in targets.values():
        fio(["--rw=write", "--bs=1M", "--iodepth=4", "--end_fsync=1"], path, size)
    settle()


def run_rows(options, targets):
    chosen = [row for row in ROWS if options.only in row[0]]
    samples = {row: {name: [] for name in targets} for row, _, _ in chosen}
    for row, kind, arguments in chosen:
        for number in range(options.rounds):
            for name, path in targets.items():
                print(f"bench: round {number + 1} of {options.rounds}: {row}: {name}", file=sys.stderr)
                timed = ["--time_based", f"--runtime={options.seconds}", "--ramp_time=0.3"]
                if "--rw=randwrite" in arguments:
                    forget(options.work)
                if "--rw=write" in arguments:
                    warm_memory()
                samples[row][name].append(measure(kind, fio(arguments + timed, path, options.size)))
                settle()
    rows = []
    for row, kind, _ in chosen:
        medians = {name: statistics.median(values) for name, values in samples[row].items()}
        entry = {"row": row, "unit": "us_per_write" if kind == "time" else "mib_per_second", **medians}
        for of, to in [("volume", "bare"), ("volume", "plain"), ("bare", "plain")]:
            if of in medians:
                entry[f"{of}_to_{to}"] = medians[of] / medians[to]
        entry["samples"] = samples[row]
        rows.append(entry)
    return rows


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def snapshot_latency(options, path):
    """Random writes at depth 32 while snapshots are taken: the latencies of those under way during one."""
    prefix = os.path.join(options.work, "latency")
    command = [
        "fio", "--name=bench", "--thread", f"--filename={path}", f"--size={options.size}", "--direct=1", "--ioengine=libaio",
        "--rw=randwrite", "--bs=4k", "--iodepth=32", "--allow_file_create=0", "--fallocate=none", "--norandommap",
        "--time_based", "--runtime=600", f"--write_lat_log={prefix}", "--log_unix_epoch=1", "--output=/dev/null",
    ]  # fmt: skip
    print(f"bench: {SNAPSHOTS} snapshots under random writes", file=sys.stderr)
    writer = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    windows, taken = [], []
    try:
        time.sleep(1.5)
        for number in range(SNAPSHOTS):
            begin = time.time()
            create = [options.terrane, "snapshot", "create", options.volume, "--name", f"bench-{number}"]
            done = subprocess.run(create, capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"bench: snapshot create failed: {done.stderr}")
            windows.append((begin * 1000, time.time() * 1000))
            taken.append((time.time() - begin) * 1000)
            if writer.poll() is not None:
                sys.exit("bench: fio ended before the last snapshot")
            time.sleep(SNAPSHOT_GAP_SECONDS)
    finally:
        # fio ends well at SIGINT, its log written.
        writer.send_signal(signal.SIGINT if len(windows) == SNAPSHOTS else signal.SIGKILL)
        writer.wait()
    everything, overlapping = [], []
    with open(f"{prefix}_lat.1.log", encoding="ascii") as log:
        for line in log:
            end, nanoseconds = line.split(",", 2)[:2]
            end, latency = int(end), int(nanoseconds) / 1e6
            everything.append(latency)
            # The log counts whole milliseconds.
            if any(end + 1 >= begin and end - latency <= finish for begin, finish in windows):
                overlapping.append(latency)
    median, p99 = percentile(everything, 0.5), percentile(overlapping, 0.99)
    return {
        "snapshots": SNAPSHOTS,
        "writes": len(everything),
        "overlapping_writes": len(overlapping),
        "median_ms": median,
        "p99_ms": percentile(everything, 0.99),
        "overlapping_p99_ms": p99,
        "overlapping_max_ms": max(overlapping),
        "command_median_ms": statistics.median(taken),
        "command_max_ms": max(taken),
        "within_bound": p99 < median + 10,
    }


def memory(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        fields = dict(line.split(":", 1) for line in status)
    return {name: int(fields[key].split()[0]) / 1024 for name, key in [("peak_mib", "VmHWM"), ("now_mib", "VmRSS")]}


def print_table(rows, names):
    columns = [*names, *[key for key in ("volume_to_bare", "volume_to_plain", "bare_to_plain") if key in rows[0]]]
    print(f"{'':34}" + "".join(f"{name.replace('_to_', '/'):>14}" for name in columns))
    for row in rows:
        unit = "us" if row["unit"] == "us_per_write" else "MiB/s"
        numbers = [f"{row[name]:.1f} {unit}" for name in names] + [f"{row[name]:.2f}" for name in columns[len(names) :]]
        print(f"{row['row']:34}" + "".join(f"{number:>14}" for number in numbers))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--bare-pid", type=int, required=True)
    parser.add_argument("--volume-pid", type=int)
    parser.add_argument("--terrane")
    parser.add_argument("--volume")
    parser.add_argument("--json")
    parser.add_argument("--only", default="")
    parser.add_argument("targets", nargs="+", metavar="NAME=PATH")
    options = parser.parse_args()
    targets = dict(target.split("=", 1) for target in options.targets)
    # An exception takes the running fio along.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))

    if options.only != "commands":
        fill(targets, options.size)
    rows = run_rows(options, targets)
    result = {
        "machine": {"kernel": platform.release(), "cpus": os.cpu_count()},
        "size_bytes": options.size,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "rows": rows,
        "memory": {"bare": memory(options.bare_pid)},
    }
    if rows:
        print_table(rows, list(targets))
        print("medians of the rounds; a rate's ratio should be high, the last row's (a time) low")
    if "volume" in targets and not options.only:
        result["snapshots"] = snapshot_latency(options, targets["volume"])
        found = result["snapshots"]
        print(
            f"writes under {found['snapshots']} snapshots: p99 of the {found['overlapping_writes']} overlapping one "
            f"{found['overlapping_p99_ms']:.2f} ms, median {found['median_ms']:.2f} ms, "
            f"{'within' if found['within_bound'] else 'PAST'} median + 10 ms; "
            f"a command took {found['command_median_ms']:.0f} ms, {found['command_max_ms']:.0f} ms at most"
        )
    if "volume" in targets and options.only in ("", "commands"):
        result["commands"] = bench_commands.measure(options.terrane, options.work, options.size, options.rounds)
    if "volume" in targets:
        result["memory"]["volume"] = memory(options.volume_pid)
    for name, used in result["memory"].items():
        print(f"resident memory, {name}: {used['peak_mib']:.0f} MiB at most, {used['now_mib']:.0f} MiB now")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as out:
            json.dump(result, out, indent=2)
            out.write("\n")


if __name__ == "__main__":
    main()

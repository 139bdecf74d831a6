"""fio, with the same options for everything it is pointed at."""

import json

from .process import Failed, run

# Random bytes, made once: refilling costs fio 140 us a MiB, half of what the bare mount takes, and would bring all ratios
# nearer to 1.
COMMON = [
    "--name=bench", "--thread", "--direct=1", "--ioengine=libaio", "--allow_file_create=0", "--fallocate=none",
    "--randrepeat=0",
]  # fmt: skip


def command(arguments, path, size, once=False):
    """`once`: random places come once each, which fio keeps a map for."""
    return ["fio", *COMMON, *([] if once else ["--norandommap"]), f"--filename={path}", f"--size={size}", *arguments]


def job(arguments, path, size, once=False):
    """One run; the answer is fio's JSON for its only job."""
    out = run([*command(arguments, path, size, once), "--output-format=json"])
    # Warnings may come before the JSON.
    found = json.loads(out[out.index("{") :])["jobs"][0]
    if found["error"]:
        raise Failed(f"fio had error {found['error']} on {path}")
    return found


def side(found):
    return found["write"] if found["write"]["total_ios"] else found["read"]


def timed(seconds):
    return ["--time_based", f"--runtime={int(seconds * 1000)}ms", "--ramp_time=300ms"]


def measure(unit, found):
    """fio's answer in a row's unit."""
    numbers = side(found)
    if unit == "µs":
        return numbers["runtime"] * 1000 / numbers["total_ios"]
    if unit == "k/s":
        return numbers["iops"] / 1000
    return numbers["bw_bytes"] / (1 << 20)


def fill(path, size):
    """All of it, with random bytes, on the disk at the end."""
    job(["--rw=write", "--bs=1M", "--iodepth=4", "--end_fsync=1"], path, size)

"""What the numbers depend on: processor, kernel, memory, what is cached."""

import mmap
import os
import platform
import stat

TICKS = os.sysconf("SC_CLK_TCK")
WIDE = {"avx2", "vaes", "vpclmulqdq", "aes", "pclmulqdq"}
WIDEST = WIDE | {"avx512f", "avx512bw"}


def processor(cpuinfo=None):
    """What /proc/cpuinfo says: a name, whether there are AES instructions, and whether those that our paths of vectors need."""
    if cpuinfo is None:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            cpuinfo = file.read()
    fields = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    name = fields.get("model name", platform.machine())
    return {"name": name, "aes": "aes" in flags, "wide": WIDE <= flags, "widest": WIDEST <= flags}


def describe():
    found = processor()
    return {"kernel": platform.release(), "cpus": os.cpu_count(), "memory_mib": _meminfo("MemTotal") >> 20, **found}


def warnings(found):
    """What a reader of the numbers must know of the processor."""
    if not found["aes"]:
        return ["this processor has no AES instructions: every cipher here, ours and others', runs in software, and the targets"
                " are of machines that have them"]
    if not found["wide"]:
        return ["this processor lacks VAES and VPCLMULQDQ: our fastest path is the portable one here"]
    if not found["widest"]:
        return ["this processor lacks AVX-512: our fastest path is that of 256-bit vectors here"]
    return []


def _meminfo(key):
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        fields = dict(line.split(":", 1) for line in meminfo)
    return int(fields[key].split()[0]) * 1024


def available_memory():
    return _meminfo("MemAvailable")


def load():
    """Processes that want a processor, averaged over the last minute."""
    return os.getloadavg()[0]


def settle():
    """What one run left for the disk must not slow the next."""
    os.sync()


def regular_files(folder):
    """Those on the folder's own file system."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not os.path.ismount(os.path.join(place, name))]
        for name in files:
            path = os.path.join(place, name)
            # Something may be mounted over a file.
            if stat.S_ISREG(os.lstat(path).st_mode) and not os.path.ismount(path):
                yield path


def forget(folder):
    """Drops the page cache of what lies below the mounts, which must be clean. The sequential rows leave it in folios of
    up to 2 MiB, and over those a small write makes the kernel write out all of one: 4 KiB and fdatasync took 1.6 ms
    instead of 0.3. Reads are measured on a full cache, where there is the least to hide behind."""
    for path in regular_files(folder):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def flush(folder):
    """Waits until all files below are on the disk."""
    for path in regular_files(folder):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        os.fsync(descriptor)
        os.close(descriptor)


def warm_memory(size):
    """Touches and frees as much memory as the page cache of a run may take. A virtual machine may have given its free memory
    back to the host, and gets it again at 0.6 GB/s: that was measured instead of what writes to fresh places, as copy on write
    does."""
    mmap.mmap(-1, min(size, available_memory() // 2), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


def processor_seconds(pid):
    """What a process has used so far."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_memory_mib(pid):
    """The most that was resident, files and shared memory it has mapped included."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["VmHWM"].split()[0]) / 1024


def forget_peak_memory(pid):
    with open(f"/proc/{pid}/clear_refs", "w", encoding="ascii") as file:
        file.write("5")

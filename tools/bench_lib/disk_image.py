"""A disk's bytes as a raw file, and scattered changes to it, the same for all who copy it."""

import os
import random

MIB = 1 << 20
SECTOR = 4096
CHANGED_SHARE = 0.01


def write_random(path, size):
    """No two blocks are alike, nothing compresses."""
    with open(path, "wb", buffering=0) as file:
        for offset in range(0, size, MIB):
            os.pwrite(file.fileno(), os.urandom(MIB), offset)
        os.fsync(file.fileno())


def put(source, target):
    """The raw file's bytes into a disk of the same size."""
    with open(source, "rb", buffering=0) as raw, open(target, "r+b", buffering=0) as disk:
        while block := raw.read(MIB):
            disk.write(block)
        os.fsync(disk.fileno())


def change(paths, size, seed):
    """A hundredth of the sectors, here and there, in all these files; the changed bytes."""
    places = random.Random(seed).sample(range(size // SECTOR), int(size // SECTOR * CHANGED_SHARE))
    files = [os.open(path, os.O_RDWR) for path in paths]
    try:
        for place in places:
            block = os.urandom(SECTOR)
            for file in files:
                os.pwrite(file, block, place * SECTOR)
        for file in files:
            os.fsync(file)
    finally:
        for file in files:
            os.close(file)
    return len(places) * SECTOR


def read(paths):
    """Reads what is stored in these files, holes left out."""
    for path in paths:
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


def stored_bytes(folder):
    """What the files below take."""
    return sum(os.lstat(os.path.join(place, name)).st_size for place, _, names in os.walk(folder) for name in names)

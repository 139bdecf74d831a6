"""The file systems that the rows are measured on: one in memory, one on a disk."""

import os
import shutil

from . import machine, process

MARGIN_BYTES = 512 << 20


class Place:
    """A folder on one file system. Its name is what the file system is, not what it was asked for as."""

    def __init__(self, folder):
        self.parent = folder
        self.filesystem, self.device = _filesystem(folder)
        self.in_memory = self.filesystem in ("tmpfs", "ramfs")
        self.name = "tmpfs" if self.in_memory else f"disk ({self.filesystem})"
        self.work = None

    def lack(self, needed):
        """Words, if there is too little room for so many bytes."""
        needed += MARGIN_BYTES
        free = shutil.disk_usage(self.parent).free
        if free < needed:
            return f"{self.parent} ({self.name}) has {free >> 20} MiB free, and {needed >> 20} MiB are needed"
        memory = machine.available_memory()
        if self.in_memory and memory < needed:
            return f"{memory >> 20} MiB of memory are available, and {needed >> 20} MiB are needed in {self.parent} ({self.name})"
        return None

    def open(self):
        self.work = process.folder(self.parent, "terrane-bench.")

    def folder(self, name):
        path = os.path.join(self.work, name)
        os.mkdir(path)
        return path

    def describe(self):
        return {"place": self.name, "filesystem": self.filesystem, "device": self.device, "folder": self.parent}


def _filesystem(folder):
    """Type and source of the mount that a folder lies in."""
    folder = os.path.realpath(folder)
    best = ("", "unknown", "unknown")
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            source, point, kind = line.split(" ")[:3]
            point = point.replace("\\040", " ")
            below = folder == point or folder.startswith(point.rstrip("/") + "/")
            # Of two over the same place the later one is seen.
            if below and len(point) >= len(best[0]):
                best = (point, kind, source)
    return best[1], best[2]


def choose(asked, disk, memory):
    """The places asked for; of two on the same kind of file system the first, and why the other is left out."""
    places, left_out = [], []
    for folder in {"tmpfs": [memory], "disk": [disk], "both": [memory, disk]}[asked]:
        os.makedirs(folder, exist_ok=True)
        place = Place(folder)
        if any(place.name == other.name for other in places):
            left_out.append({"what": f"{folder}", "why": f"is {place.name} too"})
        else:
            places.append(place)
    return places, left_out

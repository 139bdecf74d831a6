"""A copy of 1 % scattered changes to what the target has already, beside restic's."""

import os

from . import disk_image, machine, process
from .product import Region
from .restic import NAME as RESTIC
from .restic import Restic
from .row import OURS, Goal, cost, rate
from .rows_copies import timed

NAME = "changes"
SHIPPED = "bytes shipped in a copy of 1 % scattered changes"
SPEED = "copy of 1 % scattered changes"
DISK_MAX = 1 << 30
MIB = 1 << 20


def row_names(place):
    return [SHIPPED, SPEED]


def space(options):
    # The raw disk, ours and restic's at both ends, and what restic ships in each round, most of a disk.
    return (5 + 2 * options.rounds) * min(options.copy_size, DISK_MAX) + (1 << 30)


def measure(context):
    size = min(context.copy_size, DISK_MAX)
    words = f"{size / (1 << 30):g} GiB, sectors of 4 KiB changed at random, a round"
    shipped = cost(SHIPPED, "× changed", [Goal(1.05)], [words, "ours as `snapshot show` says, restic's as its repository grew"])
    speed = rate(SPEED, "MiB/s changed", [Goal(50, RESTIC)], [words])
    folder = context.place.folder(NAME)
    with Region(context.terrane, folder, "here") as here, Region(context.terrane, folder, "there", here) as there:
        raw = os.path.join(folder, "raw")
        context.say("writing the disk to change")
        disk_image.write_random(raw, size)
        restic = _restic(context, folder, raw)
        here.create("disk", size)
        here.mount(context.threads)
        disk_image.put(raw, here.file("disk"))
        _copy(here, there, "base", size)
        for number in range(context.rounds):
            context.say(f"round {number + 1} of {context.rounds}: {SPEED}")
            changed = disk_image.change([raw, here.file("disk")], size, number)
            seconds = _copy(here, there, f"next-{number}", changed)
            shipped.add(OURS, there.ask("snapshot", "show", f"next-{number}")["shipped_bytes"] / changed)
            speed.add(OURS, changed / MIB / seconds)
            if restic:
                had = restic.target_bytes()
                restic.back_up(raw)
                seconds = timed(changed, list(machine.regular_files(restic.source)), restic.target, restic.copy)
                shipped.add(RESTIC, (restic.target_bytes() - had) / changed)
                speed.add(RESTIC, changed / MIB / seconds)
    process.remove(folder)
    return [shipped, speed]


def _restic(context, folder, raw):
    """restic with the disk at both ends, if there is one."""
    if RESTIC in context.missing:
        return None
    with context.leaving_out(RESTIC):
        restic = Restic(folder)
        restic.back_up(raw)
        restic.copy()
        return restic
    return None


def _copy(here, there, name, size):
    here.snapshot("disk", name)
    copy = ["snapshot", "copy", "--wait", name, "--to", there.name, "--key", "second", "--name", name]
    return timed(size, here.stored_files(), there.dir, lambda: here.run(*copy))

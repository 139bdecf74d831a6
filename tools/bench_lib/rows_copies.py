"""A whole disk copied under another key, beside `qemu-img convert` from LUKS to LUKS and `restic copy`; each copy is timed until it
is on the disk, its source in memory."""

import os
import time

from . import contestants, disk_image, machine, process
from .contestants import QEMU_IMG
from .product import Region
from .restic import NAME as RESTIC
from .restic import Restic
from .row import OURS, Goal, rate

NAME = "copies"
WHOLE = "copy of a whole disk under another key"
MIB = 1 << 20


def row_names(place):
    return [WHOLE]


def space(options):
    # Three sources, and one copy or the raw disk.
    return 4 * options.copy_size + (1 << 30)


def measure(context):
    size = context.copy_size
    notes = [f"{size / (1 << 30):g} GiB of random bytes; restic's two passphrases (scrypt) are in its time"]
    row = rate(WHOLE, goals=[Goal(5, QEMU_IMG)], notes=notes)
    folder = context.place.folder(NAME)
    with Region(context.terrane, folder, "here") as here, Region(context.terrane, folder, "there", here) as there:
        copiers = _prepare(context, folder, here, there, size)
        for number in range(context.rounds):
            for who in list(copiers):
                context.say(f"round {number + 1} of {context.rounds}: {WHOLE}: {who}")
                with context.leaving_out(who, copiers, row):
                    row.add(who, size / MIB / copiers[who].seconds(number))
                    copiers[who].undo(number)
    process.remove(folder)
    return [row]


def _prepare(context, folder, here, there, size):
    raw = os.path.join(folder, "raw")
    context.say("writing the disk to copy")
    disk_image.write_random(raw, size)
    makers = {OURS: lambda: Ours(here, there, raw, size), QEMU_IMG: lambda: Qemu(folder, raw), RESTIC: lambda: WholeRestic(folder, raw)}
    copiers = {}
    for who, make in makers.items():
        if who not in context.missing:
            with context.leaving_out(who):
                copiers[who] = make()
    os.unlink(raw)
    machine.settle()
    return copiers


def timed(size, source_files, target, copy):
    """Until what was copied is on the disk."""
    machine.settle()
    disk_image.read(source_files)
    machine.warm_memory(2 * size)
    begin = time.monotonic()
    copy()
    machine.flush(target)
    return time.monotonic() - begin


class Ours:
    """`snapshot copy` to another region."""

    def __init__(self, here, there, raw, size):
        self.here, self.there, self.size = here, there, size
        here.create("disk", size)
        here.mount()
        disk_image.put(raw, here.file("disk"))
        here.snapshot("disk", "base")
        here.unmount()

    def seconds(self, number):
        copy = ["snapshot", "copy", "--wait", "base", "--to", self.there.name, "--key", "second", "--name", f"copied-{number}"]
        return timed(self.size, self.here.stored_files(), self.there.dir, lambda: self.here.run(*copy))

    def undo(self, number):
        self.there.run("snapshot", "delete", f"copied-{number}")


class Qemu:
    """`qemu-img convert`, with as many writes under way as it allows, and a flush at its end."""

    def __init__(self, folder, raw):
        self.folder = os.path.join(folder, "qemu")
        os.mkdir(self.folder)
        self.source, self.target = os.path.join(self.folder, "source"), os.path.join(self.folder, "target")
        self.secrets = [contestants.password(folder, f"qemu.{end}") for end in ("source", "target")]
        self.size = os.path.getsize(raw)
        contestants.make_luks(self.source, self.size, self.secrets[0])
        image = f"driver=luks,key-secret=source,file.driver=file,file.filename={self.source}"
        self._convert("-f", "raw", "-n", "--target-image-opts", raw, image)

    def _convert(self, *arguments):
        objects = [f"secret,id={name},file={file}" for name, file in zip(("source", "target"), self.secrets)]
        given = [part for text in objects for part in ("--object", text)]
        process.run(["qemu-img", "convert", "-m", "16", "-W", "-t", "writeback", *given, *arguments])

    def seconds(self, number):
        image = f"driver=luks,key-secret=source,file.driver=file,file.filename={self.source}"
        options = "key-secret=target,cipher-alg=aes-256,cipher-mode=xts,iter-time=10"
        told = ["--image-opts", image, "-O", "luks", "-o", options, self.target]
        return timed(self.size, [self.source], self.folder, lambda: self._convert(*told))

    def undo(self, number):
        process.remove_file(self.target)


class WholeRestic:
    """`restic copy` into an empty repository."""

    def __init__(self, folder, raw):
        self.restic, self.size = Restic(folder), os.path.getsize(raw)
        self.restic.back_up(raw)

    def seconds(self, number):
        return timed(self.size, list(machine.regular_files(self.restic.source)), self.restic.target, self.restic.copy)

    def undo(self, number):
        self.restic.make_target()

"""What the mounted rows compare: the same bytes as a plain file, a bare mount, our volume, and others' encrypted ones."""

import os
import secrets

from . import fio, process
from .product import Region
from .row import OURS

PLAIN, BARE, QEMU, QEMU_IMG, GOCRYPTFS = "plain", "bare", "qemu", "qemu-img", "gocryptfs"
ORDER = (OURS, BARE, PLAIN, QEMU, GOCRYPTFS)
# What each needs besides fio.
PROGRAMS = {QEMU: ["qemu-img", "qemu-storage-daemon"], QEMU_IMG: ["qemu-img"], GOCRYPTFS: ["gocryptfs"]}


class Contestant:
    """A file to measure, and the process that serves it."""

    def __init__(self, file, pid=None):
        self.file, self.pid = file, pid


def plain(stack, context, folder):
    path = os.path.join(folder, "plain")
    with open(path, "wb") as file:
        file.truncate(context.size)
    return Contestant(path)


def bare(stack, context, folder):
    """A plain file served through FUSE with our mount's options, without cipher or map: the ceiling."""
    path, mount = os.path.join(folder, "bare.file"), _folder(folder, "bare")
    with open(path, "wb") as file:
        file.truncate(context.size)
    threads = ["--threads", str(context.threads or 8)]
    server = process.Server([context.bare, path, mount, *threads], mount, os.path.join(mount, "disk"))
    stack.callback(server.kill)
    return Contestant(os.path.join(mount, "disk"), server.pid)


def ours(stack, context, folder):
    region = stack.enter_context(Region(context.terrane, folder))
    region.create("disk", context.size)
    region.mount(context.threads)
    return Contestant(region.file("disk"), region.server.pid)


def qemu(stack, context, folder):
    """LUKS in a raw file, exported through FUSE: XTS-AES-256 as ours, without tags or snapshots."""
    secret, image, shown = password(folder, "qemu"), os.path.join(folder, "qemu.luks"), os.path.join(folder, "qemu.disk")
    make_luks(image, context.size, secret)
    # It mounts over a file.
    open(shown, "wb").close()
    command = [
        "qemu-storage-daemon", "--object", f"secret,id=pass,file={secret}", "--blockdev", f"driver=file,node-name=file,filename={image}",
        "--blockdev", "driver=luks,node-name=disk,file=file,key-secret=pass",
        "--export", f"type=fuse,id=export,node-name=disk,mountpoint={shown},writable=on",
    ]  # fmt: skip
    server = process.Server(command, shown, ends_unmounted=False)
    stack.callback(server.kill)
    return Contestant(shown, server.pid)


def gocryptfs(stack, context, folder):
    """A file of an encrypted folder: AES-256-GCM, each 4 KiB with a tag."""
    secret, stored, mount = password(folder, "gocryptfs"), _folder(folder, "gocryptfs.stored"), _folder(folder, "gocryptfs")
    process.run(["gocryptfs", "-q", "-init", "-scryptn", "10", "-passfile", secret, stored])
    command = ["gocryptfs", "-q", "-fg", "-nosyslog", "-passfile", secret, stored, mount]
    server = process.Server(command, mount)
    stack.callback(server.kill)
    path = os.path.join(mount, "disk")
    with open(path, "wb") as file:
        file.truncate(context.size)
    return Contestant(path, server.pid)


MAKERS = {OURS: ours, BARE: bare, PLAIN: plain, QEMU: qemu, GOCRYPTFS: gocryptfs}


def open_all(stack, context, folder):
    """Each that can be had, filled with random bytes. One that can't is left out and named."""
    found = {}
    for name in ORDER:
        if name in context.missing:
            continue
        own = _folder(folder, name)
        with context.leaving_out(name):
            contestant = MAKERS[name](stack, context, own)
            fio.fill(contestant.file, context.size)
            found[name] = contestant
    return found


def make_luks(path, size, secret):
    # Hardly any work for the passphrase: that is no part of what is measured.
    options = "key-secret=pass,cipher-alg=aes-256,cipher-mode=xts,iter-time=10"
    process.run(["qemu-img", "create", "-q", "-f", "luks", "--object", f"secret,id=pass,file={secret}", "-o", options, path, str(size)])


def password(folder, name):
    path = os.path.join(folder, f"{name}.password")
    with open(path, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(16))
    return path


def _folder(parent, name):
    path = os.path.join(parent, name)
    os.mkdir(path)
    return path

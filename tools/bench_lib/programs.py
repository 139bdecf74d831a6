"""The programs a run needs: Debian's packages, and what is built here."""

import json
import os
import subprocess
import sys

from . import contestants, process, restic

NEEDED = {"fio": "fio", "fusermount3": "fuse3"}
PEER_PACKAGES = {
    "qemu-img": "qemu-utils", "qemu-storage-daemon": "qemu-system-common", "gocryptfs": "gocryptfs", "restic": "restic",
}  # fmt: skip
PEERS = {**contestants.PROGRAMS, restic.NAME: restic.PROGRAMS}


def lacking(programs):
    return [program for program in programs if not process.has(program)]


def install(packages):
    """By apt where that may be done; whether it was."""
    as_root = [] if os.getuid() == 0 else ["sudo", "-n"]
    if not process.has("apt-get") or as_root and subprocess.run([*as_root, "true"], capture_output=True).returncode != 0:
        return False
    print(f"bench: installing {' '.join(packages)}", file=sys.stderr)
    subprocess.run([*as_root, "apt-get", "update", "-qq"], stdout=sys.stderr, stdin=subprocess.DEVNULL)
    apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq", "--no-install-recommends"]
    return subprocess.run([*as_root, *apt, *packages], stdout=sys.stderr, stdin=subprocess.DEVNULL).returncode == 0


def missing_peers(may_install):
    """Peers that are not here and can't be installed, with the reason. One by one: one that is not to be had keeps no other away."""
    missing = {}
    for peer, programs in PEERS.items():
        if may_install and lacking(programs):
            install([PEER_PACKAGES[program] for program in lacking(programs)])
        if lacking(programs):
            missing[peer] = f"no {' or '.join(lacking(programs))} here"
    return missing


def need(may_install):
    """Those without which nothing is measured."""
    absent = lacking(NEEDED)
    if absent and may_install:
        install([NEEDED[program] for program in absent])
        absent = lacking(NEEDED)
    if absent:
        sys.exit(f"bench: please install: {' '.join(NEEDED[program] for program in absent)}")


def versions(missing):
    """What each peer calls itself."""
    found = {}
    for peer, programs in PEERS.items():
        if peer not in missing:
            flag = "version" if peer == restic.NAME else "--version"
            found[peer] = process.run([programs[-1], flag]).splitlines()[0]
    found["fio"] = process.run(["fio", "--version"]).strip()
    return found


def build(root):
    """terrane, the bare mount and the bench of the cipher, as a release: their paths."""
    print("bench: building", file=sys.stderr)
    told = ["cargo", "build", "--release", "--quiet", "--bin", "terrane", "--example", "bare_mount"]
    if subprocess.run(told, cwd=root).returncode != 0:
        sys.exit("bench: it does not build; `cargo build --release --examples` says why (OpenSSL needs libssl-dev and pkg-config)")
    target = os.path.join(root, os.environ.get("CARGO_TARGET_DIR", "target"), "release")
    return os.path.join(target, "terrane"), os.path.join(target, "examples", "bare_mount")


def build_cipher(root):
    """The bench of the cipher, or None where it does not build."""
    told = ["cargo", "bench", "--quiet", "--no-run", "--bench", "cipher", "--message-format=json"]
    done = subprocess.run(told, cwd=root, stdout=subprocess.PIPE, text=True)
    for line in done.stdout.splitlines():
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("target", {}).get("name") == "cipher" and message.get("executable"):
            return message["executable"]
    return None


def build_aws_lc(root):
    """AWS-LC's XTS (`benches/aws_lc`), or None where it does not build, such as without a registry or a C compiler."""
    target = os.path.join(root, os.environ.get("CARGO_TARGET_DIR", "target"), "aws_lc")
    told = ["cargo", "build", "--release", "--locked", "--quiet", "--manifest-path", "benches/aws_lc/Cargo.toml", "--target-dir", target]
    if subprocess.run(told, cwd=root, stderr=subprocess.DEVNULL).returncode != 0:
        return None
    return os.path.join(target, "release", "aws-lc-xts")

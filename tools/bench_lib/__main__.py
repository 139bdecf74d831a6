"""Options, places, groups of rows: the whole of a run."""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass

from . import (
    chart, machine, place, process, programs, report, rows_changes, rows_cipher, rows_clones, rows_commands, rows_copies,
    rows_layers, rows_memory, rows_mounted, rows_snapshots, signals,
)  # fmt: skip
from .context import Context

GROUPS = [rows_mounted, rows_layers, rows_snapshots, rows_clones, rows_memory, rows_copies, rows_changes, rows_commands]
# Processes that wanted a processor in the last minute; more than this is a neighbour.
BUSY = 0.5
NAMES = [rows_cipher.NAME, *(group.NAME for group in GROUPS)]
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@dataclass
class Section:
    """Rows of one place; of the processor alone, none."""

    title: str
    rows: list
    place: dict | None

    def as_json(self):
        return {"title": self.title, **(self.place or {}), "rows": [row.as_json() for row in self.rows]}


def size(text):
    done = subprocess.run(["numfmt", "--from=iec", text], capture_output=True, text=True)
    if done.returncode != 0 or int(done.stdout) < 64 << 20 or int(done.stdout) % (64 << 20):
        raise argparse.ArgumentTypeError(f"{text} is no multiple of 64M")
    return int(done.stdout)


def parse():
    parser = argparse.ArgumentParser(prog="tools/bench", description="Measures terrane beside a plain file, a bare FUSE mount,"
        " qemu, gocryptfs, restic and OpenSSL, in one run on the same file system.")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="smaller disks, shorter runs: not for the record")
    parser.add_argument("--on", choices=["tmpfs", "disk", "both"], default="both")
    parser.add_argument("--scratch", metavar="DIR", default=os.path.join(ROOT, "target", "bench"), help="a folder on the disk")
    parser.add_argument("--tmpfs", metavar="DIR", default="/dev/shm", help="a folder in memory")
    parser.add_argument("--only", metavar="WORDS", default="", help=f"rows whose name holds WORDS, or a group: {', '.join(NAMES)}")
    parser.add_argument("--size", type=size, help="of most disks; 1G, --quick 256M")
    parser.add_argument("--copy-size", type=size, help="of the disk that is copied; 4G, --quick 1G")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts")
    parser.add_argument("--seconds", type=float, help="of a measurement; 3, --quick 0.5")
    parser.add_argument("--threads", type=int, help="of the mounts")
    parser.add_argument("--without", metavar="PEER", action="append", default=[], choices=list(programs.PEERS))
    parser.add_argument("--no-install", action="store_true", help="leave out what is not here")
    parser.add_argument("--terrane", metavar="PROGRAM", help="measure this one, with examples/bare_mount beside it; nothing is built")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--svg", metavar="FILE", help="a chart")
    parser.add_argument("--markdown", metavar="FILE", help="tables")
    options = parser.parse_args()
    usual = (256 << 20, 1 << 30, 0.5) if options.quick else (1 << 30, 4 << 30, 3.0)
    for name, value in zip(("size", "copy_size", "seconds"), usual):
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.rounds < 1 or options.seconds < 0.1:
        parser.error("at least one round and a tenth of a second")
    return options


def chosen_groups(options, where):
    """Groups that hold what --only says."""
    if options.only in NAMES:
        return [group for group in GROUPS if group.NAME == options.only]
    return [g for g in GROUPS if any(options.only in name for name in g.row_names(where))]


def wants_cipher(options):
    if options.only in NAMES:
        return options.only == rows_cipher.NAME
    return any(options.only in name for name in rows_cipher.row_names())


def refuse_too_little_space(options, places):
    """Before anything is begun."""
    for where in places:
        needed = max([group.space(options) for group in chosen_groups(options, where)], default=0)
        lack = where.lack(needed) if needed else None
        if lack:
            other = "--tmpfs DIR or --on disk" if where.in_memory else "--scratch DIR or --on tmpfs"
            sys.exit(f"bench: {lack}; see {other}, --size and --copy-size")


def measure_place(context, options, where):
    context.place = where
    where.open()
    print(f"\n== on {where.name}: {where.parent}, {where.device}", flush=True)
    rows = []
    for group in chosen_groups(options, where):
        context.group_wanted = options.only == group.NAME
        measured = [row for row in group.measure(context) if row.samples and context.wants(row.name)]
        print(report.text(measured), flush=True)
        rows += measured
    process.remove(where.work)
    return Section(f"on {where.name}", rows, where.describe())


def run(options):
    places, left_out = place.choose(options.on, os.path.abspath(options.scratch), os.path.abspath(options.tmpfs))
    if not wants_cipher(options) and not any(chosen_groups(options, where) for where in places):
        sys.exit(f'bench: no row and no group is called "{options.only}"')
    refuse_too_little_space(options, places)
    busy = machine.load()
    programs.need(not options.no_install)
    missing = programs.missing_peers(not options.no_install)
    missing.update({peer: "--without" for peer in options.without})
    if options.terrane:
        terrane = os.path.abspath(options.terrane)
        bare = os.path.join(os.path.dirname(terrane), "examples", "bare_mount")
    else:
        terrane, bare = programs.build(ROOT)
    found = machine.describe()
    context = Context(options.size, options.copy_size, options.rounds, options.seconds, options.threads, options.only, terrane, bare,
        None, found, missing=missing)  # fmt: skip
    sections = []
    if wants_cipher(options) and (section := cipher_section(context, options, left_out)):
        sections.append(section)
    for where in places:
        if chosen_groups(options, where):
            sections.append(measure_place(context, options, where))
    left_out += [{"what": peer, "why": why} for peer, why in context.missing.items()]
    finish(options, found, busy, sections, left_out, programs.versions(context.missing))


def cipher_section(context, options, left_out):
    context.cipher = None if options.terrane else programs.build_cipher(ROOT)
    if not context.cipher:
        why = "--terrane was given" if options.terrane else "its bench does not build; OpenSSL needs libssl-dev and pkg-config"
        left_out.append({"what": "the cipher", "why": why})
        return None
    context.aws_lc = programs.build_aws_lc(ROOT)
    if not context.aws_lc:
        left_out.append({"what": rows_cipher.AWS_LC, "why": "benches/aws_lc does not build"})
    context.group_wanted = options.only == rows_cipher.NAME
    context.work = process.folder(None, "terrane-bench.")
    print("\n== the cipher, one core", flush=True)
    rows = [row for row in rows_cipher.measure(context) if context.wants(row.name)]
    print(report.text(rows), flush=True)
    process.remove(context.work)
    return Section("the cipher, one core", rows, None)


def finish(options, found, busy, sections, left_out, versions):
    warnings = machine.warnings(found)
    if busy > BUSY:
        warnings.append(f"others used this machine: its load was {busy:.1f} when this began")
    if options.rounds < 3:
        warnings.append("fewer than three rounds: the spread says little")
    if options.quick or options.terrane:
        warnings.append("a quick run, or of a given program: not for the record")
    footer = report.footer([row for section in sections for row in section.rows], warnings, left_out)
    print(f"\n{footer}")
    result = {
        "version": 1,
        "date": time.strftime("%Y-%m-%d"),
        "machine": found,
        "quick": options.quick,
        "size_bytes": options.size,
        "copy_size_bytes": options.copy_size,
        "rounds": options.rounds,
        "load_at_begin": busy,
        "seconds": options.seconds,
        "peers": versions,
        "warnings": warnings,
        "left_out": left_out,
        "sections": [section.as_json() for section in sections],
    }
    if options.json:
        report.write_json(options.json, result)
    if options.svg:
        chart.write(options.svg, result)
    if options.markdown:
        with open(options.markdown, "w", encoding="utf-8") as out:
            out.write("\n\n".join([*map(report.markdown, sections), footer, ""]))


def main():
    options = parse()
    signals.catch()
    try:
        run(options)
    except process.Failed as error:
        sys.exit(f"bench: {error}")
    finally:
        process.sweep()


if __name__ == "__main__":
    main()

"""What the rows are given: sizes, programs, the place, and who is missing."""

import contextlib
import sys
from dataclasses import dataclass, field

from .process import Failed
from .row import OURS

# Without these there is nothing to compare.
KEPT = (OURS, "bare")


@dataclass
class Context:
    size: int
    copy_size: int
    rounds: int
    seconds: float
    threads: int | None
    only: str
    terrane: str
    bare: str
    cipher: str | None
    machine: dict
    # AWS-LC's XTS, or None where it is left out.
    aws_lc: str | None = None
    work: str = ""
    place: object = None
    # Peers that are left out, and why.
    missing: dict = field(default_factory=dict)

    def wants(self, row):
        return self.only in row or self.group_wanted

    group_wanted = False

    @contextlib.contextmanager
    def leaving_out(self, peer, running=None, row=None):
        """A peer that fails here is left out for good, and named: of those that run, and of the row, whose rounds are pairs."""
        try:
            yield
        except (Failed, OSError) as error:
            if peer in KEPT:
                raise
            self.say(f"{peer} is left out: {error}")
            self.missing[peer] = str(error)
            (running or {}).pop(peer, None)
            if row is not None:
                row.samples.pop(peer, None)

    @staticmethod
    def say(words):
        print(f"bench: {words}", file=sys.stderr, flush=True)

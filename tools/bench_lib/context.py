"""What the rows are given: sizes, programs, the place, and who is missing."""

import sys
from dataclasses import dataclass, field


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
    work: str = ""
    place: object = None
    # Peers that are left out, and why.
    missing: dict = field(default_factory=dict)

    def wants(self, row):
        return self.only in row or self.group_wanted

    group_wanted = False

    def leave_out(self, peer, why):
        """For good: a peer that failed once would fail again."""
        self.say(f"{peer} is left out: {why}")
        self.missing[peer] = why

    @staticmethod
    def say(words):
        print(f"bench: {words}", file=sys.stderr, flush=True)

"""A row of results: samples of ours and of others, medians, how far they spread, and whether what is wanted was reached."""

import statistics
from dataclasses import dataclass, field

OURS = "ours"
# A number is noisy if its samples lie further apart than this share of their median.
NOISY_SPREAD = 0.2
RULE = (
    f"noisy (~): the samples of a side differ by more than {NOISY_SPREAD:.0%} of their median. Of a noisy comparison"
    " yes or no is said only where every round by itself says the same, else open"
)


@dataclass(frozen=True)
class Goal:
    """What is wanted of ours: `bound` times another's number, or without one a number of the row's unit."""

    bound: float
    to: str | None = None


@dataclass
class Row:
    """Samples by whose they are, one a round."""

    name: str
    unit: str
    # Whether more is better, as of a rate, or less, as of a time.
    higher: bool
    goals: list = field(default_factory=list)
    samples: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)

    def add(self, who, value):
        self.samples.setdefault(who, []).append(value)

    def median(self, who):
        return statistics.median(self.samples[who])

    def spread(self, who):
        """Of largest and smallest, as a share of the median."""
        values, median = self.samples[who], self.median(who)
        return (max(values) - min(values)) / median if median else 0.0

    def is_noisy(self, who):
        return self.spread(who) > NOISY_SPREAD

    def others(self):
        return [who for who in self.samples if who != OURS]

    def ratio(self, to):
        other = self.median(to)
        return self.median(OURS) / other if other else None

    def compare(self, goal):
        """(ours or ratio, reached: yes, no, open or not measured)."""
        if OURS not in self.samples or goal.to is not None and goal.to not in self.samples:
            return None, "not measured"
        if goal.to is None:
            value, rounds, sides = self.median(OURS), self.samples[OURS], [OURS]
        else:
            value, sides = self.ratio(goal.to), [OURS, goal.to]
            rounds = [ours / other if other else None for ours, other in zip(self.samples[OURS], self.samples[goal.to])]
        if value is None or None in rounds:
            return None, "not measured"
        met = self._meets(value, goal)
        if any(map(self.is_noisy, sides)) and any(self._meets(each, goal) != met for each in rounds):
            return value, "open"
        return value, "yes" if met else "no"

    def _meets(self, value, goal):
        return value >= goal.bound if self.higher else value <= goal.bound

    def goal_words(self, goal):
        least = "≥" if self.higher else "≤"
        return f"{least} {goal.bound:g} × {goal.to}" if goal.to else f"{least} {goal.bound:g} {self.unit}"

    def as_json(self):
        goals = []
        for goal in self.goals:
            value, reached = self.compare(goal)
            goals.append({"to": goal.to, "bound": goal.bound, "value": value, "reached": reached})
        return {
            "row": self.name,
            "unit": self.unit,
            "higher_is_better": self.higher,
            "medians": {who: self.median(who) for who in self.samples},
            "spread": {who: self.spread(who) for who in self.samples},
            "noisy": [who for who in self.samples if self.is_noisy(who)],
            "ratios": {who: self.ratio(who) for who in self.others()} if OURS in self.samples else {},
            "goals": goals,
            "samples": self.samples,
            "notes": self.notes,
        }


def rate(name, unit="MiB/s", goals=(), notes=()):
    return Row(name, unit, True, list(goals), notes=list(notes))


def cost(name, unit, goals=(), notes=()):
    return Row(name, unit, False, list(goals), notes=list(notes))

"""Guards against numbers that are taken for what they are not: a noisy comparison, a missing side, a processor without AES.

    PYTHONPATH=tools python3 -m unittest bench_lib.tests
"""

import unittest
import xml.dom.minidom

from . import chart, machine, report
from .row import OURS, Goal, cost, rate

X86 = "model name\t: Some Processor\nflags\t\t: fpu sse2 {}\n"


def rated(ours, other, bound=1.0):
    row = rate("a row", goals=[Goal(bound, "other")])
    for mine, its in zip(ours, other):
        row.add(OURS, mine)
        row.add("other", its)
    return row


class Verdicts(unittest.TestCase):
    def verdict(self, row):
        return row.compare(row.goals[0])[1]

    def test_a_quiet_comparison_is_decided_by_medians(self):
        self.assertEqual(self.verdict(rated([100, 101, 99], [100, 100, 98])), "yes")
        self.assertEqual(self.verdict(rated([100, 101, 99], [102, 103, 98])), "no")

    def test_a_noisy_comparison_counts_only_where_all_rounds_agree(self):
        self.assertEqual(self.verdict(rated([100, 200, 90], [95, 150, 89])), "yes")
        self.assertEqual(self.verdict(rated([100, 200, 90], [95, 150, 200])), "open")
        self.assertEqual(self.verdict(rated([100, 200, 90], [101, 201, 91])), "no")
        self.assertTrue(rated([100, 200, 90], [1, 1, 1]).is_noisy(OURS))
        self.assertFalse(rated([100, 105, 95], [1, 1, 1]).is_noisy(OURS))

    def test_less_is_better_of_a_time(self):
        row = cost("a time", "ms", [Goal(10), Goal(1.2, "plain")])
        for value in (11, 12, 11.5):
            row.add(OURS, value)
            row.add("plain", 10)
        self.assertEqual([row.compare(goal)[1] for goal in row.goals], ["no", "yes"])

    def test_a_missing_side_is_not_measured(self):
        row = rate("a row", goals=[Goal(10, "qemu")])
        row.add(OURS, 5)
        self.assertEqual(row.compare(row.goals[0]), (None, "not measured"))
        self.assertIn("missing", report.text([row]))
        self.assertEqual(row.as_json()["goals"][0]["reached"], "not measured")

    def test_a_number_of_nothing_is_not_a_ratio(self):
        self.assertEqual(self.verdict(rated([1, 1, 1], [0, 0, 0])), "not measured")


class Processors(unittest.TestCase):
    def test_instructions_that_are_missing_are_said(self):
        wide, widest = " ".join(machine.WIDE), " ".join(machine.WIDEST)
        for flags, words in [("", "no AES"), ("aes pclmulqdq", "lacks VAES"), (wide, "AVX-512"), (widest, None)]:
            said = machine.warnings(machine.processor(X86.format(flags)))
            self.assertEqual(len(said), 0 if words is None else 1, flags)
            if words:
                self.assertIn(words, said[0])

    def test_arm_says_features(self):
        self.assertTrue(machine.processor("Features\t: fp asimd aes pmull\n")["aes"])


class Charts(unittest.TestCase):
    def test_a_bar_for_each_thing_wanted_that_was_measured(self):
        rows = [rated([300, 310, 305], [100, 100, 100]), rated([100, 200, 90], [95, 150, 200]), rate("none", goals=[Goal(1, "qemu")])]
        rows[0].name = "reads < writes & more"
        result = {"date": "2026-01-01", "machine": {"cpus": 2}}
        result["sections"] = [{"title": "on tmpfs", "rows": [row.as_json() for row in rows]}]
        drawn = xml.dom.minidom.parseString(chart.draw(result))
        self.assertEqual(len(drawn.getElementsByTagName("rect")), 2)
        self.assertEqual(chart.reached_share(rows[0].as_json(), rows[0].as_json()["goals"][0]), 3.05)
        colours = {bar.getAttribute("fill") for bar in drawn.getElementsByTagName("rect")}
        self.assertEqual(colours, {chart.COLOURS["yes"], chart.COLOURS["open"]})


if __name__ == "__main__":
    unittest.main()

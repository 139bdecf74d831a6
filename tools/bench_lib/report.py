"""The results in words: lines for a terminal, a table for `docs/performance.md`, JSON."""

import json

from .row import OURS, RULE


def number(value):
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def measured(row, who):
    return f"{number(row.median(who))} {row.unit}{' ~' if row.is_noisy(who) else ''}"


def comparisons(row):
    """(whose, its number, the ratio, what is wanted, whether reached), first what ours alone must reach."""
    lines = []
    for goal in (goal for goal in row.goals if goal.to is None):
        lines.append(("", "", "", row.goal_words(goal), row.compare(goal)[1]))
    goals = {goal.to: goal for goal in row.goals if goal.to is not None}
    for who in [*row.others(), *(to for to in goals if to not in row.samples)]:
        there = who in row.samples
        wanted, reached = (row.goal_words(goals[who]), row.compare(goals[who])[1]) if who in goals else ("", "")
        ratio = number(row.ratio(who)) if there and OURS in row.samples else ""
        lines.append((who, measured(row, who) if there else "missing", ratio, wanted, reached))
    return lines or [("", "", "", "", "")]


def spreads(row):
    if max(map(len, row.samples.values())) < 2:
        return "one round"
    return "spread: " + ", ".join(f"{who} {row.spread(who):.0%}" for who in row.samples)


def text(rows):
    """For a terminal."""
    lines = []
    for row in rows:
        lines.append(f"{row.name}: {measured(row, OURS) if OURS in row.samples else 'not measured'}   ({spreads(row)})")
        for who, value, ratio, wanted, reached in comparisons(row):
            if who or wanted:
                lines.append(f"    {who:14}{value:>16}  {'ratio ' + ratio if ratio else '':14}{wanted:36}  {reached}")
        lines += [f"    ({note})" for note in row.notes]
    return "\n".join(lines)


def markdown(section):
    """A line a comparison."""
    lines = [f"**{section.title}**", "", "| | ours | beside | | ratio | wanted | reached |", "|---|---:|---|---:|---:|---|---|"]
    for row in section.rows:
        ours = measured(row, OURS) if OURS in row.samples else "not measured"
        for at, (who, value, ratio, wanted, reached) in enumerate(comparisons(row)):
            reached = f"**{reached}**" if reached in ("no", "open") else reached
            lines.append(f"| {row.name if at == 0 else ''} | {ours if at == 0 else ''} | {who} | {value} | {ratio} | {wanted} | {reached} |")
    return "\n".join(lines)


def footer(rows, warnings, left_out):
    lines = [f"({warning})" for warning in warnings]
    lines += [f"(left out: {each['what']}: {each['why'].splitlines()[0]})" for each in left_out]
    noisy = sum(any(map(row.is_noisy, row.samples)) for row in rows)
    return "\n".join([*lines, f"({noisy} of {len(rows)} rows are {RULE}.)"])


def write_json(path, result):
    with open(path, "w", encoding="utf-8") as out:
        json.dump(result, out, indent=2)
        out.write("\n")

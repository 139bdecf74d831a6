"""The results as a chart: a bar for each thing wanted, as long as ours is in relation to it. 1 is where it is reached.

    python3 -m bench_lib.chart RESULT.json CHART.svg
"""

import json
import math
import sys
from html import escape

LEFT, BAR, RIGHT, LINE, TOP = 520, 360, 290, 22, 74
# Bars go from a quarter to four times of what is wanted.
LEAST, MOST = 0.25, 4
COLOURS = {"yes": "#2f9e68", "no": "#d1495b", "open": "#c99a2e"}
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-size: 15px; font-weight: 600 }
.place { font-weight: 600 }
.quiet { fill: #6a737d }
.grid { stroke: #8c959f; stroke-opacity: .35 }
.wanted { stroke: #24292f; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .quiet { fill: #9198a1 }
  .wanted { stroke: #e6edf3 }
}
"""


def reached_share(row, goal):
    """Ours in relation to what is wanted: over 1 is better than that."""
    value, bound = goal["value"], goal["bound"]
    if row["higher_is_better"]:
        return value / bound
    return bound / value if value > 0 else math.inf


def place_on_scale(share):
    share = min(max(share, LEAST), MOST)
    return LEFT + BAR * math.log(share / LEAST) / math.log(MOST / LEAST)


def _text(x, y, words, kind="", end=False):
    anchor = ' text-anchor="end"' if end else ""
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}"{anchor}>{escape(words)}</text>'


def _bar(row, goal, y):
    share = reached_share(row, goal)
    zero, end = place_on_scale(1), place_on_scale(share)
    least = "≥" if row["higher_is_better"] else "≤"
    unit = f"× {goal['to']}" if goal["to"] else row["unit"]
    beyond = " →" if share > MOST else " ←" if share < LEAST else ""
    words = f"{goal['value']:.3g}{beyond} ({least} {goal['bound']:g} {unit})"
    if goal["reached"] == "open":
        words += " noisy"
    name = row["row"] if len(row["row"]) <= 72 else row["row"][:71] + "…"
    return [
        _text(LEFT - 8, y + 13, name, end=True),
        f'<rect x="{min(zero, end):.1f}" y="{y + 3}" width="{max(abs(end - zero), 1):.1f}" height="{LINE - 8}" rx="2"'
        f' fill="{COLOURS[goal["reached"]]}"/>',
        _text(LEFT + BAR + 8, y + 13, words, "quiet"),
    ]


def draw(result):
    """The SVG's text."""
    parts, y = [], TOP
    for section in result["sections"]:
        bars = [(row, goal) for row in section["rows"] for goal in row["goals"] if goal["value"] is not None]
        if not bars:
            continue
        parts.append(_text(LEFT - 8, y + 14, section["title"], "place", end=True))
        y += LINE
        for row, goal in bars:
            parts += _bar(row, goal, y)
            y += LINE
        y += LINE // 2
    grid = []
    for share in (0.25, 0.5, 1, 2, 4):
        x = place_on_scale(share)
        kind = "wanted" if share == 1 else "grid"
        grid.append(f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{y}" class="{kind}"/>')
        grid.append(f'<text x="{x:.1f}" y="{TOP - 12}" class="quiet" text-anchor="middle">{share:g} ×</text>')
    width, height = LEFT + BAR + RIGHT, y + 12
    title = f"terrane in relation to what is wanted ({result['date']}, {result['machine']['cpus']} cores)"
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        _text(12, 24, title, "title"),
        _text(12, 42, "Right of 1: reached. The number is ours as a ratio, or as it was measured.", "quiet"),
    ]
    return "\n".join([*head, *grid, *parts, "</svg>", ""])


def write(path, result):
    with open(path, "w", encoding="utf-8") as out:
        out.write(draw(result))


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as source:
        write(sys.argv[2], json.load(source))

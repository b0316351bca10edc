#!/usr/bin/env python3
"""Draws the plots of the guide `numbers`: `python3 tests/docs/plots.py < tests/docs/numbers.tsv`

Each line is a group, a name and a value, separated by tabs, as tests/bench/side_by_side.rs and
tests/bench/build_cost.sh print them. Draws one plot per group in src/guide/numbers.
"""

import math
import pathlib
import sys
from xml.sax.saxutils import escape

PLOTS = pathlib.Path(__file__).parents[2] / "src/guide/numbers"
NAMES, PLOT, ROW, TOP = 250, 380, 24, 34
WIDTH = NAMES + PLOT + 70
OURS, OTHERS, GRID = "#c2410c", "#57606a", "#d0d7de"


def ticks(low, high):
    """Powers of ten, and their doubles and fives if there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1,) if last - first > 3 else (1, 2, 5)
    marks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    below = [mark for mark in marks if mark <= low][-1:]
    above = [mark for mark in marks if mark >= high][:1]
    return below + [mark for mark in marks if low < mark < high] + above


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def draw(group, rows):
    marks = ticks(min(value for _, value in rows), max(value for _, value in rows))
    low, high = math.log10(marks[0]), math.log10(marks[-1])
    height = TOP + len(rows) * ROW + 30

    def at(value):
        return NAMES + (math.log10(value) - low) / (high - low) * PLOT

    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f"<title>{escape(group)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="20" font-weight="bold" fill="#1f2328">{escape(group)}</text>',
    ]
    for mark in marks:
        x = at(mark)
        svg.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{height - 26}" stroke="{GRID}"/>')
        svg.append(f'<text x="{x:.1f}" y="{height - 9}" fill="{OTHERS}" text-anchor="middle">{number(mark)}</text>')
    for row, (name, value) in enumerate(rows):
        y = TOP + row * ROW + ROW / 2
        colour = OURS if name.startswith(("noxrunner", "noxrc")) else OTHERS
        svg.append(f'<text x="{NAMES - 12}" y="{y + 4}" fill="{colour}" text-anchor="end">{escape(name)}</text>')
        svg.append(f'<line x1="{NAMES}" y1="{y}" x2="{at(value):.1f}" y2="{y}" stroke="{GRID}" stroke-dasharray="2 3"/>')
        svg.append(f'<circle cx="{at(value):.1f}" cy="{y}" r="5" fill="{colour}"/>')
        svg.append(f'<text x="{at(value) + 10:.1f}" y="{y + 4}" fill="#1f2328">{number(value)}</text>')
    return "\n".join([*svg, "</svg>"]) + "\n"


def main():
    groups = {}
    for line in sys.stdin:
        group, name, value = line.rstrip("\n").split("\t")
        groups.setdefault(group, []).append((name, float(value)))
    for group, rows in groups.items():
        file = PLOTS / (group.split(",")[0].replace(" ", "_") + ".svg")
        file.write_text(draw(group, sorted(rows, key=lambda row: row[1])), encoding="utf-8")
        print(file)


main()

"""Quality over evaluations as an SVG, one line a system. Written by hand: nothing here needs a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 860, 480
LEFT, RIGHT, TOP, BOTTOM = 70, 250, 40, 50  # margins; the names stand on the right
# Paul Tol's "muted", which people who see colors differently can tell apart.
COLORS = ("#332288", "#cc6677", "#117733", "#88ccee", "#999933", "#aa4499", "#44aa99", "#882255", "#ddcc77", "#777777")
Point = tuple[float, float]


def svg(table: Mapping[str, Any]) -> str:
    """The plot of one table of ``report.content``; published numbers are dotted."""
    label = table["plot"]
    lines = _lines(table, label)
    points = [point for _, row, _ in lines for point in row]
    body = _axes(points, label) if points else ['<text x="70" y="60">No figures.</text>']
    names = list(dict.fromkeys(name for name, _, _ in lines))
    for name, row, dotted in lines:
        body += _line(row, points, COLORS[names.index(name) % len(COLORS)], dotted)
    for index, name in enumerate(names):
        y, color = TOP + 18 * index, COLORS[index % len(COLORS)]
        x = WIDTH - RIGHT + 20
        body.append(f'<line x1="{x}" y1="{y}" x2="{x + 18}" y2="{y}" stroke="{color}" stroke-width="2"/>')
        body.append(f'<text x="{x + 24}" y="{y + 4}">{escape(name)}</text>')
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>'
    title = f'<text x="{LEFT}" y="22" font-size="14">{escape(str(table["title"]))}</text>'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', title, *body, "</svg>"]) + "\n"


def _lines(table: Mapping[str, Any], label: str) -> list[tuple[str, list[Point], bool]]:
    """Name, points (evaluations, value) and whether they are published ones, of every system."""
    found: list[tuple[str, list[Point], bool]] = []
    for system in dict.fromkeys(row["system"] for row in table["rows"]):
        rows = [row for row in table["rows"] if row["system"] == system]
        ours = [(row["evaluations"], row["figures"][label]) for row in rows if row["figures"].get(label) is not None]
        theirs = [
            (float(steps), value)
            for one in table["published"]
            if (one["system"], one["label"]) == (system, label)
            for steps, value in one["values"].items()
        ]
        found += [(system, sorted(points), dotted) for points, dotted in ((ours, False), (theirs, True)) if points]
    return found


def _place(point: Point, points: Sequence[Point]) -> Point:
    """Pixels: evaluations on a scale of powers of two, values on a linear one."""
    xs, ys = [math.log2(x) for x, _ in points], [y for _, y in points]
    x = (math.log2(point[0]) - min(xs)) / ((max(xs) - min(xs)) or 1)
    y = (point[1] - min(ys)) / ((max(ys) - min(ys)) or 1)
    return LEFT + x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM)


def _axes(points: Sequence[Point], label: str) -> list[str]:
    body = [f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}" fill="none" '
            'stroke="#999"/>', f'<text x="14" y="{TOP - 8}">{escape(label)}</text>',
            f'<text x="{LEFT}" y="{HEIGHT - 10}">calls of the network for one image</text>']  # fmt: skip
    for count in sorted({x for x, _ in points}):
        x, _ = _place((count, points[0][1]), points)
        body.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{count:g}</text>')
    low, high = min(y for _, y in points), max(y for _, y in points)
    for part in range(5):
        value = low + (high - low) * part / 4
        _, y = _place((points[0][0], value), points)
        body.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
        body.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#eee"/>')
    return body


def _line(row: Sequence[Point], points: Sequence[Point], color: str, dotted: bool) -> list[str]:
    places = [_place(point, points) for point in row]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash = ' stroke-dasharray="2 4"' if dotted else ""
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places]
    return [f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"{dash}/>', *dots]

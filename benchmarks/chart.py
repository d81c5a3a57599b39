"""Draw the bar chart of a benchmark: medians as JSON on standard input, the file to write as argument."""

from __future__ import annotations

import json
import sys

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

OURS, OTHER = "#1b7f5c", "#b0b0b0"
COLORS = {"lockbuild": OURS, "private": OURS, "shared": "#7fbfa5", "uv build": "#8b6fc0", "python -m build": "#c9a13b"}


def main() -> None:
    data: list[tuple[str, dict[str, float]]] = [
        (title, medians) for title, medians in json.load(sys.stdin) if title != "--version"
    ]
    figure, axes = plt.subplots(figsize=(8, 0.26 * sum(len(medians) + 1 for _, medians in data)))
    position, ticks = 0.0, []
    for title, medians in data:
        middle = position + (len(medians) - 1) / 2
        ticks.append((middle, title))
        for name, seconds in medians.items():
            axes.barh(position, seconds, color=COLORS.get(name, OTHER), height=0.85)
            axes.text(seconds, position, f" {name} {seconds:.2f} s", va="center", fontsize=8)
            position += 1
        position += 0.8
    axes.set_yticks([place for place, _ in ticks], [title for _, title in ticks])
    axes.invert_yaxis()
    axes.set_xlabel("seconds, median")
    axes.margins(x=0.2, y=0.01)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(sys.argv[1])


if __name__ == "__main__":
    main()

"""Draws what stands on its standard input as JSON (`report.charts`), as SVG: the same input, the same bytes.

    python charts.py FOLDER < charts.json

It runs in the peers' environment, which has matplotlib, and knows nothing of the gateway.
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.transforms import blended_transform_factory

# Blue and grey are told apart by every kind of eye; ours is the one in colour.
TONES = {"ours": "#0072b2", "kin": "#84bbdc", "other": "#a3a8ae"}
INK, QUIET, LINE = "#1f2328", "#59636e", "#d5d9de"
WIDTH, ROW, MARGIN = 7.6, 0.42, 0.95
LABELS = 0.37
"""The part of the width that the names take."""
STYLE = {
    "svg.hashsalt": "ice-gateway",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
}


def bars(axes, rows):
    for place, row in enumerate(rows):
        axes.barh(place, row["value"], height=0.62, color=TONES[row["tone"]])
        axes.plot([row["low"], row["high"]], [place, place], color=INK, linewidth=0.9, alpha=0.65)
        beside(axes, max(row["high"], row["value"]), place, row["text"], row["tone"])
    axes.set_xlim(0, 1.14 * max(row["high"] for row in rows))


def dots(axes, rows):
    axes.set_xscale("log")
    low = min(value for row in rows for value in row["values"])
    high = max(value for row in rows for value in row["values"])
    axes.set_xlim(low / 2.2, high * 2.2)
    for power in range(-2, 5):
        if low / 2.2 < 10**power < high * 2.2:
            axes.axvline(10**power, color=LINE, linewidth=0.8, zorder=0)
            across = blended_transform_factory(axes.transData, axes.transAxes)
            axes.text(
                10**power,
                0,
                f"{10**power:g} ms",
                transform=across,
                color=QUIET,
                size=8,
                ha="center",
                va="top",
            )
    for place, row in enumerate(rows):
        color = TONES[row["tone"]]
        axes.plot(row["values"], [place, place], color=color, linewidth=3, zorder=1)
        middle, worst = row["values"]
        axes.scatter([middle], [place], s=46, color="white", edgecolor=color, linewidth=2, zorder=2)
        axes.scatter([worst], [place], s=58, color=color, zorder=2)
        beside(axes, worst, place, row["texts"][1], row["tone"])
        beside(axes, middle, place, row["texts"][0], row["tone"], left=True)


def beside(axes, x, place, text, tone, *, left=False):
    axes.annotate(
        text,
        (x, place),
        xytext=(-8 if left else 8, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        weight="bold" if tone == "ours" else "normal",
    )


def draw(chart):
    rows = chart.get("bars") or chart.get("dots") or []
    height = MARGIN + ROW * max(1, len(rows))
    figure = plt.figure(figsize=(WIDTH, height), facecolor="white")
    axes = figure.add_axes((LABELS, 0.2 / height, 0.98 - LABELS, (height - MARGIN) / height))
    axes.axis("off")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    if rows:
        (bars if "bars" in chart else dots)(axes, rows)
    beside_axes = blended_transform_factory(axes.transAxes, axes.transData)
    for place, row in enumerate(rows):
        axes.text(
            -0.015,
            place,
            row["label"],
            transform=beside_axes,
            ha="right",
            va="center",
            weight="bold" if row["tone"] == "ours" else "normal",
        )
    figure.text(0.015, 1 - 0.26 / height, chart["title"], size=13, weight="bold", va="center")
    figure.text(0.015, 1 - 0.53 / height, chart["note"], size=9, color=QUIET, va="center")
    return figure


def main(folder, kind="svg"):
    for chart in json.load(sys.stdin):
        with mpl.rc_context(STYLE):
            figure = draw(chart)
            metadata = {"Date": None} if kind == "svg" else {}
            path = (Path(folder) / chart["file"]).with_suffix(f".{kind}")
            figure.savefig(path, metadata=metadata, dpi=110)
            plt.close(figure)


main(*sys.argv[1:])

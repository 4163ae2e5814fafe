"""The report of ``edgefold bench codec`` as a picture: error over bytes, accuracy over bytes."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

__all__ = ["draw"]

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

OURS = "edgefold"
DENSE = "float32"
COLUMNS = 4


def draw(report: dict[str, Any], path: Path) -> None:
    """Write a PNG: one panel for each set of deltas, then one for each scenario learned."""
    learned: dict[str, list[dict[str, Any]]] = {}
    for one in report["learning"]:
        learned.setdefault(one["scenario"], []).append(one)
    count = len(report["sets"]) + len(learned)
    if not count:
        return
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(5 * columns, 4 * rows), squeeze=False, layout="constrained"
    )
    axes = list(grid.reshape(-1))
    for axis in axes[count:]:
        axis.set_axis_off()
    for axis, (name, figures) in zip(axes, report["sets"].items(), strict=False):
        _errors(axis, name, figures)
    for axis, (name, loops) in zip(axes[len(report["sets"]) :], learned.items(), strict=False):
        _accuracies(axis, name, loops)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _errors(axis: Axes, name: str, figures: dict[str, Any]) -> None:
    for method, found in figures["methods"].items():
        points = sorted(point for point in found["curve"] if point[1] <= 1)
        axis.plot(
            [size for size, _ in points],
            [error for _, error in points],
            marker="." if len(points) > 2 else "o",
            linewidth=2.5 if method.startswith(OURS) else 1,
            label=method,
        )
    axis.set(xscale="log", ylim=(0, 1), xlabel="bytes", ylabel="NMSE", title=name)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=6)


def _accuracies(axis: Axes, name: str, loops: list[dict[str, Any]]) -> None:
    loops = sorted(loops, key=lambda one: int(one["bytes"]))
    methods = dict.fromkeys(method for one in loops for method in one["methods"])
    for method in methods:
        means = [
            (one["bytes"], sum(found) / len(found))
            for one in loops
            if (found := one["methods"].get(method, {}).get("accuracy"))
        ]
        if method == DENSE:
            axis.axhline(means[0][1], color="black", linestyle=":", label=method)
            continue
        axis.plot(
            [size for size, _ in means],
            [accuracy for _, accuracy in means],
            marker="o",
            linewidth=2.5 if method.startswith(OURS) else 1,
            label=method,
        )
    rounds = loops[0]["rounds"]
    axis.set(
        xscale="log",
        xlabel="bytes per update, at most",
        ylabel=f"accuracy after {rounds} rounds",
        title=f"{name}: learning with error feedback",
    )
    axis.grid(alpha=0.3)
    axis.legend(fontsize=6)

"""The courses of an experiment as a picture: how good over bytes, and over simulated time."""

from pathlib import Path

import matplotlib as mpl

from tools.experiments.figures import Outcome

__all__ = ["draw"]

mpl.use("Agg")
from matplotlib import pyplot as plt

FAR = 8  # times as long as the shortest course


def draw(name: str, outcome: Outcome, path: Path) -> None:
    """Write a PNG with two panels."""
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    for number, course in enumerate(outcome.courses):
        style = {"label": course.label, "color": f"C{number % 10}", "linewidth": 1.6}
        sent = [size if size > 0 else float("nan") for size in course.bytes_sent]  # log scale
        panels[0].plot(sent, course.metric, **style)
        panels[1].plot(course.seconds, course.metric, **style)
    for panel, what in zip(panels, ("bytes sent by all devices", outcome.time), strict=True):
        panel.set_xlabel(what)
        panel.set_ylabel(outcome.metric)
        panel.grid(alpha=0.3)
        if outcome.metric == "relative error":
            panel.set_yscale("log")
    panels[0].set_xscale("log")
    ends = [course.seconds[-1] for course in outcome.courses]
    if max(ends) > FAR * min(ends):  # one that waits for its slowest hides the others
        panels[1].set_xscale("log")
    panels[1].legend(fontsize=8)
    figure.suptitle(f"{name}, first seed")
    figure.savefig(path, dpi=110)
    plt.close(figure)

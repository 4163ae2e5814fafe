"""The picture that a demo leaves: accuracy over bytes and over time, fit for a slide (16:9)."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tools.local_fleet.fleet_facts import ReleaseView, kilobytes, minutes

if TYPE_CHECKING:
    from tools.demo.demo_dense import DenseRun
    from tools.demo.same_accuracy import SameAccuracy
    from tools.local_fleet.fleet_watch import Probe

__all__ = ["Course", "TroubleMark", "draw"]

INCHES, DPI = (12.8, 7.2), 200  # 2560 x 1440 pixels: twice 1280 x 720
TEXT, SMALL, TITLE = 15, 12.5, 23  # points, for a slide of this size
OURS, DENSE, QUIET = "#0072B2", "#D55E00", "#666666"
# Okabe and Ito's colors, which people who are color-blind tell apart; the dashes help them too.
COLORS = ("#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#8C510A", "#000000")
DASHES = ("-", (0, (5, 1.5)), (0, (2, 1)), (0, (6, 1.5, 1.5, 1.5)), (0, (1, 1)), (0, (8, 2)))
NAMED = 6  # devices with a color of their own; of more, those in trouble have one


class TroubleMark(NamedTuple):
    """What went wrong on purpose; ``until`` is 0 where it did not end."""

    device: str
    what: str  # "line cut", "SIGKILL"
    since: float  # Unix seconds
    until: float


class Course(NamedTuple):
    """Everything that the picture shows."""

    title: str  # net, data and fleet, in a few words
    began: float  # Unix seconds
    releases: tuple[ReleaseView, ...]
    probes: tuple["Probe", ...]
    troubles: tuple[TroubleMark, ...]
    dense: "DenseRun | None"
    same: "SameAccuracy | None"


def draw(course: Course, path: Path) -> list[Path]:
    """Draw ``course`` into ``path`` and beside it as SVG; return both files."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    style = {
        "font.size": TEXT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.fonttype": "none",  # text stays text
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    with mpl.rc_context(style):
        figure = pyplot.figure(figsize=INCHES, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12)
        grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.25), height_ratios=(1, 7))
        _over_bytes(figure.add_subplot(grid[:, 0]), course)
        over_time = figure.add_subplot(grid[1, 1])
        _over_time(over_time, course)
        _strip(figure.add_subplot(grid[0, 1], sharex=over_time), course)
        figure.suptitle(_message(course), fontsize=TITLE, fontweight="bold", x=0.01, ha="left")
        figure.supxlabel(_how(course), fontsize=SMALL, color=QUIET, x=0.01, ha="left")
        for file in files:
            figure.savefig(file, dpi=DPI)
        pyplot.close(figure)
    return files


def _message(course: Course) -> str:
    if course.same is not None:
        return f"{course.same.factor:.0f} times fewer bytes for the same accuracy"
    return course.title


def _how(course: Course) -> str:
    words = [course.title if course.same is not None else ""]
    if course.dense is not None:
        words.append("both curves measured: the fleet over MQTT; the same updates trained again")
        words.append("and sent as dense float32")
    text = " · ".join(filter(None, words[:2]))
    return " ".join([text, *words[2:]])


def _over_bytes(axes: Any, course: Course) -> None:
    known = [release for release in course.releases if release.accuracy is not None]
    curves = [(_sums([r.payload_bytes for r in known]), [r.accuracy for r in known], OURS, "o-")]
    if course.dense is not None:
        releases = course.dense.releases
        curves.append(
            (_sums([r.bytes_up for r in releases]), [r.accuracy for r in releases], DENSE, "s--")
        )
    for (sizes, accuracies, color, form), name in zip(
        curves, ("edgefold", "dense float32"), strict=False
    ):
        points = [(size, 100 * (a or 0.0)) for size, a in zip(sizes, accuracies, strict=True)]
        points = [point for point in points if point[0]]  # release 1 cost no update
        if not points:
            continue
        axes.plot(*zip(*points, strict=True), form, color=color, linewidth=2.6, markersize=6)
        axes.annotate(
            f"{name}\n{kilobytes(points[-1][0])}",
            points[0],
            xytext=(0, -10),
            textcoords="offset points",
            ha="center",
            va="top",
            color=color,
            fontweight="bold",
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 103)
    low, high = axes.get_xlim()
    axes.set_xlim(low / 2.2, high * 1.3)
    axes.xaxis.set_major_formatter(lambda value, _: kilobytes(value).replace(".0", ""))
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xlabel("sent by all devices, log scale")
    axes.set_ylabel("accuracy on held-out data, %")
    axes.grid(alpha=0.25)
    if course.same is not None:
        _arrow(axes, course.same)


def _arrow(axes: Any, same: "SameAccuracy") -> None:
    y = 100 * same.accuracy
    axes.annotate(
        "",
        (same.bytes_up, y),
        xytext=(same.bytes_up_dense_float32, y),
        arrowprops={"arrowstyle": "<->", "color": "black", "linewidth": 1.8},
    )
    axes.annotate(
        f"{same.factor:.0f} times\nfewer bytes\nfor {y:.0f} %",
        ((same.bytes_up * same.bytes_up_dense_float32) ** 0.5, y),
        xytext=(0, -8),
        textcoords="offset points",
        ha="center",
        va="top",
    )


def _over_time(axes: Any, course: Course) -> None:
    known = [release for release in course.releases if release.accuracy is not None]
    times = [release.created - course.began for release in known]
    end = 1.04 * max([*times, *(probe.at - course.began for probe in course.probes), 1.0])
    styles = _styles(course)
    labels: list[tuple[float, str, str, str]] = []
    for device in dict.fromkeys(probe.device for probe in course.probes):
        color, dash = styles.get(device, ("#B0B0B0", "-"))
        points = [
            (probe.at - course.began, 100 * probe.accuracy)
            for probe in course.probes
            if probe.device == device and probe.accuracy is not None
        ]
        if not points:
            continue  # nothing was held out to measure it with
        points.append((end, points[-1][1]))
        form = {"color": color, "linestyle": dash, "linewidth": 1.6, "drawstyle": "steps-post"}
        axes.plot(*zip(*points, strict=True), **form)  # of one release until it has the next
        if device in styles:
            labels.append((points[-1][1], device, color, "normal"))
    if known:
        values = [100 * (release.accuracy or 0.0) for release in known]
        axes.plot(times, values, "o-", color=OURS, linewidth=3.4, markersize=7, zorder=5)
        labels.append((values[-1], "release", OURS, "bold"))
    legend = ["thick: each release on held-out data", "thin: each device on its own"]
    if course.dense is not None and course.dense.complete:
        y = 100 * course.dense.releases[-1].accuracy
        axes.axhline(y, color=DENSE, linestyle=(0, (4, 3)), linewidth=1.6, zorder=1)
        legend.append(f"target: dense float32, same updates, {y:.0f} %")
    for row, words in enumerate(reversed(legend)):
        color = DENSE if words.startswith("target") else "black"
        axes.text(
            0.985,
            0.03 + 0.055 * row,
            words,
            transform=axes.transAxes,
            ha="right",
            color=color,
            fontsize=SMALL,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.8},
        )
    _shade(axes, course, end)
    axes.set_ylim(0, 103)
    axes.set_xlim(0, end)
    for y, name, color, weight in _spread(labels):
        axes.annotate(
            name,
            (1.01, y),
            xycoords=("axes fraction", "data"),
            va="center",
            color=color,
            fontsize=SMALL,
            fontweight=weight,
            annotation_clip=False,
        )
    axes.xaxis.set_major_formatter(lambda value, _: minutes(value))
    axes.set_xlabel("time, minutes:seconds")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.25)


def _strip(axes: Any, course: Course) -> None:
    """Say above the times what was done to whom."""
    axes.axis("off")
    axes.set_ylim(-0.5, max(1, len(course.troubles)) - 0.5)
    styles = _styles(course)
    end = axes.get_xlim()[1]
    for row, trouble in enumerate(reversed(course.troubles)):
        since = trouble.since - course.began
        until = (trouble.until or course.began + end) - course.began
        color = styles[trouble.device][0]
        axes.plot([since, until], [row, row], color=color, linewidth=9, solid_capstyle="butt")
        if trouble.what == "SIGKILL":
            axes.plot([since], [row], "X", color="black", markersize=10)
        to_the_right = until < 0.55 * end
        axes.annotate(
            f"{trouble.device}: {trouble.what}",
            (until if to_the_right else since, row),
            xytext=(9 if to_the_right else -9, 0),
            textcoords="offset points",
            ha="left" if to_the_right else "right",
            va="center",
            color=color,
            fontsize=SMALL,
            fontweight="bold",
        )


def _shade(axes: Any, course: Course, end: float) -> None:
    styles = _styles(course)
    for trouble in course.troubles:
        since = trouble.since - course.began
        until = trouble.until - course.began if trouble.until else end
        color = styles[trouble.device][0]
        axes.axvspan(since, until, color=color, alpha=0.16, linewidth=0)
        axes.axvline(since, color=color, linewidth=1.6, linestyle=":")


def _styles(course: Course) -> dict[str, tuple[str, Any]]:
    """Return color and dashes of the devices that are named in the picture."""
    devices = list(dict.fromkeys(probe.device for probe in course.probes))
    troubled = list(dict.fromkeys(trouble.device for trouble in course.troubles))
    named = sorted({*devices, *troubled}, key=[*devices, *troubled].index)
    if len(named) > NAMED:
        named = troubled
    return {
        device: (COLORS[n % len(COLORS)], DASHES[n % len(DASHES)]) for n, device in enumerate(named)
    }


def _spread(labels: list[tuple[float, str, str, str]]) -> list[tuple[float, str, str, str]]:
    """Move labels apart that would lie on each other; from the highest down."""
    least = 5.0  # percent of accuracy: the height of a line
    placed: list[tuple[float, str, str, str]] = []
    at = 101.0 + least
    for y, *rest in sorted(labels, reverse=True):
        at = min(at - least, y)
        placed.append((at, rest[0], rest[1], rest[2]))
    return placed


def _sums(sizes: Sequence[int]) -> list[int]:
    return list(accumulate(sizes))

"""The pictures of a comparison."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from flwr_splitfc.compare.report.curves import Curve
from flwr_splitfc.compare.runs import budget_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours for all kinds of colour vision, without yellow and black,
# which vanish on a white or a
# dark page; a grey takes black's place.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#888888")
_MARKERS = ("o", "s", "^", "D", "v", "*", "X", "<", "p", ">")
_LINES = ("-", (0, (5, 1.5)), (0, (1, 1)))
_INK = "#010203"
"""Stands for the page's text colour until the SVG is made."""

_THEMES = "svg{color:#1a1a1a} @media (prefers-color-scheme: dark){svg{color:#e4e4e4}}"

_DECADES = 30.0
_PANEL_INCHES = (3.8, 3.6)
_ONE_PANEL_INCHES = (7.0, 4.4)
_MOST_COLUMNS = 3
_MOST_MARKERS = 8
_AGAINST = {
    "accuracy-vs-bytes": "megabytes",
    "accuracy-vs-time": "link_s",
    "accuracy-vs-round": "rounds",
}
FIGURES = (*_AGAINST, "final-accuracy-vs-bytes")
_MEGABYTES = "MB moved, both directions"
_X_LABELS = {
    "megabytes": _MEGABYTES,
    "link_s": "s on the simulated link, computing not counted",
    "rounds": "round",
}


@dataclass(frozen=True)
class Picture:
    """A figure in two formats: a PNG on white, and an SVG without background for light pages and dark ones."""

    png: bytes
    svg: str


def pictures(curves: Sequence[Curve]) -> dict[str, Picture]:
    """The figures by name; none where no run was evaluated, none over times where no run's are known."""
    drawings: dict[str, Callable[[], Figure]] = {
        name: partial(_draw_curves, curves, against)
        for name, against in _AGAINST.items()
        if any(getattr(curve, against) for curve in curves)
    }
    if curves:
        drawings["final-accuracy-vs-bytes"] = partial(_draw_ends, curves)
    return {name: _picture(name, draw) for name, draw in drawings.items()}


def _picture(name: str, draw: Callable[[], "Figure"]) -> Picture:
    import matplotlib

    ink = (
        "text.color",
        "axes.edgecolor",
        "axes.labelcolor",
        "xtick.color",
        "ytick.color",
    )
    style: Any = dict.fromkeys(ink, _INK) | {
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 10,
        "font.size": 9,
        "grid.alpha": 0.3,
        "grid.color": "#888888",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "svg.fonttype": "none",
        # the same picture is the same file, and two on one page share no ids
        "svg.hashsalt": name,
    }
    with matplotlib.rc_context(style):
        figure = draw()
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(
            png, format="png", dpi=160, facecolor="white", bbox_inches="tight"
        )
        nameless = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(
            svg, format="svg", transparent=True, bbox_inches="tight", metadata=nameless
        )
    themed = (
        svg.getvalue()
        .replace(_INK, "currentColor")
        .replace("</style>", f" {_THEMES}</style>", 1)
    )
    return Picture(png.getvalue(), themed)


def _draw_curves(curves: Sequence[Curve], against: str) -> "Figure":
    looks = looks_of(curves)
    curves = [curve for curve in curves if getattr(curve, against)]
    shown = _by_panel(curves)
    figure, panels = _panels(len(shown))
    for panel, (title, own) in zip(panels, shown.items(), strict=True):
        panel.set_title(title)
        for curve in own:
            _draw_curve(panel, curve, getattr(curve, against), looks[curve.method])
    if against != "rounds":
        _scale(panels, [x for curve in curves for x in getattr(curve, against)])
    _finish(figure, panels, curves, looks, _X_LABELS[against])
    return figure


def _by_panel(curves: Sequence[Curve]) -> dict[str, Sequence[Curve]]:
    """The panels' titles and curves: one per budget, with methods that have none, if any method has two budgets."""
    budgets = sorted({curve.budget for curve in curves if curve.budget})
    titles = {
        f"{budget_text(budget)} bits per entry up/down": budget for budget in budgets
    }
    if len(curves) > len({curve.method for curve in curves}):
        return {
            title: [c for c in curves if c.budget in (None, budget)]
            for title, budget in titles.items()
        }
    return {next(iter(titles)) if len(titles) == 1 else "": curves}


def _draw_curve(
    panel: "Axes", curve: Curve, x: Sequence[float], look: dict[str, Any]
) -> None:
    marked = list(range(len(x)))[:: -max(1, len(x) // _MOST_MARKERS)]
    panel.plot(x, curve.accuracy, markevery=marked, **look)
    if any(curve.spread):
        low, high = (
            [a + sign * s for a, s in zip(curve.accuracy, curve.spread, strict=True)]
            for sign in (-1, 1)
        )
        panel.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)


def _draw_ends(curves: Sequence[Curve]) -> "Figure":
    """Where each run ended: a line per method through its budgets."""
    figure, panels = _panels(1)
    looks = looks_of(curves)
    for method, look in looks.items():
        ends = sorted(
            (c.megabytes[-1], c.accuracy[-1], c.spread[-1])
            for c in curves
            if c.method == method
        )
        x, y, spread = (list(values) for values in zip(*ends, strict=True))
        panels[0].errorbar(
            x,
            y,
            yerr=spread if any(spread) else None,
            capsize=2,
            elinewidth=0.8,
            **look,
        )
    _scale(panels, [curve.megabytes[-1] for curve in curves])
    _finish(
        figure,
        panels,
        curves,
        looks,
        f"{_MEGABYTES}, in the whole run",
        y_label="final accuracy, %",
    )
    return figure


def _panels(count: int) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    columns = min(count, _MOST_COLUMNS)
    lines = -(-count // columns)
    width, height = _PANEL_INCHES if count > 1 else _ONE_PANEL_INCHES
    figure = Figure(figsize=(columns * width, lines * height), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def looks_of(curves: Sequence[Curve]) -> dict[str, dict[str, Any]]:
    """A colour, marker and line for each method; any two differ in at least two of them."""
    methods = dict.fromkeys(curve.method for curve in curves)
    return {
        method: {
            "color": _COLOURS[number % len(_COLOURS)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "linestyle": _LINES[number // len(_COLOURS) % len(_LINES)],
            "markersize": 4.5,
            "linewidth": 1.4,
        }
        for number, method in enumerate(methods)
    }


def _scale(panels: Sequence["Axes"], values: Sequence[float]) -> None:
    """Logarithmic where the values span decades, with plain numbers at the ticks."""
    if not 0 < _DECADES * min(values) <= max(values):
        return
    for panel in panels:
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        panel.xaxis.set_minor_formatter(lambda x, _: "")


def _finish(
    figure: "Figure",
    panels: Sequence["Axes"],
    curves: Sequence[Curve],
    looks: dict[str, dict[str, Any]],
    x_label: str,
    y_label: str = "accuracy, %",
) -> None:
    """Name the axes, and the methods beside the panels, best one first."""
    from matplotlib.lines import Line2D

    figure.supxlabel(x_label, fontsize=9)
    figure.supylabel(y_label, fontsize=9)
    best: dict[str, float] = {}
    for curve in curves:
        best[curve.method] = max(best.get(curve.method, 0.0), curve.accuracy[-1])
    order = sorted(best, key=lambda method: -best[method])
    handles = [Line2D([], [], label=method, **looks[method]) for method in order]
    figure.legend(handles=handles, loc="outside right upper", handlelength=3.2)

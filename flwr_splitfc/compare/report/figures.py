"""The figures of a comparison."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import ceil
from operator import attrgetter
from typing import TYPE_CHECKING

from flwr_splitfc.compare.report.curves import Curve
from flwr_splitfc.compare.report.looks import Look, Looks, Picture, looks_of, picture_of
from flwr_splitfc.compare.runs import budget_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DECADES = 30.0
_PANEL_INCHES = (3.8, 3.6)
_ONE_PANEL_INCHES = (7.0, 4.4)
_MOST_COLUMNS = 3
_MOST_MARKERS = 8
_MEGABYTES = "MB moved, both directions"
_ENDS = "final-accuracy-vs-bytes"


@dataclass(frozen=True)
class Against:
    """What a figure draws the accuracy against.

    Parameters
    ----------
    name : str
        The figure's, and its files'.
    heading : str
    x_of : callable
        Gets from a curve its values along the axis; none where they are not known.
    x_label : str
    logarithmic : bool
        Whether the axis may be.
    """

    name: str
    heading: str
    x_of: Callable[[Curve], Sequence[float]]
    x_label: str
    logarithmic: bool = True


_AGAINST = [
    Against(
        "accuracy-vs-bytes",
        "Accuracy against bytes",
        attrgetter("megabytes"),
        _MEGABYTES,
    ),
    Against(
        "accuracy-vs-time",
        "Accuracy against time on the link",
        attrgetter("link_s"),
        "s on the simulated link, computing not counted",
    ),
    Against(
        "accuracy-vs-round",
        "Accuracy against rounds",
        attrgetter("rounds"),
        "round",
        logarithmic=False,
    ),
]


def pictures(curves: Sequence[Curve]) -> dict[str, Picture]:
    """Draw the figures, by name.

    There are none where no run was evaluated, and none over times where no run's are
    known.
    """
    drawn = {}
    for against in _AGAINST:
        own = [curve for curve in curves if against.x_of(curve)]
        if own:
            # A method looks the same in all figures, also where curves are missing.
            draw = partial(_draw_curves, own, against, _looks(curves))
            drawn[against.name] = picture_of(against.name, against.heading, draw)
    if curves:
        draw = partial(_draw_ends, curves, _looks(curves))
        drawn[_ENDS] = picture_of(_ENDS, "Final accuracy against bytes", draw)
    return drawn


def _looks(curves: Sequence[Curve]) -> Looks:
    return looks_of(curve.method for curve in curves)


def _draw_curves(curves: Sequence[Curve], against: Against, looks: Looks) -> "Figure":
    curves_by_title = _by_panel(curves)
    figure, panels = _panels(len(curves_by_title))
    for panel, title in zip(panels, curves_by_title, strict=True):
        panel.set_title(title)
        for curve in curves_by_title[title]:
            _draw_curve(panel, curve, against.x_of(curve), looks[curve.method])
    if against.logarithmic:
        values = chain.from_iterable(against.x_of(curve) for curve in curves)
        _scale(panels, list(values))
    _label(figure, against.x_label, "accuracy, %")
    _add_legend(figure, curves, looks)
    return figure


def _by_panel(curves: Sequence[Curve]) -> dict[str, Sequence[Curve]]:
    """Return the panels' titles and curves.

    If any method has two budgets there is a panel for each budget, with the methods
    that have none in all of them; otherwise there is one panel.
    """
    budgets = sorted({curve.budget for curve in curves if curve.budget})
    title_of = {
        budget: f"{budget_text(budget)} bits per entry up/down" for budget in budgets
    }
    methods = {curve.method for curve in curves}
    if len(curves) == len(methods):
        title = title_of[budgets[0]] if len(budgets) == 1 else ""
        return {title: curves}
    return {
        title: [curve for curve in curves if curve.budget in (None, budget)]
        for budget, title in title_of.items()
    }


def _draw_curve(panel: "Axes", curve: Curve, x: Sequence[float], look: Look) -> None:
    # Counted from the end, so that the last round has a marker.
    last = len(x) - 1
    step = max(1, len(x) // _MOST_MARKERS)
    marked = list(range(last, -1, -step))
    panel.plot(x, curve.accuracy, markevery=marked, **look)
    if any(curve.spread):
        _shade_spread(panel, curve, x, look["color"])


def _shade_spread(panel: "Axes", curve: Curve, x: Sequence[float], color: str) -> None:
    low: list[float] = []
    high: list[float] = []
    for accuracy, spread in zip(curve.accuracy, curve.spread, strict=True):
        low.append(accuracy - spread)
        high.append(accuracy + spread)
    panel.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


def _draw_ends(curves: Sequence[Curve], looks: Looks) -> "Figure":
    """Draw where each run ended: a line per method through its budgets."""
    figure, [panel] = _panels(1)
    for method, look in looks.items():
        own = [curve for curve in curves if curve.method == method]
        _draw_ends_of(panel, own, look)
    _scale([panel], [curve.megabytes[-1] for curve in curves])
    _label(figure, f"{_MEGABYTES}, in the whole run", "final accuracy, %")
    _add_legend(figure, curves, looks)
    return figure


def _draw_ends_of(panel: "Axes", curves: Sequence[Curve], look: Look) -> None:
    ordered = sorted(curves, key=_end)
    spread = [curve.spread[-1] for curve in ordered]
    panel.errorbar(
        [curve.megabytes[-1] for curve in ordered],
        [curve.accuracy[-1] for curve in ordered],
        yerr=spread if any(spread) else None,
        capsize=2,
        elinewidth=0.8,
        **look,
    )


def _end(curve: Curve) -> tuple[float, float]:
    return curve.megabytes[-1], curve.accuracy[-1]


def _panels(count: int) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    columns = min(count, _MOST_COLUMNS)
    lines = ceil(count / columns)
    width, height = _PANEL_INCHES if count > 1 else _ONE_PANEL_INCHES
    figure = Figure(figsize=(columns * width, lines * height), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def _scale(panels: Sequence["Axes"], values: Sequence[float]) -> None:
    """Make the axis logarithmic where the values span decades, with plain numbers."""
    smallest = min(values)
    if smallest <= 0 or max(values) < _DECADES * smallest:
        return
    for panel in panels:
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(_plain_number)
        panel.xaxis.set_minor_formatter(_no_number)


def _plain_number(x: float, position: float) -> str:
    return f"{x:g}"


def _no_number(x: float, position: float) -> str:
    return ""


def _label(figure: "Figure", x_label: str, y_label: str) -> None:
    figure.supxlabel(x_label, fontsize=9)
    figure.supylabel(y_label, fontsize=9)


def _add_legend(figure: "Figure", curves: Sequence[Curve], looks: Looks) -> None:
    """Name the methods beside the panels, the best one first."""
    from matplotlib.lines import Line2D

    best: dict[str, float] = {}
    for curve in curves:
        so_far = best.get(curve.method, 0.0)
        best[curve.method] = max(so_far, curve.accuracy[-1])
    order = sorted(best, key=lambda method: -best[method])
    handles = [Line2D([], [], label=method, **looks[method]) for method in order]
    figure.legend(handles=handles, loc="outside right upper", handlelength=3.2)

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
from flwr_splitfc.compare.runs import budget_text, method_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DECADES = 30.0
_PANEL_INCHES = (3.8, 3.6)
_ONE_PANEL_INCHES = (7.0, 4.4)
_MOST_COLUMNS = 3
_MOST_MARKERS = 8
_MOST_NAMES = 2
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


def pictures(
    curves: Sequence[Curve], target: float | None = None
) -> dict[str, Picture]:
    """Draw the figures, by name.

    There are none where no run was evaluated, and none over times where no run's are
    known. A line is at the accuracy `target`.
    """
    drawn = {}
    for against in _AGAINST:
        own = [curve for curve in curves if against.x_of(curve)]
        if own:
            # A method looks the same in all figures, also where curves are missing.
            draw = partial(_draw_curves, own, against, _looks(curves), target)
            drawn[against.name] = picture_of(against.name, against.heading, draw)
    if curves:
        draw = partial(_draw_ends, curves, _looks(curves), target)
        drawn[_ENDS] = picture_of(_ENDS, "Final accuracy against bytes", draw)
    return drawn


def _looks(curves: Sequence[Curve]) -> Looks:
    return looks_of(curve.method for curve in curves)


def _draw_curves(
    curves: Sequence[Curve], against: Against, looks: Looks, target: float | None
) -> "Figure":
    curves_by_title = _by_panel(curves)
    figure, panels = _panels(len(curves_by_title))
    for panel, title in zip(panels, curves_by_title, strict=True):
        panel.set_title(title)
        for curve in curves_by_title[title]:
            _draw_curve(panel, curve, against.x_of(curve), looks[curve.method])
    _draw_target(panels, target)
    x_label = against.x_label
    if against.logarithmic:
        values = chain.from_iterable(against.x_of(curve) for curve in curves)
        _scale(panels, list(values))
    else:
        x_label += _rounds_are(curves)
    _label(figure, _verbatim(x_label), "accuracy, %")
    _add_legend(figure, curves, looks)
    return figure


def _by_panel(curves: Sequence[Curve]) -> dict[str, Sequence[Curve]]:
    """Return the panels' titles and curves.

    If any method has two budgets there is a panel for each budget, with the methods
    that have none in all of them; otherwise there is one panel.
    """
    methods = {curve.method for curve in curves}
    if len(curves) == len(methods):
        # a title would name the budget over methods that have none; the legend does
        return {"": curves}
    budgets = sorted({curve.budget for curve in curves if curve.budget})
    title_of = {
        budget: f"{budget_text(budget)} bits per entry up/down" for budget in budgets
    }
    return {
        title: [curve for curve in curves if curve.budget in (None, budget)]
        for budget, title in title_of.items()
    }


def _rounds_are(curves: Sequence[Curve]) -> str:
    """Say how many devices train in a round, where methods differ in that."""
    methods_of: dict[int, list[str]] = {}
    for curve in curves:
        methods_of.setdefault(curve.devices, []).append(curve.method)
    if len(methods_of) == 1:
        return ""
    usual = max(methods_of, key=lambda devices: len(methods_of[devices]))
    texts = [_devices_text(usual)]
    for devices in sorted(methods_of.keys() - {usual}):
        methods = list(dict.fromkeys(methods_of[devices]))
        names = ", ".join(methods[:_MOST_NAMES])
        more = " ..." if len(methods) > _MOST_NAMES else ""
        texts.append(f"of {names}{more}: {_devices_text(devices)}")
    return f", in which {'; '.join(texts)}"


def _devices_text(devices: int) -> str:
    return "one device trains" if devices == 1 else f"up to {devices} devices train"


def _draw_target(panels: Sequence["Axes"], target: float | None) -> None:
    if target is None:
        return
    for panel in panels:
        percent = 100 * target
        panel.axhline(percent, color="#888888", linestyle=(0, (2, 2)), linewidth=1)
        panel.annotate(
            f"target {percent:g}",
            (0.01, percent),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            fontsize=8,
        )


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


def _draw_ends(curves: Sequence[Curve], looks: Looks, target: float | None) -> "Figure":
    """Draw where each run ended: a line per method through its budgets."""
    figure, [panel] = _panels(1)
    for method, look in looks.items():
        own = [curve for curve in curves if curve.method == method]
        _draw_ends_of(panel, own, look)
    _draw_target([panel], target)
    # as in the figure over bytes, which these are the ends of
    values = chain.from_iterable(curve.megabytes for curve in curves)
    _scale([panel], list(values))
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
    from matplotlib.ticker import LogLocator

    for panel in panels:
        panel.set_xscale("log")
        low, high = panel.get_xlim()
        panel.xaxis.set_major_locator(LogLocator(subs=_marks(high / low)))
        panel.xaxis.set_major_formatter(_plain_number)
        panel.xaxis.set_minor_formatter(_no_number)


def _marks(span: float) -> tuple[float, ...]:
    """Return the digits that ticks have, so that an axis has three or more of them."""
    if span < 100:
        return 1.0, 2.0, 5.0
    if span < 1000:
        return 1.0, 3.0
    return (1.0,)


def _plain_number(x: float, position: float) -> str:
    return f"{x:g}"


def _no_number(x: float, position: float) -> str:
    return ""


def _label(figure: "Figure", x_label: str, y_label: str) -> None:
    if len(figure.axes) == 1:
        # the middle of the figure is not that of the panel, with a legend beside it
        figure.axes[0].set_xlabel(x_label)
        figure.axes[0].set_ylabel(y_label)
    else:
        figure.supxlabel(x_label, fontsize=9)
        figure.supylabel(y_label, fontsize=9)


def _verbatim(text: str) -> str:
    """Return text that matplotlib shows as it is: names of methods are no formulas."""
    return text.replace("$", r"\$")


def _add_legend(figure: "Figure", curves: Sequence[Curve], looks: Looks) -> None:
    """Name the methods beside the panels, the best one first."""
    from matplotlib.lines import Line2D

    best: dict[str, float] = {}
    label_of: dict[str, str] = {}
    for curve in curves:
        so_far = best.get(curve.method, 0.0)
        best[curve.method] = max(so_far, curve.accuracy[-1])
        # a method with several budgets has a panel for each
        several = curve.method in label_of
        label = method_label(curve.method, curve.budget)
        label_of[curve.method] = curve.method if several else label
    order = sorted(best, key=lambda method: -best[method])
    handles = [
        Line2D([], [], label=_verbatim(label_of[method]), **looks[method])
        for method in order
    ]
    figure.legend(handles=handles, loc="outside right upper", handlelength=3.2)

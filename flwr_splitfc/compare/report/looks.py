"""How the figures of a comparison look: colours, markers, and their two formats."""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Look: TypeAlias = dict[str, Any]
"""How a method is drawn, as arguments of matplotlib's ``plot``."""

Looks: TypeAlias = dict[str, Look]
"""The look of each method."""

# Okabe and Ito's colours for all kinds of colour vision, without yellow and black,
# which vanish on a white or a dark page; a grey takes black's place.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#888888")
_MARKERS = ("o", "s", "^", "D", "v", "*", "X", "<", "p", ">")
_LINES = ("-", (0, (5, 1.5)), (0, (1, 1)))

# Stands for the page's text colour until the SVG is made.
_INK = "#010203"
_THEMES = "svg{color:#1a1a1a} @media (prefers-color-scheme: dark){svg{color:#e4e4e4}}"
_STYLE = {
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
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
}
# Without these, matplotlib writes the date and its own name into the file.
_NAMELESS = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclass(frozen=True)
class Picture:
    """A figure in two formats.

    Parameters
    ----------
    heading : str
        What it shows.
    png : bytes
        On white.
    svg : str
        Without background, for light pages and dark ones.
    """

    heading: str
    png: bytes
    svg: str


def picture_of(name: str, heading: str, draw: Callable[[], "Figure"]) -> Picture:
    """Draw a figure in this style; the same figure makes the same files.

    Parameters
    ----------
    name : str
        Makes the ids in the SVG others than those of figures on the same page.
    heading : str
    draw : callable
        Makes the figure.
    """
    import matplotlib

    style: Any = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = draw()
        png = io.BytesIO()
        figure.savefig(
            png, format="png", dpi=160, facecolor="white", bbox_inches="tight"
        )
        svg = io.StringIO()
        figure.savefig(
            svg, format="svg", transparent=True, bbox_inches="tight", metadata=_NAMELESS
        )
    return Picture(heading, png.getvalue(), _themed(svg.getvalue()))


def _themed(svg: str) -> str:
    """Let the SVG's ink follow the page's colour scheme."""
    svg = svg.replace(_INK, "currentColor")
    return svg.replace("</style>", f" {_THEMES}</style>", 1)


def looks_of(methods: Iterable[str]) -> Looks:
    """Return a colour, marker and line for each method.

    Any two methods differ in at least two of them.
    """
    looks: Looks = {}
    for number, method in enumerate(dict.fromkeys(methods)):
        looks[method] = {
            "color": _COLOURS[number % len(_COLOURS)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "linestyle": _LINES[number // len(_COLOURS) % len(_LINES)],
            "markersize": 4.5,
            "linewidth": 1.4,
        }
    return looks

"""Draw docs/overview.svg: a mini-batch of split learning, coded at the cut.

    python docs/figures/overview.py

The SVG's colours follow the reader's scheme, light or dark.
"""

from dataclasses import dataclass
from html import escape
from pathlib import Path

OUT = Path(__file__).parents[1] / "overview.svg"
WIDTH, HEIGHT = 960, 424

_STYLE = """
text { font: 15px system-ui, 'Segoe UI', Arial, sans-serif; fill: #1f2328; }
.paper { fill: #ffffff; }
.title { font-size: 17px; font-weight: 600; }
.small { font-size: 13px; fill: #57606a; }
.side { fill: #f6f8fa; stroke: #d0d7de; }
.layer { fill: #ffffff; stroke: #57606a; }
.up { stroke: #0072b2; fill: none; stroke-width: 3; }
.down { stroke: #c2570c; fill: none; stroke-width: 3; }
.inside { stroke: #57606a; fill: none; stroke-width: 1.5; }
.up-text { fill: #0072b2; font-weight: 600; }
.down-text { fill: #c2570c; font-weight: 600; }
.up-head { fill: #0072b2; }
.down-head { fill: #c2570c; }
.inside-head { fill: #57606a; }
@media (prefers-color-scheme: dark) {
  .paper { fill: #0d1117; } text { fill: #e6edf3; } .small { fill: #9da7b1; }
  .side { fill: #161b22; stroke: #3d444d; } .layer { fill: #0d1117; stroke: #9da7b1; }
  .inside { stroke: #9da7b1; } .inside-head { fill: #9da7b1; }
  .up { stroke: #58a6e0; } .up-text, .up-head { fill: #58a6e0; }
  .down { stroke: #f0883e; } .down-text, .down-head { fill: #f0883e; }
}
"""


@dataclass(frozen=True)
class Box:
    """A rectangle with lines of text in its middle."""

    x: int
    y: int
    width: int
    height: int
    lines: tuple[str, ...]

    def svg(self) -> str:
        """The SVG elements."""
        box = (
            f'<rect class="layer" x="{self.x}" y="{self.y}" width="{self.width}" '
            f'height="{self.height}" rx="6"/>'
        )
        middle = self.x + self.width // 2
        first = self.y + self.height // 2 + 5 - 10 * (len(self.lines) - 1)
        texts = []
        for number, line in enumerate(self.lines):
            kind = "" if number == 0 else "small"
            texts.append(text(middle, first + 20 * number, line, kind))
        return box + "".join(texts)


# A background of its own: pages and SVG do not always agree on the scheme.
_PAPER = f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>'


def text(x: int, y: int, content: str, kind: str = "", anchor: str = "middle") -> str:
    """A line of text."""
    return (
        f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">'
        f"{escape(content)}</text>"
    )


def arrow(points: str, kind: str) -> str:
    """A line with a head at its end."""
    return (
        f'<polyline class="{kind}" points="{points}" marker-end="url(#{kind}-head)"/>'
    )


def head(kind: str, size: int) -> str:
    """The head of a kind of arrow, to be defined once."""
    return (
        f'<marker id="{kind}-head" viewBox="0 0 10 10" refX="8" refY="5" '
        f'markerWidth="{size}" markerHeight="{size}" markerUnits="userSpaceOnUse" '
        f'orient="auto"><path class="{kind}-head" d="M0,0 L10,5 L0,10 z"/></marker>'
    )


def side(x: int, width: int, title: str, about: str) -> str:
    """A device's or the server's background, with its name."""
    return (
        f'<rect class="side" x="{x}" y="10" width="{width}" height="330" rx="10"/>'
        + text(x + width // 2, 40, title, "title")
        + text(x + width // 2, 60, about, "small")
    )


def drawing() -> str:
    """The whole figure."""
    boxes = [
        Box(30, 85, 210, 56, ("device half", "the first layers")),
        Box(30, 185, 210, 56, ("its optimizer", "trains the device half")),
        Box(720, 85, 210, 56, ("server half", "the other layers")),
        Box(
            720, 185, 210, 56, ("loss, and its optimizer", "trained inside server.loss")
        ),
    ]
    parts = [
        head("up", 13),
        head("down", 13),
        head("inside", 9),
        side(10, 250, "device", "data stay here"),
        side(700, 250, "server", "one half for all devices, or copies"),
        *(box.svg() for box in boxes),
        text(135, 270, "images, text, tables, ...", "small"),
        arrow("240,113 718,113", "up"),
        arrow("720,213 242,213", "down"),
        text(480, 100, "features and labels", "up-text"),
        text(
            480,
            134,
            "coded as precisely as training needs, or within a budget",
            "small",
        ),
        text(480, 200, "gradient of the features", "down-text"),
        text(480, 234, "coded likewise", "small"),
        text(480, 300, "one gRPC stream per device and turn, with a ticket", "small"),
        text(480, 320, "that came in Flower's own message", "small"),
        arrow("825,141 825,183", "inside"),
        arrow("135,185 135,143", "inside"),
        text(
            480,
            372,
            "By default a transform codec: 10 to 44 times fewer bytes than float32 "
            "at the cut,",
            "title",
        ),
        text(
            480,
            392,
            "at no more than a point of accuracy in six short trainings",
            "small",
        ),
        text(
            480,
            412,
            "Within a budget the paper's codec, SplitFC: "
            "drop columns that vary little, quantise the rest",
            "small",
        ),
    ]
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" aria-labelledby="t">\n'
        '<title id="t">Split learning: features go up, their gradient comes down, '
        f"both compressed</title>\n<style>{_STYLE}</style>\n"
        f"{_PAPER}\n{body}\n</svg>\n"
    )


if __name__ == "__main__":
    OUT.write_text(drawing())

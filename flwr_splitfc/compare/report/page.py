"""The page of a comparison: figures and tables in one file that needs nothing else."""

import re
from collections.abc import Mapping, Sequence
from html import escape

from flwr_splitfc.compare.report.figures import Picture
from flwr_splitfc.compare.report.table import (
    KINDS,
    Row,
    cell,
    sort_key,
    summary_columns,
)

_HEADINGS = {
    "accuracy-vs-bytes": "Accuracy against bytes",
    "accuracy-vs-time": "Accuracy against time on the link",
    "accuracy-vs-round": "Accuracy against rounds",
    "final-accuracy-vs-bytes": "Final accuracy against bytes",
}

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #ffffff; --line: #d8d8d8; --shade: #f4f4f4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e4e4; --paper: #161616; --line: #3c3c3c; --shade: #232323; } }
body { margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: var(--ink); background: var(--paper);
       font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
.figures { display: flex; flex-wrap: wrap; gap: 0 1.5rem; }
figure { margin: 0; flex: 1 1 34rem; max-width: 44rem; } figure.wide { flex-basis: 100%; max-width: none; }
svg { width: 100%; height: auto; color: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
th { cursor: pointer; vertical-align: bottom; white-space: normal; }
th[aria-sort=ascending]::after { content: " \\2191"; } th[aria-sort=descending]::after { content: " \\2193"; }
tbody tr:hover td { background: var(--shade); }
td.note { text-align: left; white-space: normal; max-width: 24rem; }
p { max-width: 60rem; }
"""

_SCRIPT = """
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const down = head.getAttribute("aria-sort") !== "descending", body = head.closest("table").tBodies[0];
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => row.cells[head.cellIndex].dataset.key;
  const order = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
  const rows = [...body.rows].sort((a, b) => (down ? -1 : 1) * order(key(a), key(b)));
  body.append(...rows);
});
"""


def page(
    title: str,
    about: str,
    rows: Sequence[Row],
    pictures: Mapping[str, Picture],
    legend: str,
) -> str:
    """The whole comparison as HTML.

    Parameters
    ----------
    title, about : str
        The heading, and a line on what was run.
    legend : str
        What the columns mean.
    """
    figures = "".join(
        _figure(_HEADINGS[name], picture.svg) for name, picture in pictures.items()
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(about)}</p>\n<div class='figures'>\n{figures}</div>\n"
        f"<h2>Table</h2>\n{_table(rows, summary_columns(rows))}\n<p>{escape(legend).replace('`', '')}</p>\n"
        f"<h2>Bytes by kind, MB</h2>\n{_table(rows, KINDS)}\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _table(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    head = "".join(
        f"<th scope='col'>{escape(heading)}</th>" for heading in columns.values()
    )
    body = "".join(
        f"<tr>{''.join(_cell(row, column) for column in columns)}</tr>\n"
        for row in rows
    )
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"


def _cell(row: Row, column: str) -> str:
    note = " class='note'" if column == "accuracy" and not row.seeds else ""
    return f"<td{note} data-key='{escape(str(sort_key(row, column)), quote=True)}'>{escape(cell(row, column))}</td>"


def _figure(heading: str, svg: str) -> str:
    """An SVG file's own element as a figure of the page: no XML declaration, no addresses."""
    width, height = map(float, re.findall(r'(?:width|height)="([\d.]+)pt"', svg)[:2])
    wide = " class='wide'" if width > 2 * height else ""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r' xmlns(:\w+)?="[^"]*"', "", element)
    element = element.replace("xlink:href", "href")
    element = element.replace(
        "<svg", f'<svg role="img" aria-label="{escape(heading)}"', 1
    ).strip()
    return f"<figure{wide}><h2>{escape(heading)}</h2>\n{element}</figure>\n"

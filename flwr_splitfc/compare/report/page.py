"""The page of a comparison: figures and tables in one file that needs nothing else."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template

from flwr_splitfc.compare.report.looks import Picture
from flwr_splitfc.compare.report.rows import (
    KIND_COLUMNS,
    SUMMARY_COLUMNS,
    MethodRow,
    shows_note,
    sort_value,
)
from flwr_splitfc.run.columns import Column, shown_columns

_SIZES = re.compile(r'(?:width|height)="([\d.]+)pt"')
_WIDE = 2  # times as wide as it is high: a figure that gets a line of the page


def page(
    title: str,
    about: str,
    rows: Sequence[MethodRow],
    pictures: Iterable[Picture],
    legend: str,
) -> str:
    """Write the whole comparison as HTML.

    Parameters
    ----------
    title, about : str
        The heading, and a line on what was run.
    rows : sequence of MethodRow
    pictures : iterable of Picture
    legend : str
        The columns explained, with the Markdown of the table's file.
    """
    return Template(_file("page.html")).substitute(
        title=escape(title),
        about=escape(about),
        style=_file("page.css"),
        script=_file("page.js"),
        figures="".join(_figure(picture) for picture in pictures),
        summary=_table(rows, shown_columns(SUMMARY_COLUMNS, rows)),
        kinds=_table(rows, KIND_COLUMNS),
        legend=escape(legend).replace("`", ""),
    )


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text()


def _table(rows: Sequence[MethodRow], columns: Sequence[Column[MethodRow]]) -> str:
    headings = [f"<th scope='col'>{escape(column.heading)}</th>" for column in columns]
    lines = []
    for row in rows:
        cells = [_cell(row, column) for column in columns]
        lines.append(f"<tr>{''.join(cells)}</tr>\n")
    head = f"<thead><tr>{''.join(headings)}</tr></thead>"
    body = f"<tbody>\n{''.join(lines)}</tbody>"
    return f"<div class='scroll'><table>{head}\n{body}</table></div>"


def _cell(row: MethodRow, column: Column[MethodRow]) -> str:
    note = " class='note'" if shows_note(row, column) else ""
    key = escape(str(sort_value(row, column)), quote=True)
    return f"<td{note} data-key='{key}'>{escape(column.text(row))}</td>"


def _figure(picture: Picture) -> str:
    sizes = _SIZES.findall(picture.svg)
    width = float(sizes[0])
    height = float(sizes[1])
    wide = " class='wide'" if width > _WIDE * height else ""
    heading = escape(picture.heading)
    element = _svg_element(picture.svg, heading)
    return f"<figure{wide}><h2>{heading}</h2>\n{element}</figure>\n"


def _svg_element(svg: str, label: str) -> str:
    """Return an SVG file's element for a page: no XML declaration, no addresses."""
    element = svg[svg.index("<svg") :].strip()
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r' xmlns(:\w+)?="[^"]*"', "", element)
    element = element.replace("xlink:href", "href")
    return element.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)

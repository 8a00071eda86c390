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
from flwr_splitfc.compare.report.settings_table import (
    common_settings,
    differing_settings,
)
from flwr_splitfc.compare.runs import Run
from flwr_splitfc.run.columns import Column, shown_columns

_SIZES = re.compile(r'(?:width|height)="([\d.]+)pt"')
_NAMES = re.compile(r"`([^`]*)`")
_WIDE = 2  # times as wide as it is high: a figure that gets a line of the page


def page(
    title: str,
    about: str,
    found: str,
    runs: Sequence[Run],
    rows: Sequence[MethodRow],
    pictures: Iterable[Picture],
    legend: str,
) -> str:
    """Write the whole comparison as HTML.

    Parameters
    ----------
    title, about : str
        The heading, and a line on what was run.
    found : str
        The sentence below the heading.
    runs : sequence of Run
        For their settings.
    rows : sequence of MethodRow
    pictures : iterable of Picture
    legend : str
        The columns explained, with the Markdown of the table's file.
    """
    return Template(_file("page.html")).substitute(
        title=escape(title),
        about=escape(about),
        found=escape(found),
        differing=_differing(runs),
        common=_common(runs),
        style=_file("page.css"),
        script=_file("page.js"),
        figures="".join(_figure(picture) for picture in pictures),
        summary=_table(rows, shown_columns(SUMMARY_COLUMNS, rows)),
        kinds=_table(rows, shown_columns(KIND_COLUMNS, rows)),
        legend=_NAMES.sub(r"<code>\1</code>", escape(legend)),
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


def _differing(runs: Sequence[Run]) -> str:
    """Write a table with a line for each method: what it sets otherwise than others."""
    settings = differing_settings(runs)
    keys = next(iter(settings.values()))
    lines = [_line("th", ["method", *keys])]
    for label, values in settings.items():
        lines.append(_line("td", [label, *values.values()]))
    return _plain_table(lines)


def _common(runs: Sequence[Run]) -> str:
    """Write a table with a line for each setting of all runs."""
    settings = common_settings(runs)
    return _plain_table([_line("td", setting) for setting in settings.items()])


def _line(tag: str, cells: Iterable[object]) -> str:
    written = [f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells]
    return f"<tr>{''.join(written)}</tr>\n"


def _plain_table(lines: Sequence[str]) -> str:
    return f"<div class='scroll'><table>{''.join(lines)}</table></div>"


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

"""Columns of tables, and tables for terminals."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, Generic, Literal, TypeVar

from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = TypeVar("Row")
Value = TypeVar("Value")

NO_VALUE = "-"
# Of rich's eight lines the third is the rule below the headings.
_RULE = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
_ANY_WIDTH = 10_000


def _always(rows: Sequence[Any]) -> bool:
    return True


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column of a table: where its values come from and how they look.

    Parameters
    ----------
    key : str
        Its name in files; also the attribute of a row that it shows, unless there is
        an `of`.
    heading : str
        Its name for people.
    format : callable
        Makes the text of a value that is not None, such as ``"{:.2f}".format``.
    of : callable, optional
        Gets the value, or None, from a row.
    shown : callable
        Tells whether a table of these rows has the column; by default it always has.
    width : int
        The least width in a terminal, in characters.
    justify : "right" or "left"
    wraps : bool
        Whether a narrow terminal breaks the column's lines, rather than cut them.
    """

    key: str
    heading: str
    format: Callable[[Any], str] = str
    of: Callable[[Row], Any] | None = None
    shown: Callable[[Sequence[Row]], bool] = _always
    width: int = 0
    justify: Literal["right", "left"] = "right"
    wraps: bool = False

    def value(self, row: Row) -> Any:
        """Return the value in a row, None where it has none."""
        if self.of is None:
            return getattr(row, self.key)
        return self.of(row)

    def text(self, row: Row) -> str:
        """Return what a table shows of a row."""
        value = self.value(row)
        return NO_VALUE if value is None else self.format(value)


AnyColumn = TypeVar("AnyColumn", bound=Column[Any])


def shown_columns(columns: Sequence[AnyColumn], rows: Sequence[Any]) -> list[AnyColumn]:
    """Return the columns that a table of some rows has."""
    return [column for column in columns if column.shown(rows)]


def known(values: Iterable[Value | None]) -> list[Value]:
    """Return the values that are not None.

    >>> known([None, 0.5, None, 0.7])
    [0.5, 0.7]
    """
    return [value for value in values if value is not None]


def last_known(values: Iterable[Value | None]) -> Value | None:
    """Return the last value that is not None, if there is one.

    >>> last_known([0.5, 0.7, None])
    0.7
    """
    there = known(values)
    return there[-1] if there else None


def megabytes(size_bytes: float) -> str:
    """Write bytes in MB of 1e6 bytes, so that a few are not none.

    >>> [megabytes(size) for size in (17_310_000, 21_800, 4_321, 0)]
    ['17.31', '0.02', '0.0043', '0.00']
    """
    size = size_bytes / 1e6
    if 0 < size < 0.01:
        two_digits = float(f"{size:.2g}")
        return f"{two_digits:f}".rstrip("0")
    return f"{size:.2f}"


def percent(share: float) -> str:
    """Write a share in percent, with two digits.

    >>> [percent(share) for share in (0.0, 1e-6, 0.00512, 0.213, 15.52)]
    ['0', '<0.01', '0.51', '21', '1600']
    """
    if 0 < share < 1e-4:
        return "<0.01"
    two_digits = float(f"{100 * share:.2g}")
    return f"{two_digits:g}"


def terminal_table(
    columns: Sequence[Column[Row]], rows: Sequence[Row], **options: Any
) -> Table:
    """Make a table for a terminal.

    Parameters
    ----------
    columns, rows : sequence
        What the table is of.
    **options
        As in `rich.table.Table`; by default a rule is below the headings, and one space
        between the columns.
    """
    table = Table(**{"box": _RULE, "show_edge": False, "padding": 0, **options})
    # As Text, because rich reads plain strings as its markup.
    for column in columns:
        table.add_column(
            Text(column.heading),
            justify=column.justify,
            min_width=column.width,
            no_wrap=not column.wraps,
        )
    for row in rows:
        table.add_row(*(Text(column.text(row)) for column in columns))
    return table


def table_text(table: Table) -> str:
    """Return a table as lines of plain text, whatever the terminal's width."""
    written = StringIO()
    console = Console(
        file=written, width=_ANY_WIDTH, color_system=None, force_jupyter=False
    )
    console.print(table)
    lines = written.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines)

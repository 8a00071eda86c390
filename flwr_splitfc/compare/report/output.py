"""The files of a comparison."""

import json
from collections.abc import Sequence
from pathlib import Path

from flwr_splitfc.compare.report.curves import curves_of
from flwr_splitfc.compare.report.figures import pictures
from flwr_splitfc.compare.report.numbers import common_accuracy
from flwr_splitfc.compare.report.page import page
from flwr_splitfc.compare.report.radio_link import RadioLink
from flwr_splitfc.compare.report.table import csv_text, legend, markdown, rows_of
from flwr_splitfc.compare.runs import Outcome, Run
from flwr_splitfc.run.results import write_whole


def write(
    out: Path,
    app: str,
    outcomes: Sequence[tuple[Run, Outcome]],
    link: RadioLink,
    target: float | None = None,
) -> str:
    """Write the tables, the figures and the page; the table, for the command to print.

    Parameters
    ----------
    target : float, optional
        The accuracy to which bytes and seconds are counted; by default the best that
        all runs reached.
    """
    if target is None:
        target = common_accuracy(
            outcome.results for _, outcome in outcomes if outcome.results is not None
        )
    rows = rows_of(outcomes, link, target)
    about_columns = legend(rows, link, target)
    drawn = pictures(curves_of(outcomes, link))
    for name, picture in drawn.items():
        write_whole(out / f"{name}.svg", picture.svg)
        (out / f"{name}.png").write_bytes(picture.png)
    finished = sum(outcome.state == "finished" for _, outcome in outcomes)
    about = f"{finished} of {len(outcomes)} runs of {app} are finished."
    write_whole(out / "results.json", _everything(app, outcomes, link, target))
    write_whole(out / "results.csv", csv_text(outcomes, link, target))
    table = markdown(rows, about_columns)
    write_whole(out / "table.md", table)
    write_whole(
        out / "index.html",
        page(f"Comparison on {app}", about, rows, drawn, about_columns),
    )
    return table


def _everything(
    app: str,
    outcomes: Sequence[tuple[Run, Outcome]],
    link: RadioLink,
    target: float | None,
) -> str:
    """All runs as JSON, a line each."""
    lines = [
        json.dumps(
            {
                **run.about,
                "state": outcome.state,
                "reason": outcome.reason,
                "results": outcome.results,
            }
        )
        for run, outcome in outcomes
    ]
    head = json.dumps({"app": app, "link": str(link), "target": target})
    return head.removesuffix("}") + ', "runs": [\n' + ",\n".join(lines) + "\n]}\n"

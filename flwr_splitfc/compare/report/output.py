"""The files of a comparison."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flwr_splitfc.compare.report.curves import curves_of
from flwr_splitfc.compare.report.figures import pictures
from flwr_splitfc.compare.report.headline import headline
from flwr_splitfc.compare.report.lines import csv_text
from flwr_splitfc.compare.report.markdown import legend, markdown
from flwr_splitfc.compare.report.page import page
from flwr_splitfc.compare.report.points import common_accuracy, rounds_of
from flwr_splitfc.compare.report.radio_link import RadioLink
from flwr_splitfc.compare.report.rows import rows_of
from flwr_splitfc.compare.runs import Outcomes, Run
from flwr_splitfc.run.columns import known
from flwr_splitfc.run.results import config_to_json, write_whole


def write(
    out: Path,
    app: str,
    outcomes: Outcomes,
    link: RadioLink,
    target: float | None = None,
) -> str:
    """Write the tables, the figures and the page, and return the tables to print.

    Parameters
    ----------
    out : Path
        The comparison's folder.
    app : str
        The app's name.
    outcomes : sequence of (Run, Outcome)
    link : RadioLink
        The link on which times are worked out.
    target : float, optional
        The accuracy to which bytes and seconds are counted; by default the best that
        all runs reached.
    """
    if target is None:
        target = _common_accuracy(outcomes)
    rows = rows_of(outcomes, link, target)
    about_columns = legend(rows, link, target)
    drawn = pictures(curves_of(outcomes, link), target)
    for name, picture in drawn.items():
        write_whole(out / f"{name}.svg", picture.svg)
        (out / f"{name}.png").write_bytes(picture.png)
    found = headline(rows, target)
    tables = markdown(rows, found, about_columns)
    runs = [run for run, _ in outcomes]
    title = f"Comparison on {_data_of(runs) or app}"
    about = _about(app, outcomes)
    html = page(title, about, found, runs, rows, drawn.values(), about_columns)
    write_whole(out / "results.json", _all_runs(app, outcomes, link, target))
    write_whole(out / "results.csv", csv_text(outcomes, link, target))
    write_whole(out / "table.md", tables)
    write_whole(out / "index.html", html)
    return tables


def _common_accuracy(outcomes: Outcomes) -> float | None:
    finished = known(outcome.results for _, outcome in outcomes)
    return common_accuracy(rounds_of(results) for results in finished)


def _data_of(runs: Sequence[Run]) -> str:
    """Return the data set that all runs name, if they do."""
    names = {str(run.config.get("dataset", "")) for run in runs}
    return names.pop() if len(names) == 1 else ""


def _about(app: str, outcomes: Outcomes) -> str:
    finished = sum(outcome.state == "finished" for _, outcome in outcomes)
    return f"{finished} of {len(outcomes)} runs of the app {app} are finished."


def _all_runs(
    app: str, outcomes: Outcomes, link: RadioLink, target: float | None
) -> str:
    """Write all runs as JSON, a line each."""
    lines = []
    for run, outcome in outcomes:
        ending = {
            "state": outcome.state,
            "reason": outcome.reason,
            "results": _to_json(outcome.results),
        }
        lines.append(json.dumps({**run.about, **ending}))
    head = json.dumps({"app": app, "link": str(link), "target": target})
    body = ",\n".join(lines)
    return f'{head.removesuffix("}")}, "runs": [\n{body}\n]}}\n'


def _to_json(results: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return results as they are in a run's file: settings may be infinite or NaN."""
    if results is None or "run_config" not in results:
        return results
    return {**results, "run_config": config_to_json(results["run_config"])}

"""The folder of a run's results, which holds those of no other run."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from flwr_splitfc.run.held_folder import FolderInUse, held_folder
from flwr_splitfc.settings import RunConfig


@contextmanager
def results_folder(wanted: Path, config: RunConfig) -> Iterator[Path]:
    """Give a run a folder for the block: `wanted`, or else ``wanted-2``, ``wanted-3``.

    A folder is taken if it has the results of a run that went to its end, or of one
    with another run-config, or if a run is at work in it. What a killed or failed run
    left is replaced: the same run, started again, may go on from its checkpoint.

    Parameters
    ----------
    wanted : Path
    config : mapping
        The run-config.
    """
    for number in count(1):
        name = wanted.name if number == 1 else f"{wanted.name}-{number}"
        folder = wanted.with_name(name)
        with ExitStack() as lock:
            try:
                lock.enter_context(held_folder(folder))
            except FolderInUse:
                continue
            if _is_taken(folder / "results.json", config):
                continue
            yield folder
            return


def _is_taken(path: Path, config: RunConfig) -> bool:
    if not path.exists():
        return False
    try:
        before: Mapping[str, Any] = json.loads(path.read_text())
        goes_on = "unfinished" in before or "failed" in before
        return not goes_on or before["run_config"] != dict(config)
    except (ValueError, LookupError, TypeError):
        # whatever it is, it is not this run's
        return True

"""The folder of a run's results, which holds those of no other run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from logging import getLogger
from pathlib import Path

from flwr_splitfc.run.held_folder import FolderInUse, end_of_patience, held_folder
from flwr_splitfc.run.results import ResultsError, config_to_json, read_results
from flwr_splitfc.settings import RunConfig, under_key

logger = getLogger("flwr")


@contextmanager
def results_folder(wanted: Path, config: RunConfig) -> Iterator[Path]:
    """Give a run a folder for the block: `wanted`, or else ``wanted-2``, ``wanted-3``.

    A folder is taken if it has the results of a run that went to its end, or of one
    with another run-config, or if a run is at work in it and stays so for a while. What
    a killed or failed run left is replaced: the same run, started again, may go on from
    its checkpoint.

    Parameters
    ----------
    wanted : Path
    config : mapping
        The run-config.

    Raises
    ------
    ValueError
        If it is no folder to write into.
    """
    # once for all of them: others may be at work for long
    until = end_of_patience()
    why = ""
    for number in count(1):
        name = wanted.name if number == 1 else f"{wanted.name}-{number}"
        folder = wanted.with_name(name)
        with ExitStack() as lock:
            try:
                with under_key("results-dir"):
                    lock.enter_context(held_folder(folder, until=until))
            except FolderInUse:
                why = why or "another run is at work in it"
                continue
            if _is_taken(folder / "results.json", config):
                why = why or "it has the results of another run"
                continue
            if why:
                logger.info("Results go into %s, not %s: %s", folder, wanted, why)
            yield folder
            return


def _is_taken(path: Path, config: RunConfig) -> bool:
    if not path.exists():
        return False
    try:
        before = read_results(path, "run_config")
    except ResultsError:
        # whatever it is, it is not this run's
        return True
    goes_on = "unfinished" in before or "failed" in before
    # as JSON, in which one NaN is like another
    same = config_to_json(before["run_config"]) == config_to_json(config)
    return not (goes_on and same)

"""Going on from a checkpoint, where it is of the same run."""

from collections.abc import Mapping
from logging import getLogger
from pathlib import Path

from flwr.app import ArrayRecord

from flwr_splitfc.strategy.checkpoint import CheckpointError, load_checkpoint
from flwr_splitfc.strategy.run_state import RunState

logger = getLogger("flwr")


def resume(run: RunState, folder: Path) -> ArrayRecord | None:
    """Bring `run` to where the checkpoint in `folder` was.

    Parameters
    ----------
    run : RunState
        A run that has not begun.
    folder : Path
        As in `load_checkpoint`.

    Returns
    -------
    ArrayRecord or None
        The device half to go on with; None if there is no checkpoint yet.

    Raises
    ------
    CheckpointError
        If the checkpoint is damaged, foreign, or of another run.
    """
    state = load_checkpoint(folder)
    if state is None:
        return None
    _check_same(state["settings"], run.settings, folder)
    try:
        arrays = run.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the checkpoint in {folder} does not fit this run: {error}"
        ) from error
    logger.info("Goes on after round %d, from %s", run.rounds_done, folder)
    return arrays


def _check_same(
    before: Mapping[str, str], now: Mapping[str, str], folder: Path
) -> None:
    changed = [
        f"{key} {before.get(key)!r}, now {value!r}"
        for key, value in now.items()
        if before.get(key) != value
    ]
    if changed:
        raise CheckpointError(
            f"the checkpoint in {folder} is of another run: {', '.join(changed)}"
        )

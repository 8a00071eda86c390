"""Going on from a checkpoint, where it is of the same run."""

from collections.abc import Mapping
from logging import getLogger
from pathlib import Path

from flwr.app import ArrayRecord

from flwr_splitfc.strategy.checkpoint import CheckpointError, load_checkpoint
from flwr_splitfc.strategy.run_state import RunState

logger = getLogger("flwr")


def resume(
    run: RunState, folder: Path, initial_arrays: ArrayRecord
) -> ArrayRecord | None:
    """Bring `run` to where the checkpoint in `folder` was.

    Parameters
    ----------
    run : RunState
        A run that has not begun.
    folder : Path
        As in `load_checkpoint`.
    initial_arrays : ArrayRecord
        The device half that the run would begin with.

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
    try:
        _check_same(state["settings"], run.settings)
        run.check_state(state, initial_arrays)
        arrays = run.load_state_dict(state)
    # Whatever stands in the file: one that is not ours has no list of errors.
    except Exception as error:
        # other errors than our own need their type beside their text
        reason = repr(error)
        if isinstance(error, CheckpointError):
            reason = str(error)
        raise CheckpointError(
            f"the checkpoint in {folder} does not fit this run: {reason:.1000}"
        ) from error
    logger.info("Goes on after round %d, from %s", run.rounds_done, folder)
    return arrays


def _check_same(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    # a version before may have listed fewer
    changed = [
        f"{key} {before[key]!r}, now {value!r}"
        for key, value in now.items()
        if key in before and before[key] != value
    ]
    if changed:
        raise CheckpointError(f"it is of another run: {', '.join(changed)}")

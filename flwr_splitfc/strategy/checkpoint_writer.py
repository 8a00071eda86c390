"""Writing checkpoints beside the run, which a full disk does not end."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from logging import getLogger
from pathlib import Path
from typing import Any

from flwr_splitfc.strategy.checkpoint import save_checkpoint
from flwr_splitfc.strategy.state_tensors import copied
from flwr_splitfc.strategy.trial import try_checkpoint

logger = getLogger("flwr")


class CheckpointWriter:
    """A thread that writes the checkpoint while the next round trains.

    Parameters
    ----------
    folder : Path, optional
        As in `save_checkpoint`; None saves nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        # one thread: files are written in the order of their rounds
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._round = 0
        self._is_tried = False

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            # the last round's file is part of the run
            self._wait()
        finally:
            self._pool.shutdown()

    def save(
        self,
        make_state: Callable[[], dict[str, Any]],
        check: Callable[[dict[str, Any]], None],
    ) -> None:
        """Take a copy of the state now, and write it soon.

        Where the checkpoint before could not be written, the log says so.

        Parameters
        ----------
        make_state : callable
            Returns the state.
        check : callable
            As in `try_checkpoint`, of the first states.

        Raises
        ------
        CheckpointError
            If the run could not go on from it; it is not written then.
        """
        if self._folder is None:
            return
        self._wait()
        state = make_state()
        if not self._is_tried:
            try_checkpoint(state, check)
            # optimizers have no state before the first round
            self._is_tried = state["round"] > 0
        # a copy: the next round trains the same tensors while they are written
        state = copied(state)
        self._round = state["round"]
        self._writing = self._pool.submit(save_checkpoint, self._folder, state)

    def _wait(self) -> None:
        writing = self._writing
        self._writing = None
        if writing is None:
            return
        try:
            writing.result()
        except (OSError, MemoryError) as error:
            logger.warning(
                "The checkpoint of round %d could not be written: %s. The one before "
                "stays, and the run goes on",
                self._round,
                error,
            )

"""The limits of what one device may ask of the server, and how long it may take."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf
from typing import Final

_MOST_OF_GRPC = 2**31 - 1  # its options are C's int
_MOST: Final[Mapping[str, float]] = {
    "max_frame_bytes": _MOST_OF_GRPC,
    "connection_idle_timeout_s": _MOST_OF_GRPC // 1000,  # gRPC counts milliseconds
}


@dataclass(frozen=True)
class Limits:
    """The limits of what one device may ask of the server, and how long it may take.

    Parameters
    ----------
    max_sessions : int (default: 256)
        Sessions at once; each holds a thread. Others wait, in the order in which they
        came.
    max_waiting : int (default: 512)
        Sessions that wait at once; each holds a connection and a thread that sleeps.
        Devices beyond are told to come again, and do.
    max_steps : int (default: 1,000,000)
        Steps and predictions of one session.
    max_train_rows : int (default: 4096)
        Samples of one mini-batch of training. `SplitServerApp` takes the run-config's
        ``batch-size`` where it has one.
    max_predict_rows : int (default: 4096)
        Samples of one mini-batch of predictions.
    max_matrix_bytes : int (default: 512 MiB)
        Size of one feature matrix as float32.
    max_work_bytes : int (default: 1 GiB)
        Size of the feature matrices, as float32, that all sessions together have in
        work at once; others wait. What a step takes in all is a multiple of it that the
        server half decides.
    max_label_entries : int (default: 2^24)
        Entries of one mini-batch's labels.
    max_frame_bytes : int (default: 1 GiB - 1)
        Size of one frame; 2 GiB - 1 at most.
    open_timeout_s : float (default: 600)
        Seconds that a device may leave its session unopened while no other device is in
        one: where few processes serve many devices, it may have to wait for its turn.
    turn_timeout_s : float (default: 1800)
        Seconds from the opening of a session to its end, which may come with the reply.
    max_state_bytes : int (default: 64 MiB)
        Size of what a device may leave for its next turn. Optimizer state may have 64
        bytes for each entry of the device half, and 1 MiB, where the strategy knows it.
    idle_timeout_s : float (default: 600)
        Seconds that a connected session may stay silent, and a connection on which none
        is opened.
    reconnect_timeout_s : float (default: 60)
        Seconds that both sides wait for a broken connection to be opened again; then
        the session is over.
    reply_timeout_s : float (default: 600)
        Seconds that a device has for its Flower reply after its session is over, or
        after it left its stream. A device that exceeds them is not waited for any
        longer in the round.
    wait_timeout_s : float (default: 600)
        Seconds that a round waits until there are as many devices as it needs; then the
        run ends.
    connection_idle_timeout_s : float (default: 10)
        Seconds that a connection may stay without a session; 2147483 at most, some 25
        days.

    Raises
    ------
    ValueError
        If one of them is not above 0, or more than gRPC takes.
    """

    max_sessions: int = 256
    max_waiting: int = 512
    max_steps: int = 1_000_000
    max_train_rows: int = 4096
    max_predict_rows: int = 4096
    max_matrix_bytes: int = 512 * 2**20
    max_work_bytes: int = 2**30
    max_label_entries: int = 2**24
    max_frame_bytes: int = 2**30 - 1
    open_timeout_s: float = 600.0
    turn_timeout_s: float = 1800.0
    max_state_bytes: int = 64 * 2**20
    idle_timeout_s: float = 600.0
    reconnect_timeout_s: float = 60.0
    reply_timeout_s: float = 600.0
    wait_timeout_s: float = 600.0
    connection_idle_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            limit = getattr(self, field.name)
            if not limit > 0:
                raise ValueError(f"{field.name} is {limit}, wanted more than 0")
            most = _MOST.get(field.name, inf)
            if limit > most:
                raise ValueError(f"{field.name} is {limit}, wanted at most {most}")

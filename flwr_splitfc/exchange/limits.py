"""What one device may ask of the server, in one place."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one device may ask of the server.

    Parameters
    ----------
    max_sessions : int (default: 256)
        Sessions at once; each holds a thread.
    max_steps : int (default: 1,000,000)
        Steps and predictions of one session.
    max_matrix_bytes : int (default: 512 MiB)
        Size of one feature matrix as float32.
    max_label_entries : int (default: 2^24)
        Entries of one mini-batch's labels.
    max_frame_bytes : int (default: 1 GiB - 1)
        Size of one frame.
    idle_timeout_s : float (default: 600)
        Seconds that a session may stay silent.
    """

    max_sessions: int = 256
    max_steps: int = 1_000_000
    max_matrix_bytes: int = 512 * 2**20
    max_label_entries: int = 2**24
    max_frame_bytes: int = 2**30 - 1
    idle_timeout_s: float = 600.0

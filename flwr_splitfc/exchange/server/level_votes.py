"""Which tensors at the cut are levelled from a turn's first step on.

The gradient of a first step tells a device whether small channels matter as much as
large ones (`flwr_splitfc.codec.levels`). That step itself is coded without levels then,
and so would be all steps of turns that have but one. The server half is the same for
all devices, so what devices told holds for those that come next.
"""

from collections.abc import Iterable, Mapping

_TURNS_IN_A_ROW = 10
"""Where it matters, each turn tells so. Elsewhere single batches do: one in four, with
a transformer whose residual stream has two large channels."""


class LevelVotes:
    """Counts the turns in a row that wanted a tensor's channels levelled.

    What is levelled stays so: gradients do not tell then whether it had to be.
    """

    def __init__(self) -> None:
        self._turns: dict[int, int] = {}

    @property
    def levelled(self) -> list[int]:
        """The numbers of the tensors that all turns level."""
        return sorted(
            number for number, turns in self._turns.items() if turns >= _TURNS_IN_A_ROW
        )

    def add(self, wanted: Iterable[int], unwanted: Iterable[int]) -> None:
        """Count a turn of training.

        Parameters
        ----------
        wanted, unwanted : iterable of int
            The numbers of the tensors whose gradient told so, and of those whose
            gradient told otherwise. Of others it told nothing.
        """
        for number in set(unwanted) - set(self.levelled):
            self._turns.pop(number, None)
        for number in set(wanted):
            self._turns[number] = self._turns.get(number, 0) + 1

    def state_dict(self) -> dict[int, int]:
        """Return the turns in a row by tensor."""
        return dict(self._turns)

    def load_state_dict(self, state: Mapping[int, int]) -> None:
        """Go on from what `state_dict` gave."""
        self._turns = {int(number): int(turns) for number, turns in state.items()}

"""Which tensors at the cut are levelled from a turn's first step on.

The gradient of a first step tells a device whether small channels matter as much as
large ones (`flwr_splitfc.codec.levels`). That step itself is coded without levels then,
and so would be all steps of turns that have but one. The server half is the same for
all devices, so what devices told holds for those that come next.
"""

from collections.abc import Iterable, Mapping

from flwr_splitfc.exchange.protocol.parts import MOST_PARTS

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
        """Go on from what `state_dict` gave.

        Raises
        ------
        ValueError
            If it is none: no tensor at the cut has such a number, or turns are no
            count.
        """
        for number, turns in state.items():
            are_counts = type(number) is int and type(turns) is int
            if not are_counts or not 0 <= number < MOST_PARTS or turns < 1:
                raise ValueError(
                    f"{turns!r:.40} turns wanted levels of tensor {number!r:.40}; "
                    f"wanted 1 turn or more, and a number below {MOST_PARTS}"
                )
        self._turns = dict(state)

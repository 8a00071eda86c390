"""The config that a strategy sends with a message."""

from flwr.app import ConfigRecord, Message

from flwr_splitfc.settings import check_dashes

MOST_TORCH_THREADS = 1024
"""More than cores of any machine; with 100,000 torch ends the process."""

_DEFAULT_KEY = "config"
_ROUND_KEY = "server-round"
_STEPS_PER_TURN_KEY = "steps-per-turn"
_KEYS = (
    _STEPS_PER_TURN_KEY,
    "device-precision",
    "learning-rate",
    "proximal-mu",
    "torch-threads",
)


class MessageConfig:
    """The settings of a device's turn in a message's config.

    Parameters
    ----------
    message : Message
        One without a config gives the defaults.
    """

    def __init__(self, message: Message) -> None:
        self._record = _config_of(message)
        check_dashes(self._record, _KEYS)

    @property
    def steps_per_turn(self) -> int | None:
        """How many batches to train on; None is one pass over what there are.

        Raises
        ------
        ValueError
            If it is no whole number of 1 or more.
        """
        told = self._record.get(_STEPS_PER_TURN_KEY)
        if told is None:
            return None
        try:
            steps = int(str(told))
        except ValueError:
            steps = 0
        if steps < 1:
            raise ValueError(
                f"the message's config has {_STEPS_PER_TURN_KEY} {told!r:.100}, wanted "
                "a whole number of 1 or more, or none for one pass over the batches"
            )
        return steps

    @property
    def learning_rate(self) -> float | None:
        """The optimizer's; None leaves it as it was made."""
        rate = self._record.get("learning-rate")
        return None if rate is None else float(str(rate))

    @property
    def proximal_mu(self) -> float:
        """The weight of FedProx's proximal term."""
        return float(str(self._record.get("proximal-mu", 0.0)))

    @property
    def device_precision(self) -> str:
        """The precision of the device's layers, unchecked."""
        return str(self._record.get("device-precision", "float32"))

    @property
    def seed(self) -> str | None:
        """The run's seed, where no ticket tells it; None if nothing does."""
        seed = self._record.get("seed")
        return None if seed is None else str(seed)

    @property
    def server_round(self) -> str:
        """The round, where no ticket tells it."""
        return str(self._record.get(_ROUND_KEY, 0))

    def torch_threads(self, default: int) -> int:
        """Return the number of CPU threads for torch.

        Raises
        ------
        ValueError
            If it is not from 1 to `MOST_TORCH_THREADS`.
        """
        threads = int(str(self._record.get("torch-threads", default)))
        if not 1 <= threads <= MOST_TORCH_THREADS:
            raise ValueError(
                f"torch-threads is {threads}, wanted 1 to {MOST_TORCH_THREADS}"
            )
        return threads


def _config_of(message: Message) -> ConfigRecord:
    """Return the strategy's config, under whatever ``configrecord_key`` it came.

    It is the record with the round, which Flower's strategies put there; of another
    strategy that under Flower's default key, or the only one.
    """
    records = message.content.config_records
    for record in records.values():
        if _ROUND_KEY in record:
            return record
    if len(records) == 1:
        return next(iter(records.values()))
    return records.get(_DEFAULT_KEY, ConfigRecord())

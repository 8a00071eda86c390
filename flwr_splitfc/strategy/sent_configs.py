"""The configs that go to devices, which a strategy may change from round to round."""

from collections.abc import Mapping
from logging import getLogger

from flwr.app import ConfigRecord

logger = getLogger("flwr")


class SentConfigs:
    """The ``train_config`` and ``evaluate_config`` of a run, as they are now.

    A strategy's ``configure_train`` may change them in place, as a schedule of devices'
    learning rate does.

    Parameters
    ----------
    train, evaluate : ConfigRecord, optional
        As they are given to `Strategy.start`; empty by default.

    Raises
    ------
    ValueError
        If one is no `ConfigRecord`, such as a dict.
    """

    def __init__(
        self, train: ConfigRecord | None = None, evaluate: ConfigRecord | None = None
    ) -> None:
        self.train = ConfigRecord() if train is None else train
        self.evaluate = ConfigRecord() if evaluate is None else evaluate
        self._now = {"train_config": self.train, "evaluate_config": self.evaluate}
        for name, record in self._now.items():
            if not isinstance(record, ConfigRecord):
                raise ValueError(f"{name} is {record!r:.100}, wanted a ConfigRecord")
        # Flower's bytes: lists in a record may change in place, too, and a number may
        # be NumPy's, which no checkpoint holds
        self._at_start = {name: each.deflate() for name, each in self._now.items()}

    def state_dict(self) -> dict[str, dict[str, bytes]]:
        """Return, by name, the configs at the start and now."""
        now = {name: record.deflate() for name, record in self._now.items()}
        return {"at_start": dict(self._at_start), "now": now}

    def load_state_dict(self, state: Mapping[str, Mapping[str, bytes]]) -> None:
        """Go on with the configs of `state_dict`, in the records that were given.

        A record that was given with something else in it than at that run's start is
        left as it is: somebody wants it so.

        Raises
        ------
        Exception
            If they are no configs; the records are as before then.
        """
        at_start = {name: _inflated(state["at_start"][name]) for name in self._now}
        now = {name: _inflated(state["now"][name]) for name in self._now}
        for name, record in self._now.items():
            # a second `start` in a process may get the record that the first changed
            if record not in (at_start[name], now[name]):
                logger.warning(
                    "%s is %s, and the run began with %s: it goes on with the new one, "
                    "without what the rounds before changed in the old one",
                    name,
                    f"{record!r:.300}",
                    f"{at_start[name]!r:.300}",
                )
                continue
            record.clear()
            record.update(now[name])
            self._at_start[name] = state["at_start"][name]


def _inflated(config: bytes) -> ConfigRecord:
    # it takes what behaves like bytes, too
    if type(config) is not bytes:
        raise TypeError(f"a config is {config!r:.40}, wanted bytes")
    return ConfigRecord.inflate(config)

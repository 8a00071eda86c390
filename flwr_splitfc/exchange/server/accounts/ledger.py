"""The ledger of a run: the traffic of each round and of each device."""

from collections.abc import Iterable, Mapping
from itertools import zip_longest
from threading import Lock
from typing import Any, TypeAlias, get_args

from flwr_splitfc.exchange.protocol.ticket import Purpose
from flwr_splitfc.exchange.server.accounts.name_order import name_order
from flwr_splitfc.exchange.server.accounts.traffic import (
    Traffic,
    traffic_from_json,
    traffic_to_json,
)

LinkCounts: TypeAlias = list[int]
"""The counts of a device's link: bytes up, bytes down, round trips.

Where steps were under way at once, their bytes up and down follow.
"""

DeviceSum: TypeAlias = tuple[str, Purpose, Mapping[str, Any]]
"""A device, a purpose, and the sum of their traffic as JSON."""

_RoundKey: TypeAlias = tuple[int, Purpose]
_DeviceKey: TypeAlias = tuple[str, Purpose]
_FailuresByDevice: TypeAlias = dict[str, str]
_LinksByDevice: TypeAlias = dict[str, LinkCounts]


class Ledger:
    """The traffic of a run per round and purpose, and per device.

    It is safe to use from many threads.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._rounds: dict[_RoundKey, Traffic] = {}
        self._devices: dict[_DeviceKey, Traffic] = {}
        self._links: dict[_RoundKey, _LinksByDevice] = {}
        self._failures: dict[tuple[int, Purpose], _FailuresByDevice] = {}

    def add(
        self,
        server_round: int,
        purpose: Purpose,
        traffic: Traffic,
        device: str | None = None,
    ) -> None:
        """Enter what one session, or one Flower message, moved."""
        round_key = (server_round, purpose)
        with self._lock:
            of_round = self._rounds.setdefault(round_key, Traffic())
            of_round.add(traffic)
            if device is not None:
                of_device = self._devices.setdefault((device, purpose), Traffic())
                of_device.add(traffic)
                self._add_to_link(round_key, device, traffic)

    def _add_to_link(self, round_key: _RoundKey, device: str, traffic: Traffic) -> None:
        links = self._links.setdefault(round_key, {})
        before = links.get(device, [])
        now = [
            traffic.uplink_bytes.total(),
            traffic.downlink_bytes.total(),
            traffic.round_trips,
        ]
        if 0 < traffic.round_trips < traffic.mini_batches:
            now += [traffic.step_uplink_bytes, traffic.step_downlink_bytes]
        links[device] = [
            one + other for one, other in zip_longest(before, now, fillvalue=0)
        ]

    def devices(self, purpose: Purpose | None = None) -> dict[str, Traffic]:
        """Return the sum over each device's sessions, in the order of their names.

        Parameters
        ----------
        purpose : "train" or "evaluate", optional
            Default: both.

        Returns
        -------
        dict of str to Traffic
            Copies, by device.
        """
        totals: dict[str, Traffic] = {}
        with self._lock:
            for (device, entered_for), traffic in self._devices.items():
                if purpose in (None, entered_for):
                    totals.setdefault(device, Traffic()).add(traffic)
        in_order = sorted(totals, key=name_order)
        return {device: totals[device] for device in in_order}

    def devices_to_json(self) -> list[DeviceSum]:
        """Return each device's sums, for `restore_devices` of another ledger."""
        sums: list[DeviceSum] = []
        with self._lock:
            for (device, purpose), traffic in self._devices.items():
                sums.append((device, purpose, traffic_to_json(traffic)))
        return sums

    def restore_devices(self, sums: Iterable[DeviceSum]) -> None:
        """Take each device's sums from another ledger.

        The rounds of that ledger are entered in this one without devices.

        Raises
        ------
        Exception
            If they are no sums of devices.
        """
        with self._lock:
            self._devices.clear()
            for device, purpose, counts in sums:
                # now, or the table of devices at the end of the run would fail
                name_order(device)
                traffic = traffic_from_json(counts)
                self._devices[device, purpose] = traffic

    def links(self, server_round: int, purpose: Purpose) -> dict[str, LinkCounts]:
        """Return by device what crossed its link in a round.

        Each has bytes up, bytes down and round trips.
        """
        with self._lock:
            links = self._links.get((server_round, purpose), {})
            return dict(links)

    def add_failures(
        self, server_round: int, purpose: Purpose, failures: Mapping[str, str]
    ) -> None:
        """Enter which devices failed in a round, and why."""
        with self._lock:
            of_round = self._failures.setdefault((server_round, purpose), {})
            of_round.update(failures)

    def failures(
        self, server_round: int, purpose: Purpose | None = None
    ) -> dict[str, str]:
        """Return by device why it failed in a round.

        By default that is of both purposes; of a device that failed twice, why it did
        in training.
        """
        purposes = get_args(Purpose) if purpose is None else (purpose,)
        failures: dict[str, str] = {}
        with self._lock:
            for one in purposes:
                for device, why in self._failures.get((server_round, one), {}).items():
                    failures.setdefault(device, why)
        return failures

    def of(self, server_round: int, purpose: Purpose) -> Traffic:
        """Return the sum over one round's sessions, a copy."""
        total = Traffic()
        with self._lock:
            of_round = self._rounds.get((server_round, purpose))
            if of_round is not None:
                total.add(of_round)
        return total

    def total(self, purpose: Purpose) -> Traffic:
        """Return the sum over all rounds so far, a copy."""
        total = Traffic()
        with self._lock:
            for (_, entered_for), traffic in self._rounds.items():
                if entered_for == purpose:
                    total.add(traffic)
        return total

    def digest(self) -> str:
        """Return the digest of all payloads of the run, in hexadecimal.

        It is the same for two runs that sent the same bytes.
        """
        both = self.total("train")
        both.add(self.total("evaluate"))
        return f"{both.digest:032x}"

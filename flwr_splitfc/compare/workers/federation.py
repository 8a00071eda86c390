"""What simulates the devices: how many SuperNodes, and what each may use."""

import os
from dataclasses import dataclass
from typing import Any

from flwr_splitfc.compare.flower_app import Settings, SettingsError, parse_setting
from flwr_splitfc.settings import Scalar


@dataclass(frozen=True)
class Federation:
    """Settings of a simulation, as ``flwr run --federation-config`` has them.

    Parameters
    ----------
    supernodes : int, optional
        Their number; default the ``num-devices`` of a run.
    backend : dict
        Flower's ``backend_config``.
    """

    supernodes: int | None
    backend: dict[str, Any]

    @classmethod
    def of(cls, text: str, jobs: int = 1) -> "Federation":
        """From ``key=value ...``, for each of `jobs` simulations side by side, which share the CPU cores.

        >>> Federation.of("num-supernodes=8 client-resources-num-gpus=0.5").backend["client_resources"]
        {'num_cpus': 1, 'num_gpus': 0.5}
        """
        backend: dict[str, dict[str, Scalar]] = {
            "client_resources": {"num_cpus": 1, "num_gpus": 0},
            # a simulation of its own, also beside a running Ray cluster
            "init_args": {"address": "local"},
        }
        if jobs > 1:
            backend["init_args"]["num_cpus"] = max(1, (os.cpu_count() or 1) // jobs)
        supernodes = None
        for part in text.split():
            ((key, value),) = parse_setting(part).items()
            group, _, name = key.replace("-", "_").partition("_num_")
            if key == "num-supernodes" and isinstance(value, int):
                supernodes = value
            elif group in backend and name in ("cpus", "gpus"):
                backend[group][f"num_{name}"] = value
            else:
                raise SettingsError(
                    f"--federation-config {part}: nothing here goes by that"
                )
        return cls(supernodes, backend)

    def num_supernodes(self, config: Settings) -> int:
        """How many a run needs."""
        number = self.supernodes or config.get("num-devices")
        if not isinstance(number, int):
            raise SettingsError(
                "the app has no num-devices: say --federation-config 'num-supernodes=...'"
            )
        return number

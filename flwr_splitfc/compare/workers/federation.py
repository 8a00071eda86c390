"""How many devices a simulation has, and which resources each may use."""

import os
from dataclasses import dataclass
from typing import Any

from flwr_splitfc.settings import RunConfig, Scalar, check_scalar, parse_settings

# Names of --federation-config, and where Flower's backend_config has them.
_RESOURCES = {
    "client-resources-num-cpus": ("client_resources", "num_cpus"),
    "client-resources-num-gpus": ("client_resources", "num_gpus"),
    "init-args-num-cpus": ("init_args", "num_cpus"),
    "init-args-num-gpus": ("init_args", "num_gpus"),
}


@dataclass(frozen=True)
class Federation:
    """Settings of a simulation, as ``flwr run --federation-config`` has them.

    Parameters
    ----------
    supernodes : int, optional
        Their number; by default the ``num-devices`` of a run.
    backend : dict
        Flower's ``backend_config``.
    """

    supernodes: int | None
    backend: dict[str, Any]

    @classmethod
    def of(cls, text: str, jobs: int = 1) -> "Federation":
        """Read ``key=value ...``, for simulations side by side.

        Parameters
        ----------
        text : str
        jobs : int
            How many simulations share the CPU cores.

        Examples
        --------
        >>> text = "num-supernodes=8 client-resources-num-gpus=0.5"
        >>> Federation.of(text).backend["client_resources"]
        {'num_cpus': 1, 'num_gpus': 0.5}
        """
        supernodes = None
        backend = _default_backend(jobs)
        for key, value in parse_settings(text).items():
            dashed = key.replace("_", "-")
            if dashed == "num-supernodes" and isinstance(value, int):
                supernodes = value
            elif dashed in _RESOURCES:
                group, name = _RESOURCES[dashed]
                backend[group][name] = value
            else:
                raise ValueError(
                    f"--federation-config {key}={value}: unknown setting; use "
                    "num-supernodes, client-resources-num-*, init-args-num-*"
                )
        return cls(supernodes, backend)

    def num_supernodes(self, config: RunConfig) -> int:
        """Return how many SuperNodes a run needs."""
        number = self.supernodes or config.get("num-devices")
        if number is None:
            raise ValueError(
                "the app has no num-devices: "
                "say --federation-config 'num-supernodes=...'"
            )
        checked: int = check_scalar("num-devices", number, int)
        return checked


def _default_backend(jobs: int) -> dict[str, dict[str, Scalar]]:
    # A Ray cluster of its own, also beside one that is running.
    init_args: dict[str, Scalar] = {"address": "local"}
    if jobs > 1:
        cores = os.cpu_count() or 1
        init_args["num_cpus"] = max(1, cores // jobs)
    return {"client_resources": {"num_cpus": 1, "num_gpus": 0}, "init_args": init_args}

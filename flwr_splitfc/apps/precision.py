"""The precision in which the device's layers compute."""

import torch

from flwr_splitfc.settings import check_choice

PRECISIONS = ("float32", "bfloat16")
"""The values of the key ``device-precision``."""


def device_autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which layers on `device` run in `precision`.

    Raises
    ------
    ValueError
        If `precision` is none of `PRECISIONS`.
    """
    check_choice("device-precision", precision, PRECISIONS)
    reduced = precision != "float32"
    return torch.autocast(device.type, torch.bfloat16, enabled=reduced)

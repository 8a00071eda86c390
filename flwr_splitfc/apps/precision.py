"""The precision in which the device's layers compute."""

import torch
from torch import nn

from flwr_splitfc.model.structures import Structure, leaves_of
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


class InPrecision(nn.Module):
    """A module whose layers compute in a precision.

    Parameters
    ----------
    module : nn.Module
    precision : str
        One of `PRECISIONS`.
    """

    def __init__(self, module: nn.Module, precision: str) -> None:
        super().__init__()
        self.module = module
        self._precision = precision

    def forward(self, x: Structure) -> Structure:
        """Return the module's output."""
        device = leaves_of(x)[0].device
        with device_autocast(self._precision, device):
            return self.module(x)

"""Python's own documentation as text, and devices that have some of its topics each."""

from dataclasses import dataclass
from functools import lru_cache
from pydoc_data.topics import topics

import torch
from torch import Tensor

from flwr_splitfc.settings import RunConfig, check_least, read_settings

VOCABULARY = 128  # ASCII; other characters are question marks
TEST_EVERY = 8  # one topic in so many is on no device


@dataclass(frozen=True)
class TextSettings:
    """Which text devices learn from, in a run-config.

    Parameters
    ----------
    context_length : int
        Characters of a sample, T.
    num_devices : int
    """

    context_length: int = 64
    num_devices: int = 2

    def __post_init__(self) -> None:
        check_least(self, context_length=1, num_devices=1)


@dataclass(frozen=True, eq=False)
class Windows:
    """Pieces of a text, side by side.

    A character's label is the one that follows it.

    Parameters
    ----------
    text : Tensor
        Numbers of characters, uint8 (N,).
    length : int
        Characters of a piece, T.

    Examples
    --------
    >>> windows = Windows(encode("to be or not"), length=5)
    >>> characters, labels = windows[torch.tensor([1])]
    >>> bytes(characters[0].tolist()), bytes(labels[0].tolist())
    (b' or n', b'or no')
    """

    text: Tensor
    length: int

    def __len__(self) -> int:
        return (len(self.text) - 1) // self.length

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        places = indices[:, None] * self.length + torch.arange(self.length + 1)
        pieces = self.text[places].long()  # (B, T + 1)
        return pieces[:, :-1], pieces[:, 1:]


def encode(text: str) -> Tensor:
    """Return the numbers of a text's characters, uint8 (N,)."""
    return torch.frombuffer(bytearray(text, "ascii", "replace"), dtype=torch.uint8)


@lru_cache(maxsize=1)
def text_of(names: tuple[str, ...]) -> Tensor:
    """Return topics one after the other."""
    return encode("\n".join(topics[name] for name in names))


def training_topics() -> list[str]:
    """Return the names of the topics that devices share."""
    return [name for number, name in enumerate(sorted(topics)) if number % TEST_EVERY]


def device_windows(config: RunConfig, device: int) -> Windows:
    """Return the topics of device number `device` (its partition-id).

    They are dealt to the run's devices in turn.
    """
    settings = read_settings(TextSettings, config)
    num_devices = settings.num_devices
    names = training_topics()
    if num_devices > len(names):
        raise ValueError(
            f"num-devices is {num_devices}, and there are {len(names)} topics to share"
        )
    if not 0 <= device < num_devices:
        raise ValueError(
            f"device {device} has no share: num-devices is {num_devices}, "
            "start as many SuperNodes"
        )
    return _windows(names[device::num_devices], settings.context_length)


def held_out_windows(config: RunConfig) -> Windows:
    """Return the topics that no device has."""
    settings = read_settings(TextSettings, config)
    return _windows(sorted(topics)[::TEST_EVERY], settings.context_length)


def _windows(names: list[str], length: int) -> Windows:
    windows = Windows(text_of(tuple(names)), length)
    if len(windows) == 0:
        raise ValueError(
            f"context-length is {length}: {', '.join(names)} "
            f"have {len(windows.text)} characters in all"
        )
    return windows

"""Device halves that learn from a loss of their own.

The loss is that of an auxiliary head after the device half
(https://arxiv.org/abs/1901.08164). The server half learns from the features, and its
gradient is not needed. The head is trained with the device half and not kept.
"""

from collections.abc import Iterable, Sequence
from math import prod

from torch import Tensor, nn

from flwr_splitfc.model.structures import Structure

_DEVICE, _AUXILIARY = "device.", "auxiliary."


class DecoupledHalf(nn.Module):
    """A device half with an auxiliary head, which takes its features.

    Its ``state_dict`` holds their entries under ``device.`` and ``auxiliary.``.

    Parameters
    ----------
    device : nn.Module
        The layers up to the cut.
    auxiliary : nn.Module
        The head, whose outputs the device's loss takes.

    Examples
    --------
    >>> import torch
    >>> half = DecoupledHalf(nn.Linear(4, 3), nn.Linear(3, 2))
    >>> features = half(torch.zeros(5, 4))
    >>> features.shape, half.auxiliary(features).shape
    (torch.Size([5, 3]), torch.Size([5, 2]))
    """

    def __init__(self, device: nn.Module, auxiliary: nn.Module) -> None:
        super().__init__()
        self.device = device
        self.auxiliary = auxiliary

    def forward(self, x: Structure) -> Structure:
        """Return the features of a batch of inputs."""
        return self.device(x)


class AuxiliaryHead(nn.Sequential):
    """A small auxiliary head: features are averaged over space, and one linear layer.

    Parameters
    ----------
    feature_shape : sequence of int
        Of a sample's features: (C,), (C, L), (C, H, W) or (C, D, H, W).
    outputs : int
        Such as the number of classes.
    positions : int (default: 4)
        How many of each dimension of space the head tells apart, at most. With more it
        is larger, and device halves learn better.

    Examples
    --------
    >>> import torch
    >>> head = AuxiliaryHead((32, 6, 6), 10)
    >>> head(torch.zeros(5, 32, 6, 6)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self, feature_shape: Sequence[int], outputs: int, positions: int = 4
    ) -> None:
        channels, *space = feature_shape
        pooled = [min(size, positions) for size in space]
        layers: list[nn.Module] = [nn.Flatten()]
        if pooled:
            layers.insert(0, _pool(pooled))
        layers.append(nn.Linear(channels * prod(pooled), outputs))
        super().__init__(*layers)


def _pool(shape: Sequence[int]) -> nn.Module:
    pools = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
    if len(shape) > len(pools):
        raise ValueError(
            f"features have {len(shape)} dimensions of space, wanted 3 at most"
        )
    pool: nn.Module = pools[len(shape) - 1](tuple(shape))
    return pool


def without_auxiliary(entries: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return the device half's own entries of a `DecoupledHalf`'s state dict.

    >>> half = DecoupledHalf(nn.Linear(4, 3), nn.Linear(3, 2))
    >>> list(without_auxiliary(half.state_dict().items()))
    ['weight', 'bias']
    """
    return {
        name.removeprefix(_DEVICE): tensor
        for name, tensor in entries
        if not name.startswith(_AUXILIARY)
    }

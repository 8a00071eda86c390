"""The two halves as one model."""

from collections.abc import Iterable

from torch import Tensor, nn


class JoinedModel(nn.Module):
    """The device half followed by the server half, as if never split.

    Its ``state_dict`` holds the halves' own entries under ``device.`` and ``server.``.

    Parameters
    ----------
    device : nn.Module
        The layers up to the cut.
    server : nn.Module
        The layers after it.

    Examples
    --------
    >>> import torch
    >>> joined = JoinedModel(nn.Linear(4, 3), nn.Linear(3, 2))
    >>> joined(torch.zeros(5, 4)).shape, list(joined.state_dict())[0]
    (torch.Size([5, 2]), 'device.weight')
    """

    def __init__(self, device: nn.Module, server: nn.Module) -> None:
        super().__init__()
        self.device = device
        self.server = server

    def forward(self, x: Tensor) -> Tensor:
        """The model's output for a batch of inputs."""
        out: Tensor = self.server(self.device(x))
        return out


def joined_state_dict(device: Iterable[tuple[str, Tensor]], server: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The `JoinedModel` state dict of two halves' entries, on the CPU."""
    return {
        f"{half}.{name}": tensor.detach().cpu()
        for half, entries in (("device", device), ("server", server))
        for name, tensor in entries
    }

"""The parts of a cut model, joined again."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from flwr_splitfc.model.cutting import beginning_of, check_meeting, end_of
from flwr_splitfc.model.structures import mapped


class HeadAndTail(nn.Module):
    """The first and the last layers of a model, on a device; the server has the middle.

    Its ``state_dict`` holds their entries under ``head.`` and ``tail.``.

    Parameters
    ----------
    head : nn.Module
        The layers up to the server's.
    tail : nn.Module
        The layers after them.

    Examples
    --------
    >>> import torch
    >>> device = HeadAndTail(nn.Linear(4, 3), nn.Linear(3, 2))
    >>> device(torch.zeros(5, 4), nn.Identity()).shape, list(device.state_dict())[0]
    (torch.Size([5, 2]), 'head.weight')
    """

    def __init__(self, head: nn.Module, tail: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.tail = tail

    def forward(self, x: Tensor, server: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the model's output for a batch of inputs.

        `server` computes the middle; `Session.forward` is such a function.
        """
        features = self.head(x)
        outputs: Tensor = self.tail(server(features))
        return outputs


class JoinedModel(nn.Module):
    """The device half followed by the server half, as if never split.

    Its ``state_dict`` holds the halves' own entries under ``device.`` and ``server.``.

    Parameters
    ----------
    device : nn.Module
        The layers up to the cut; or a `HeadAndTail`, with the server half in between.
    server : nn.Module
        The layers after the cut.

    Raises
    ------
    ValueError
        If `split_at` made both, and one does not begin where the other ends.

    Examples
    --------
    >>> import torch
    >>> joined = JoinedModel(nn.Linear(4, 3), nn.Linear(3, 2))
    >>> joined(torch.zeros(5, 4)).shape, list(joined.state_dict())[0]
    (torch.Size([5, 2]), 'device.weight')
    """

    def __init__(self, device: nn.Module, server: nn.Module) -> None:
        super().__init__()
        check_cuts(device, beginning_of(server), end_of(server))
        self.device = device
        self.server = server

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the model's output for a batch of inputs."""
        if isinstance(self.device, HeadAndTail):
            return self.device(*inputs, **named, server=self.server)
        return self.server(self.device(*inputs, **named))


def check_cuts(device: nn.Module, beginning: str, end: str) -> None:
    """Refuse a device half, or its parts, that do not meet the server half.

    Parameters
    ----------
    device : nn.Module
    beginning, end : str
        Of the server half, as of `beginning_of` and `end_of`.

    Raises
    ------
    ValueError
    """
    if isinstance(device, HeadAndTail):
        check_meeting(end, beginning_of(device.tail))
        device = device.head
    check_meeting(end_of(device), beginning)


def joined_state_dict(
    device: Iterable[tuple[str, Tensor]], server: Iterable[tuple[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the state dict of a `JoinedModel` on the CPU, from its halves' entries."""
    joined: dict[str, Tensor] = {}
    for name, tensor in device:
        joined[f"device.{name}"] = on_cpu(tensor)
    for name, tensor in server:
        joined[f"server.{name}"] = on_cpu(tensor)
    return joined


def on_cpu(entry: Any) -> Any:
    """Return an entry of a state dict, on the CPU.

    What a module's ``get_extra_state`` gives may be no tensor, and is left as it is.
    """
    return mapped(entry, _tensor_on_cpu)


def _tensor_on_cpu(leaf: Any) -> Any:
    return leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf

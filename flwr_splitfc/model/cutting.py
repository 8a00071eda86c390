"""Cutting a model in two halves, and joining them."""

from collections import OrderedDict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

LossFn = Callable[[Tensor, Tensor], Tensor]
"""``loss_fn(outputs, labels)`` gives a scalar."""

OptimizerFn = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""``optimizer(parameters)`` makes an optimizer."""

SchedulerFn = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
"""``scheduler(optimizer)`` makes a learning-rate scheduler."""

_MODE_ARGUMENTS = ("training", "use_input_stats")


class HeadAndTail(nn.Module):
    """What a device has of a model of which the server has the middle: the first layers and the last.

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
        """The model's output for a batch of inputs; `server` is the middle, such as `Session.forward`."""
        out: Tensor = self.tail(server(self.head(x)))
        return out


class JoinedModel(nn.Module):
    """The device half followed by the server half, as if never split.

    Its ``state_dict`` holds the halves' own entries under ``device.`` and ``server.``.

    Parameters
    ----------
    device : nn.Module
        The layers up to the cut; or a `HeadAndTail`, with the server half in between.
    server : nn.Module
        The layers after the cut.

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
        ends = isinstance(self.device, HeadAndTail)
        out: Tensor = (
            self.device(x, self.server) if ends else self.server(self.device(x))
        )
        return out

    def unsplit_state_dict(self) -> dict[str, Tensor]:
        """The entries of both halves under their own names: for halves of `split_at`, the model's that was cut.

        Raises
        ------
        ValueError
            If both halves have an entry of the same name.
        """
        merged: dict[str, Tensor] = {}
        ends = (
            list(self.device.children())
            if isinstance(self.device, HeadAndTail)
            else [self.device]
        )
        for entries in (part.state_dict() for part in (*ends, self.server)):
            if both := merged.keys() & entries.keys():
                raise ValueError(
                    f"both halves have {', '.join(sorted(both))}: they were not made by split_at"
                )
            merged |= entries
        return merged


def joined_state_dict(
    device: Iterable[tuple[str, Tensor]], server: Iterable[tuple[str, Tensor]]
) -> dict[str, Tensor]:
    """The `JoinedModel` state dict of two halves' entries, on the CPU."""
    return {
        f"{half}.{name}": tensor.detach().cpu()
        for half, entries in (("device", device), ("server", server))
        for name, tensor in entries
    }


def split_at(model: nn.Module, layer: str | int) -> tuple[nn.Module, nn.Module]:
    """Cut a model after a layer.

    Parameters
    ----------
    model : nn.Module
        An ``nn.Sequential``, or any module that `torch.fx` can trace and whose data
        passes the cut as one tensor.
    layer : str or int
        The last layer of the device half: its name as in ``model.named_modules()``,
        such as ``"layer2"`` of a ResNet, or its number in an ``nn.Sequential``.

    Returns
    -------
    tuple of nn.Module
        The device half and the server half. They share the model's parameters, and
        their entries keep its names.

    Raises
    ------
    ValueError
        If there is no such layer, or the model cannot be cut there; the message says
        why.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> device, server = split_at(model, 1)
    >>> list(device.state_dict()), list(server.state_dict())
    (['0.weight', '0.bias'], ['2.weight', '2.bias'])
    """
    name = str(layer)
    if isinstance(layer, int) and isinstance(model, nn.Sequential):
        name = [child for child, _ in model.named_children()][layer]
    if name not in dict(model.named_modules()) or not name:
        children = ", ".join(child for child, _ in model.named_children())
        raise ValueError(
            f"the model has no layer {layer!r}; its outermost layers are {children}"
        )
    if isinstance(model, nn.Sequential) and "." not in name:
        return _split_sequential(model, name)
    return _split_graph(model, name)


def _split_sequential(
    model: nn.Sequential, name: str
) -> tuple[nn.Sequential, nn.Sequential]:
    children = list(model.named_children())
    cut = [child for child, _ in children].index(name) + 1
    if cut == len(children):
        raise ValueError(
            f"{name!r} is the model's last layer: nothing is left for the server half"
        )
    return nn.Sequential(OrderedDict(children[:cut])), nn.Sequential(
        OrderedDict(children[cut:])
    )


class _CutTracer(fx.Tracer):
    """Keeps the layer before the cut whole."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name == self.layer or super().is_leaf_module(
            m, module_qualified_name
        )


def _split_graph(model: nn.Module, name: str) -> tuple[nn.Module, nn.Module]:
    graph = _trace(model, name)
    cut = _only_call(graph, name)
    before = _needed_for(cut)
    device, server = fx.Graph(), fx.Graph()
    placed: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in before:
            placed[node] = device.node_copy(node, placed.__getitem__)
    device.output(placed[cut])

    placed = {cut: server.placeholder("features")}
    for node in graph.nodes:
        used_after = any(user not in before for user in node.users)
        if node in before and not (node.op == "get_attr" and used_after):
            continue
        if lost := [arg.name for arg in node.all_input_nodes if arg not in placed]:
            raise ValueError(
                f"the model cannot be cut after {name!r}: {node.name} also needs {', '.join(lost)}"
            )
        placed[node] = server.node_copy(node, placed.__getitem__)

    if shared := _modules(device) & _modules(server):
        raise ValueError(
            f"the model cannot be cut after {name!r}: {', '.join(sorted(shared))} is used on both sides"
        )
    return fx.GraphModule(model, device, "DeviceHalf"), fx.GraphModule(
        model, server, "ServerHalf"
    )


def _trace(model: nn.Module, name: str) -> fx.Graph:
    try:
        graph = _CutTracer(name).trace(model)
    except Exception as error:
        raise ValueError(
            f"the model cannot be cut after {name!r}, because torch.fx cannot trace it ({error}): "
            "write its halves as two modules"
        ) from error
    for node in graph.nodes:
        fixed = [key for key in _MODE_ARGUMENTS if key in node.kwargs]
        if node.op == "call_function" and (fixed or node.target is functional.dropout):
            raise ValueError(
                f"the model cannot be cut by tracing: {node.name} would keep today's training mode for ever; "
                "use the module (nn.Dropout, ...) instead of the function"
            )
    return graph


def _only_call(graph: fx.Graph, name: str) -> fx.Node:
    calls: list[fx.Node] = [
        node for node in graph.nodes if node.op == "call_module" and node.target == name
    ]
    if len(calls) != 1:
        raise ValueError(
            f"the model cannot be cut after {name!r}: it is called {len(calls)} times in a pass, not once"
        )
    return calls[0]


def _needed_for(node: fx.Node) -> set[fx.Node]:
    needed, todo = {node}, [node]
    while todo:
        new = [arg for arg in todo.pop().all_input_nodes if arg not in needed]
        needed.update(new)
        todo += new
    return needed


def _modules(graph: fx.Graph) -> set[str]:
    return {
        str(node.target)
        for node in graph.nodes
        if node.op in ("call_module", "get_attr")
    }

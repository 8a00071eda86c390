"""Cutting a model by its graph, as `torch.fx` traces it.

The device half gets the nodes that the cut layer's output depends on, the server half
all others. Two things make a cut impossible: a node of the server half that needs more
of the device half than the cut layer's output, as one tensor alone passes the cut; and
a layer with parameters, or a tensor of the model, that both halves use, as each is
trained on one side.
"""

import re

from torch import fx, nn
from torch.nn import functional

_MODE_ARGUMENTS = ("training", "use_input_stats")


def split_traced(model: nn.Module, name: str) -> tuple[nn.Module, nn.Module]:
    """Cut a model after its layer `name`, or after one of its calls (`call_of`).

    Raises
    ------
    ValueError
        If it cannot be traced, or cannot be cut there.
    """
    called, number = call_of(name)
    if name in dict(model.named_modules()):
        called, number = name, None
    graph = _trace(model, called)
    cut = _call(graph, called, number)
    before = _needed_for(cut)
    device = _device_graph(graph, cut, before)
    server = _server_graph(graph, cut, before)
    both = _modules(device) & _modules(server)
    shared = sorted(target for target in both if not _is_stateless(model, target))
    if shared:
        raise ValueError(
            f"the model cannot be cut after {name!r}: "
            f"{', '.join(shared)} is used on both sides"
        )
    return (
        fx.GraphModule(model, device, "DeviceHalf"),
        fx.GraphModule(model, server, "ServerHalf"),
    )


def call_of(name: str) -> tuple[str, int | None]:
    """Return the layer and the number of its call that `name` means.

    >>> call_of("layer1.pool_2"), call_of("pool")
    (('layer1.pool', 2), ('pool', None))
    """
    match = re.fullmatch(r"(.+)_(\d+)", name)
    return (match[1], int(match[2])) if match else (name, None)


def _is_stateless(model: nn.Module, target: str) -> bool:
    """Whether a layer has nothing to train or to count: both halves may use it."""
    layer = dict(model.named_modules()).get(target)
    return layer is not None and not layer.state_dict()


class _CutTracer(fx.Tracer):
    """A tracer that keeps the layer before the cut whole.

    Traced through, a layer such as a ResNet's ``layer2`` would be many nodes, none of
    which has its name.
    """

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name == self.layer:
            return True
        return super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module, name: str) -> fx.Graph:
    try:
        graph = _CutTracer(name).trace(model)
    except Exception as error:
        raise ValueError(
            f"the model cannot be cut after {name!r}, "
            f"because torch.fx cannot trace it ({error}): "
            "write its halves as two modules"
        ) from error
    for node in graph.nodes:
        if _has_fixed_mode(node):
            raise ValueError(
                f"the model cannot be cut by tracing: {node.name} would keep today's "
                "training mode for ever; "
                "use the module (nn.Dropout, ...) instead of the function"
            )
    return graph


def _has_fixed_mode(node: fx.Node) -> bool:
    """Whether a node is a function that was traced for one mode, training or not."""
    if node.op != "call_function":
        return False
    # its mode may be positional, or its default
    if node.target is functional.dropout:
        return True
    return any(argument in node.kwargs for argument in _MODE_ARGUMENTS)


def _call(graph: fx.Graph, name: str, number: int | None) -> fx.Node:
    """Return a call of a layer: its only one, or that of a number from 0."""
    calls: list[fx.Node] = []
    for node in graph.nodes:
        if node.op == "call_module" and node.target == name:
            calls.append(node)
    if number is None and len(calls) == 1:
        return calls[0]
    if number is not None and number < len(calls):
        return calls[number]
    choices = [f"{name}_{call}" for call in range(len(calls))]
    wanted = f": name one of {', '.join(choices)}" if calls else ""
    raise ValueError(
        f"the model cannot be cut after {name!r}: "
        f"it is called {len(calls)} times in a pass{wanted}"
    )


def _needed_for(node: fx.Node) -> set[fx.Node]:
    """Return a node and all that it depends on."""
    needed = {node}
    unvisited = [node]
    while unvisited:
        for argument in unvisited.pop().all_input_nodes:
            if argument not in needed:
                needed.add(argument)
                unvisited.append(argument)
    return needed


def _device_graph(graph: fx.Graph, cut: fx.Node, before: set[fx.Node]) -> fx.Graph:
    device = fx.Graph()
    placed: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in before:
            placed[node] = device.node_copy(node, placed.__getitem__)
    device.output(placed[cut])  # nothing else leaves it
    return device


def _server_graph(graph: fx.Graph, cut: fx.Node, before: set[fx.Node]) -> fx.Graph:
    server = fx.Graph()
    placed = {cut: server.placeholder("features")}
    for node in graph.nodes:
        if node in before and not _is_tensor_used_after(node, before):
            continue
        lost = [arg.name for arg in node.all_input_nodes if arg not in placed]
        if lost:
            raise ValueError(
                f"the model cannot be cut after {cut.target!r}: "
                f"{node.name} also needs {', '.join(lost)}"
            )
        placed[node] = server.node_copy(node, placed.__getitem__)
    return server


def _is_tensor_used_after(node: fx.Node, before: set[fx.Node]) -> bool:
    """Whether a node before the cut is a tensor of the model that the rest uses, too.

    It goes to the server half as well, so that `split_traced` finds it on both sides.
    """
    if node.op != "get_attr":
        return False
    return any(user not in before for user in node.users)


def _modules(graph: fx.Graph) -> set[str]:
    """Return the names of the layers and tensors of the model that a graph uses."""
    return {
        str(node.target)
        for node in graph.nodes
        if node.op in ("call_module", "get_attr")
    }

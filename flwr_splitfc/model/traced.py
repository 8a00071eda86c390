"""Cutting a model by its graph, as `torch.fx` traces it.

Only the model and the containers of the cut layer are traced; the other layers are
nodes of the graph as a whole, whatever they do within. The device half gets the inputs
and the nodes that the cut layer's output depends on, the server half all others. Two
things make a cut impossible: a node of the server half that needs more of the device
half than passes the cut; and a layer with parameters, or a tensor of the model, that
both halves use, as each is trained on one side.

A graph holds what the model's code did in one pass. So the model is traced in training
mode and in evaluation mode, and only cut if both passes did the same: what depends on
the mode is then within layers, which the halves have as they are.
"""

import inspect
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial, wraps
from itertools import chain
from threading import Lock
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from flwr_splitfc.model.cut_tracer import (
    IN_PLACE,
    CutTracer,
    Lost,
    TorchDraws,
    Undecided,
    generator_states,
    is_container,
)
from flwr_splitfc.model.structures import leaves_of

_BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", *_BACKWARD_HOOKS)

_FACTORIES = ("arange", "empty", "eye", "full", "linspace", "ones", "zeros")
"""Functions of torch that take sizes, and make a tensor of them."""

_PASSES = 5
"""How often a pass is traced until nothing is drawn meanwhile."""

_TRACING = Lock()


def split_traced(
    model: nn.Module, name: str, also: Sequence[str], inputs: Sequence[str] | None
) -> tuple[nn.Module, nn.Module]:
    """Cut a model after its layer `name`, or after one of its calls (`call_of`).

    Parameters
    ----------
    model : nn.Module
    name : str
    also : sequence of str
        What else passes the cut: layers, their calls, or nodes as messages name them.
    inputs : sequence of str or None
        The arguments of ``model.forward`` that batches bring; None: those without a
        default.

    Raises
    ------
    ValueError
        If it cannot be traced, or cannot be cut there.
    """
    given = _inputs(model) if inputs is None else inputs
    layers = [name, *also]
    _check_hooks(model, layers)
    with _restored(model) as restore:
        graph = _trace(model, name, partial(CutTracer, layers, given), restore)
        return _halves(model, graph, layers)


def has_hooks(module: nn.Module, kinds: Sequence[str] = _HOOKS) -> bool:
    """Whether a module has hooks of its passes."""
    # torch has no public way to ask
    return any(getattr(module, kind) for kind in kinds)


def _check_hooks(model: nn.Module, layers: Sequence[str]) -> None:
    """Refuse hooks that would be lost: the graph has nothing that they belong to.

    Forward hooks of containers are traced, as part of what these do.

    Raises
    ------
    ValueError
    """
    hooked = []
    if has_hooks(model):
        hooked.append("the model itself")
    for name, module in model.named_modules():
        if is_container(name, layers) and has_hooks(module, _BACKWARD_HOOKS):
            hooked.append(name)
    if hooked:
        raise ValueError(
            f"the model cannot be cut after {layers[0]!r}: neither half would have the "
            f"hooks of {', '.join(hooked)}: remove them, or register them on layers"
        )


def _halves(
    model: nn.Module, graph: fx.Graph, layers: Sequence[str]
) -> tuple[nn.Module, nn.Module]:
    passing = {one: _node(model, graph, one) for one in layers}
    # a device has all inputs, those too that only the rest of the model needs
    inputs = graph.find_nodes(op="placeholder")
    before = _with_checks(graph, _needed_for([*inputs, *passing.values()]))
    _check_lost(graph, passing, before)
    _check_order(model, graph, layers[0], before)
    device = _device_graph(graph, passing, before)
    server = _server_graph(graph, passing, before)
    both = _modules(device) & _modules(server)
    shared = sorted(target for target in both if not _is_stateless(model, target))
    if shared:
        raise ValueError(
            f"the model cannot be cut after {layers[0]!r}: "
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


def _inputs(model: nn.Module) -> list[str]:
    """Return the arguments of a model that have no default."""
    arguments = inspect.signature(model.forward).parameters.values()
    needed = []
    for argument in arguments:
        is_named = argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
        if is_named and argument.default is argument.empty:
            needed.append(argument.name)
    if not needed:
        choices = ", ".join(argument.name for argument in arguments)
        raise ValueError(
            f"all of the model's inputs have defaults: name those that batches bring, "
            f"inputs=(...), of {choices}"
        )
    return needed


def _is_stateless(model: nn.Module, target: str) -> bool:
    """Whether a layer has nothing to train or to count: both halves may use it."""
    layer = dict(model.named_modules()).get(target)
    return layer is not None and not layer.state_dict()


@contextmanager
def _restored(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Leave a model as it was, and give a function that makes it so in between.

    In a pass torch.fx keeps constants on the model, and the model's own code whatever
    it likes; its modules' modes are set.
    """
    attributes = {module: dict(vars(module)) for module in model.modules()}
    buffers = {module: dict(module._buffers) for module in model.modules()}
    values = [
        (buffer, _version(buffer), buffer.clone())
        for buffer in model.buffers()
        if not is_lazy(buffer)
    ]

    def restore() -> None:
        for module, before in attributes.items():
            vars(module).clear()
            vars(module).update(before)
            module._buffers.clear()
            module._buffers.update(buffers[module])
        with torch.no_grad():
            for buffer, version, value in values:
                if _version(buffer) != version:
                    buffer.copy_(value)

    try:
        yield restore
    finally:
        restore()


def _trace(
    model: nn.Module,
    name: str,
    make_tracer: Callable[[Sequence[bool]], fx.Tracer],
    restore: Callable[[], None],
) -> fx.Graph:
    """Return the graph of both modes' passes, and leave its constants on the model.

    Raises
    ------
    ValueError
        If it cannot be traced, or the modes' passes differ.
    """

    def trace(mode: bool, answers: Sequence[bool]) -> fx.Graph:
        restore()
        for module in model.modules():
            # not by `train`, which may do more in a class of its own
            vars(module)["training"] = mode
        before = _versions(model)
        graph = make_tracer(answers).trace(model)
        _check_unchanged(before, _versions(model))
        return graph

    passes = []
    # today's mode last: the halves take it from the model
    modes = (not model.training, model.training)
    try:
        with _traced_factories():
            for mode in modes:
                graph = _undrawn(partial(_past_guards, partial(trace, mode)))
                passes.append((graph, _tensors(model, graph)))
    except Lost as error:
        raise ValueError(f"the model cannot be cut after {name!r}: {error}") from error
    except Exception as error:
        raise ValueError(
            f"the model cannot be cut after {name!r}, "
            f"because torch.fx cannot trace it ({error}): "
            "write its halves as two modules"
        ) from error
    _check_same(*passes)
    return graph


def _versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return which tensors a model has by name, and how often each was changed."""
    named = chain(model.named_parameters(), model.named_buffers())
    return {name: (id(tensor), _version(tensor)) for name, tensor in named}


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place, where torch counts that."""
    return 0 if tensor.is_inference() else tensor._version


def _check_unchanged(
    before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]
) -> None:
    """Refuse a pass that changes the model itself: it did so now, and never again.

    Raises
    ------
    Lost
    """
    changed = [name for name, version in before.items() if after.get(name) != version]
    if changed:
        raise Lost(
            f"its forward changes {changed[0]!r}, which would stay as it is in a half: "
            "change it in a layer, which stays whole"
        )


def _tensors(model: nn.Module, graph: fx.Graph) -> dict[str, Any]:
    """Return what a graph takes from the model: parameters, buffers, constants."""
    return {
        node.target: operator.attrgetter(node.target)(model)
        for node in graph.nodes
        if node.op == "get_attr"
    }


_Pass = tuple[fx.Graph, dict[str, Any]]
"""A graph and its tensors."""


def _check_same(one: _Pass, other: _Pass) -> None:
    """Refuse a model that does one thing in one mode and another in the other.

    Raises
    ------
    ValueError
    """
    # the longer one has what is done in its mode alone
    (longer, tensors), (shorter, others) = sorted(
        (one, other), key=lambda traced: -len(traced[0].nodes)
    )
    # graphs end in their outputs, so none is the other's beginning
    for node, counterpart in zip(longer.nodes, shorter.nodes, strict=False):
        is_same = _step(node) == _step(counterpart)
        key = str(node.target)
        if not is_same or _differ(tensors.get(key), others.get(key)):
            raise ValueError(
                f"the model cannot be cut by tracing: {node.name} is not the same in "
                "training and in evaluation, and would keep today's training mode for "
                "ever; use a module for it (nn.Dropout, ...)"
            )


def _step(node: fx.Node) -> tuple[Any, ...]:
    """Return what a node does; nodes have names by their order."""
    # as text, in which 1 is not True, and nan is nan
    arguments = repr((node.args, node.kwargs))
    return node.name, node.op, node.target, arguments


def _differ(one: Any, other: Any) -> bool:
    if one is other or not isinstance(one, Tensor):
        return False
    return one.dtype != other.dtype or not torch.equal(one, other)


def _undrawn(trace: Callable[[], fx.Graph]) -> fx.Graph:
    """Return the graph of a pass in which no random numbers were drawn.

    They would be the same for ever. Other threads may draw meanwhile, too. Of torch's
    generators it is known which thread does; of Python's and NumPy's it is taken that
    only the model draws in each pass.

    Raises
    ------
    Lost
    """
    for _ in range(_PASSES):
        before = generator_states()
        with TorchDraws() as draws:
            graph = trace()
        after = generator_states()
        if not draws.seen:
            before = before._replace(torch=after.torch)
        if after == before:
            return graph
    raise Lost(
        "its forward draws random numbers, which would be the same in each batch: "
        "torch.rand_like(x) and the like of the batch are drawn anew, and so is what a "
        "layer draws"
    )


def _past_guards(trace: Callable[[Sequence[bool]], fx.Graph]) -> fx.Graph:
    """Return the graph of a pass in which no guard of the model's code raises.

    ``assert length <= self.longest`` is one, and ``if length > 512: raise ...``.
    Guards are in neither half.

    Parameters
    ----------
    trace : callable
        ``trace(answers)`` traces with answers to the conditions so far.

    Raises
    ------
    ValueError
        At a condition that is no guard.
    """
    answers: list[bool] = []
    while True:
        with suppress(Undecided):
            return trace(answers)
        passing = []
        for answer in (True, False):
            if not _raises(trace, [*answers, answer]):
                passing.append(answer)
        if len(passing) != 1:
            raise ValueError("what it computes depends on the batch's values or sizes")
        answers += passing


def _raises(
    trace: Callable[[Sequence[bool]], fx.Graph], answers: Sequence[bool]
) -> bool:
    try:
        trace(answers)
    except (Undecided, Lost):
        return False
    except Exception:
        return True
    return False


@contextmanager
def _traced_factories() -> Iterator[None]:
    """Trace ``torch.arange(length)`` and the like, where the length is traced.

    torch.fx cannot: their arguments are no tensors.
    """
    with _TRACING:
        originals = {name: getattr(torch, name) for name in _FACTORIES}
        for name, original in originals.items():
            setattr(torch, name, _traceable(original))
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(torch, name, original)


def _traceable(factory: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(factory)
    def made(*args: Any, **kwargs: Any) -> Any:
        for leaf in leaves_of((args, kwargs)):
            if isinstance(leaf, fx.Proxy):
                tracer = leaf.tracer
                return tracer.create_proxy("call_function", factory, args, kwargs)
        return factory(*args, **kwargs)

    return made


def _node(model: nn.Module, graph: fx.Graph, name: str) -> fx.Node:
    """Return a call of a layer, or the node of a name."""
    called, number = call_of(name)
    modules = dict(model.named_modules())
    if name in modules:
        return _call(graph, name, None)
    if called in modules:
        return _call(graph, called, number)
    nodes: dict[str, fx.Node] = {node.name: node for node in graph.nodes}
    if name not in nodes:
        names = ", ".join(nodes)
        raise ValueError(f"the model has nothing named {name!r}; it has {names}")
    return nodes[name]


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


def _needed_for(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Return nodes and all that they depend on."""
    unvisited = list(nodes)
    needed = set(unvisited)
    while unvisited:
        for argument in unvisited.pop().all_input_nodes:
            if argument not in needed:
                needed.add(argument)
                unvisited.append(argument)
    return needed


def _with_checks(graph: fx.Graph, before: set[fx.Node]) -> set[fx.Node]:
    """Return nodes, and those that only look at them: assertions, sizes not used."""
    *_, output = graph.nodes
    needed = _needed_for([output])
    with_checks = set(before)
    for node in graph.nodes:
        looks_at = node.all_input_nodes
        is_check = node not in needed and bool(looks_at)
        if is_check and with_checks.issuperset(looks_at):
            with_checks.add(node)
    return with_checks


def _check_lost(
    graph: fx.Graph, passing: dict[str, fx.Node], before: set[fx.Node]
) -> None:
    """Refuse a cut after which the server half lacks something.

    Raises
    ------
    ValueError
    """
    lost: list[str] = []
    users: list[str] = []
    passed = set(passing.values())
    for node in graph.nodes:
        for user in node.users:
            stays = node in before and node not in passed and node.op != "get_attr"
            if stays and user not in before:
                lost.append(node.name)
                users.append(user.name)
    if not lost:
        return
    layer, *also = passing
    more = tuple(dict.fromkeys([*also, *lost]))
    raise ValueError(
        f"the model cannot be cut after {layer!r}: {users[0]} also needs "
        f"{', '.join(dict.fromkeys(lost))}. To send them to the server, too: "
        f"split_at(model, {layer!r}, also={more})" + _warning_of_inputs(graph, lost)
    )


def _warning_of_inputs(graph: fx.Graph, names: Sequence[str]) -> str:
    """Say which of some nodes are the device's data, for a message."""
    inputs = [
        node.name
        for node in graph.nodes
        if node.op == "placeholder" and node.name in names
    ]
    if not inputs:
        return ""
    return (
        f". But the model's input {' and '.join(inputs)} is the device's own data, "
        "and would leave the device"
    )


def _check_order(
    model: nn.Module, graph: fx.Graph, name: str, before: set[fx.Node]
) -> None:
    """Refuse a cut that takes a change in place to the other side of another use.

    All of the device half is done before the server half begins. Changes of views are
    not seen.

    Raises
    ------
    ValueError
    """
    places = {node: place for place, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        changed = _changed(model, node)
        users = [] if changed is None else changed.users
        for user in users:
            first, second = sorted((node, user), key=places.__getitem__)
            turns_round = first not in before and second in before
            if turns_round and not _is_of_shape(user):
                raise ValueError(
                    f"the model cannot be cut after {name!r}: {node.name} changes "
                    f"{changed} in place, and {user.name} on the other side needs it "
                    "as it is in the whole model"
                )


def _changed(model: nn.Module, node: fx.Node) -> fx.Node | None:
    """Return the node whose tensor a node changes in place."""
    called = ""
    options: dict[str, Any] = dict(node.kwargs)
    if node.op == "call_method":
        called = str(node.target)
    elif node.op == "call_function":
        called = getattr(node.target, "__name__", "")
    elif node.op == "call_module":
        options = vars(model.get_submodule(str(node.target)))
    in_place = (
        node.target in IN_PLACE
        or re.search(r"[^_]_$", called)
        or options.get("inplace") is True
    )
    inputs = node.all_input_nodes
    return inputs[0] if in_place and inputs else None


def _is_of_shape(node: fx.Node) -> bool:
    """Whether a node takes what no change in place changes: shape, type, place."""
    return node.target in (getattr, "size", "dim")


def _device_graph(
    graph: fx.Graph, passing: dict[str, fx.Node], before: set[fx.Node]
) -> fx.Graph:
    device = fx.Graph()
    placed: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in before:
            placed[node] = device.node_copy(node, placed.__getitem__)
    leaving = {name: placed[node] for name, node in passing.items()}
    if len(leaving) == 1:
        (features,) = leaving.values()
        device.output(features)
    else:
        device.output(leaving)
    return device


def _server_graph(
    graph: fx.Graph, passing: dict[str, fx.Node], before: set[fx.Node]
) -> fx.Graph:
    server = fx.Graph()
    features = server.placeholder("features")
    placed: dict[fx.Node, fx.Node] = {}
    for name, node in passing.items():
        placed[node] = features
        if len(passing) > 1:
            placed[node] = server.call_function(operator.getitem, (features, name))
    for node in graph.nodes:
        if node in placed:
            continue
        if node not in before or _is_tensor_used_after(node, before):
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

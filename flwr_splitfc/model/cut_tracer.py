"""The tracer of a model that is to be cut: what its graph records, and refuses.

A graph holds what becomes of tensors. What else a pass depends on would be lost in
halves: modes of torch, and random numbers that are drawn while it is traced.
"""

import operator
import random
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

IN_PLACE = (
    operator.iadd,
    operator.isub,
    operator.imul,
    operator.itruediv,
    operator.ifloordiv,
    operator.imod,
    operator.ipow,
    operator.iand,
    operator.ior,
    operator.ixor,
)
"""What ``x += y`` and the like do."""

_AUTOCAST = ("cpu", "cuda", "mps", "xpu")


class Undecided(Exception):
    """Tracing came to a condition that depends on the batch."""


class Lost(Exception):
    """What the model's code does would be lost in halves."""


def _in_place(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], fx.Proxy]:
    def recorded(proxy: fx.Proxy, other: Any) -> fx.Proxy:
        arguments = (proxy, other)
        return proxy.tracer.create_proxy("call_function", operation, arguments, {})

    return recorded


class _CutProxy(fx.Proxy):
    """A proxy whose ``x += y`` changes x, as a tensor's does, for all its names.

    torch.fx makes ``x = x + y`` of it.
    """


for _operation in IN_PLACE:
    setattr(_CutProxy, f"__{_operation.__name__}__", _in_place(_operation))


class CutTracer(fx.Tracer):
    """A tracer of a model and the containers of some layers.

    Parameters
    ----------
    layers : sequence of str
        Those that are to be nodes of the graph, or calls of them.
    inputs : sequence of str
        The arguments that are nodes; others have their defaults.
    answers : sequence of bool
        To the conditions in the model's code that depend on the batch, in order.

    Notes
    -----
    While it traces, calls and parameters of all modules come to it, in all threads.
    Those of other threads are none of its model's pass.
    """

    def __init__(
        self, layers: Sequence[str], inputs: Sequence[str], answers: Sequence[bool]
    ) -> None:
        super().__init__()
        self._layers = layers
        self._inputs = inputs
        self._answers = iter(answers)
        self._thread = get_ident()
        self._modes = _modes()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _CutProxy(node, self)

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if kind.startswith("call_") and _modes() != self._modes:
            raise Lost(
                f"{getattr(target, '__name__', target)} runs in a mode of its own, as "
                "by torch.no_grad() or torch.autocast, and would not in a half: freeze "
                "by requires_grad_(False) or .detach(), or make it a layer, which "
                "stays whole"
            )
        return super().create_node(kind, target, *args, **kwargs)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(
        self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]
    ) -> Any:
        if get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        answer = next(self._answers, None)
        if answer is None:
            raise Undecided
        return answer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not is_container(module_qualified_name, self._layers)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        given = {}
        for name in self._inputs:
            given[name] = self.create_proxy("placeholder", name, (), {})

        def forward(model: nn.Module) -> Any:
            # not `root_fn`, the class's: `forward` may be an attribute of this model
            return model.forward(**given)

        return forward, [self.root]


def _modes() -> tuple[Any, ...]:
    """Return the modes of torch that a pass may change, which no graph holds."""
    casts = [
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        for kind in _AUTOCAST
    ]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *casts


def is_container(name: str, layers: Sequence[str]) -> bool:
    """Whether the module of a name holds one of some layers."""
    return any(layer.startswith(f"{name}.") for layer in layers)


class GeneratorStates(NamedTuple):
    """The states of the global generators, which all threads draw from."""

    python: Any
    numpy: tuple[bytes, int]
    torch: list[bytes]


def generator_states() -> GeneratorStates:
    """Return the states of the global generators."""
    _, keys, place, *_ = np.random.get_state(legacy=True)
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    of_torch = [state.numpy().tobytes() for state in states]
    of_numpy = np.asarray(keys).tobytes(), int(place)
    return GeneratorStates(random.getstate(), of_numpy, of_torch)


class TorchDraws(TorchDispatchMode):
    """While entered, notes whether this thread draws from torch's global generators.

    Attributes
    ----------
    seen : bool
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        is_global = given.get("generator") in (None, torch.default_generator)
        if is_global and torch.Tag.nondeterministic_seeded in func.tags:
            self.seen = True
        return func(*args, **given)

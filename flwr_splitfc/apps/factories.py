"""The functions by which a user's app makes the parts of its model."""

from collections.abc import Callable
from inspect import Parameter, signature

from flwr.app import Context
from torch import nn

from flwr_splitfc.model.part_checks import check_factory

MakeModel = Callable[[], nn.Module] | Callable[[Context], nn.Module]
"""Makes a part of a model: ``factory()``, or ``factory(context)``."""


def check_factories(**factories: object) -> None:
    """Refuse factories that make no part; None is one that is not given.

    Raises
    ------
    ValueError
    """
    for name, factory in factories.items():
        if factory is not None:
            check_factory(name, factory, f"{name}()", "lambda: nn.Linear(64, 10)")


def make_half(factory: Callable[..., nn.Module], context: Context) -> nn.Module:
    """Call a factory, with the context if it has a parameter to fill."""
    parameters = signature(factory).parameters.values()
    if any(_must_be_filled(parameter) for parameter in parameters):
        return factory(context)
    return factory()


def _must_be_filled(parameter: Parameter) -> bool:
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    has_default = parameter.default is not Parameter.empty
    return not has_default and parameter.kind not in variadic


def tail_of(tail: MakeModel | None, context: Context) -> MakeModel | None:
    """Return the app's `tail` if the device has the last layers, else None.

    They are the server's if there is no `tail`, or if the run-config says ``u-shaped =
    false``.

    Raises
    ------
    ValueError
        If the run-config says ``u-shaped = true`` and there is no `tail`.
    """
    u_shaped = context.run_config.get("u-shaped", tail is not None)
    if not u_shaped:
        return None
    if tail is None:
        raise ValueError(
            "u-shaped is true, but the app has no tail to give the devices"
        )
    return tail

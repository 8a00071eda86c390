"""Models of which a few parameters train, such as adapters."""

from typing import Any, TypeVar

from torch import nn

_Model = TypeVar("_Model", bound=nn.Module)


def trained_only(model: _Model) -> _Model:
    """Leave what does not train out of a model's state dict, and return the model.

    That is parameters without ``requires_grad``, as those that LoRA's adapters are
    beside. A state dict without them can be loaded, too: they stay as they are. So
    neither Flower's messages nor files hold them, and both sides have to make them
    alike.

    Parameters
    ----------
    model : nn.Module
        A whole model or a half. Parts of it that are cut off later have to go through
        this function themselves.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 3).requires_grad_(False), nn.Linear(3, 2))
    >>> list(trained_only(model).state_dict())
    ['1.weight', '1.bias']
    """
    model.register_state_dict_post_hook(_leave_out)  # type: ignore[no-untyped-call]
    model.register_load_state_dict_post_hook(_do_not_miss)  # type: ignore[no-untyped-call]
    return model


def _frozen(model: nn.Module) -> list[str]:
    # a parameter may have two names
    parameters = model.named_parameters(remove_duplicate=False)
    return [name for name, parameter in parameters if not parameter.requires_grad]


def _leave_out(
    model: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any
) -> None:
    for name in _frozen(model):
        state.pop(prefix + name, None)


def _do_not_miss(model: nn.Module, incompatible: Any) -> None:
    frozen = _frozen(model)
    for key in list(incompatible.missing_keys):
        # in a larger model, its name comes before
        if any(key == name or key.endswith(f".{name}") for name in frozen):
            incompatible.missing_keys.remove(key)

"""Cutting a model in two halves."""

from collections import OrderedDict

from torch import nn

from flwr_splitfc.model.traced import call_of, split_traced


def split_at(model: nn.Module, layer: str | int) -> tuple[nn.Module, nn.Module]:
    """Cut a model after a layer.

    Parameters
    ----------
    model : nn.Module
        An ``nn.Sequential``, or any module that `torch.fx` can trace and whose data
        passes the cut as one tensor.
    layer : str or int
        The last layer of the device half: its name as in ``model.named_modules()``,
        such as ``"layer2"`` of a ResNet, or its number in an ``nn.Sequential``. Of a
        layer that is called several times, ``"pool_0"`` is the first call,
        ``"pool_1"`` the second.

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
    name = _layer_name(model, layer)
    if isinstance(model, nn.Sequential) and "." not in name:
        return _split_sequential(model, name)
    return split_traced(model, name)


def _layer_name(model: nn.Module, layer: str | int) -> str:
    """Return the name of a layer that was given by its name or its number."""
    children = [child for child, _ in model.named_children()]
    if isinstance(layer, int) and isinstance(model, nn.Sequential):
        return children[layer]
    name = str(layer)
    modules = dict(model.named_modules())
    called, _ = call_of(name)
    # the model itself is among its named modules, under the empty name
    if not name or not {name, called} & modules.keys():
        raise ValueError(
            f"the model has no layer {layer!r}; "
            f"its outermost layers are {', '.join(children)}"
        )
    return name


def _split_sequential(
    model: nn.Sequential, name: str
) -> tuple[nn.Sequential, nn.Sequential]:
    # OrderedDicts, so that a half's layers keep their names in the model
    device: OrderedDict[str, nn.Module] = OrderedDict()
    server: OrderedDict[str, nn.Module] = OrderedDict()
    half = device
    for child, layer in model.named_children():
        half[child] = layer
        if child == name:
            half = server
    if not server:
        raise ValueError(
            f"{name!r} is the model's last layer: nothing is left for the server half"
        )
    return nn.Sequential(device), nn.Sequential(server)

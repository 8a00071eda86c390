"""Cutting a model in two halves."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from flwr_splitfc.model.traced import call_of, split_traced


def split_at(
    model: nn.Module,
    layer: str | int,
    *,
    also: Sequence[str] = (),
    inputs: Sequence[str] | None = None,
) -> tuple[nn.Module, nn.Module]:
    """Cut a model after a layer.

    Parameters
    ----------
    model : nn.Module
        An ``nn.Sequential``, or a module whose ``forward`` `torch.fx` can trace. It
        traces the model and the containers of the cut layer, such as the loop over an
        ``nn.ModuleList``, and takes all other layers as a whole.
    layer : str or int
        The last layer of the device half: its name as in ``model.named_modules()``,
        such as ``"layer2"`` of a ResNet, or its number in an ``nn.Sequential``. Of a
        layer that is called several times, ``"pool_0"`` is the first call,
        ``"pool_1"`` the second.
    also : sequence of str
        What the server half needs beside that layer's output, as the message of the
        error names it: layers, such as those that a skip connection starts from, or
        inputs, such as a mask. The features are then a dict of all of them, by these
        names. Whatever is named here leaves the device.
    inputs : sequence of str, optional
        The arguments of ``model.forward`` that batches bring, in the order in which
        the device half takes them. Default: those without a default. All others keep
        theirs.

    Returns
    -------
    tuple of nn.Module
        The device half and the server half. They share the model's parameters, and
        their entries keep its names.

    Raises
    ------
    ValueError
        If there is no such layer, or the model cannot be cut there, or a parameter is
        on both sides; the message says why.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> device, server = split_at(model, 1)
    >>> list(device.state_dict()), list(server.state_dict())
    (['0.weight', '0.bias'], ['2.weight', '2.bias'])
    """
    name = _layer_name(model, layer)
    halves: tuple[nn.Module, nn.Module]
    if isinstance(model, nn.Sequential) and "." not in name and not also:
        halves = _split_sequential(model, name)
    else:
        halves = split_traced(model, name, also, inputs)
    _check_tied(*halves)
    return halves


def _check_tied(device: nn.Module, server: nn.Module) -> None:
    """Refuse parameters that are on both sides under two names.

    Raises
    ------
    ValueError
    """
    names = {parameter: name for name, parameter in device.named_parameters()}
    for name, parameter in server.named_parameters():
        if parameter in names:
            raise ValueError(
                f"{name} of the server half is {names[parameter]} of the device half, "
                "and each half trains its own: untie them, as with "
                "nn.Parameter(weight.detach().clone()) for one of them"
            )


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

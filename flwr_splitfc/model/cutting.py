"""Cutting a model in two halves."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from weakref import WeakKeyDictionary

from torch import nn

from flwr_splitfc.model.own_train import check_train
from flwr_splitfc.model.traced import call_of, has_hooks, split_traced

_ends: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_begins: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Where parts of models that were cut begin and end."""


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
        on both sides, or the halves would not do what the model does: it has hooks
        itself, or a ``train`` that does more than torch's, or does one thing in
        training and another in evaluation other than by its layers, or changes a tensor
        in place between two uses of it, or draws random numbers, or uses
        ``torch.no_grad()`` or ``torch.autocast``. The message says why.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> device, server = split_at(model, 1)
    >>> list(device.state_dict()), list(server.state_dict())
    (['0.weight', '0.bias'], ['2.weight', '2.bias'])
    """
    name = _layer_name(model, layer)
    layers = _outermost_layers(model)
    check_train(model, [name, *also])
    halves: tuple[nn.Module, nn.Module]
    if _is_chain(model) and name in layers and not also:
        halves = _split_chain(layers, name)
    else:
        halves = split_traced(model, name, also, inputs)
    _check_tied(*halves)
    device_half, server_half = halves
    _ends[device_half] = _begins[server_half] = _cut_of(model, [name, *also])
    # one of them is the middle of a model that is cut twice
    if model in _begins:
        _begins[device_half] = _begins[model]
    if model in _ends:
        _ends[server_half] = _ends[model]
    return halves


def end_of(part: nn.Module) -> str:
    """Return the layers after which `split_at` ended a part; "" where it did not."""
    return _ends.get(part, "")


def beginning_of(part: nn.Module) -> str:
    """Return the layers after which `split_at` began a part; "" where it did not.

    What it began has entries of other names than what comes before.
    """
    return _begins.get(part, "")


def _cut_of(model: nn.Module, names: Iterable[str]) -> str:
    """Return one text for the same layers, as far as it is known that they are."""
    layers = {_last_layer(model, name) for name in names}
    text = ", ".join(sorted(layers))
    # devices show it, and refuse what cannot be printed
    return text if text.isprintable() else ""


def _last_layer(model: nn.Module, name: str) -> str:
    """Return the layer whose output is that of the layer `name`."""
    layers = dict(model.named_modules(remove_duplicate=False))
    called, call = call_of(name)
    if name not in layers and call == 0:
        name = called
    while type(layers.get(name)) is nn.Sequential and len(layers[name]) > 0:
        *_, last = layers[name]._modules
        name = f"{name}.{last}"
    return name


def check_meeting(end: str, beginning: str) -> None:
    """Refuse parts that do not meet: one ends where the other does not begin.

    Layers in between without parameters would run on neither side, or on both, and the
    arrays would fit all the same.

    Parameters
    ----------
    end, beginning : str
        Of the two parts; "" where it is not known.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> check_meeting("relu", "relu")
    >>> check_meeting("conv", "")
    """
    if end and beginning and end != beginning:
        raise ValueError(
            f"one part of the model ends after {end!r}, and the next begins after "
            f"{beginning!r}: ClientApp and ServerApp have to name the same layer"
        )


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
    children = list(_outermost_layers(model))
    if isinstance(layer, int) and isinstance(model, nn.Sequential):
        if not -len(children) <= layer < len(children):
            raise ValueError(f"the model has no layer {layer}, it has {len(children)}")
        return children[layer]
    name = str(layer)
    known = {*dict(model.named_modules()), *children}
    called, _ = call_of(name)
    # the model itself is among its named modules, under the empty name
    if not name or not {name, called} & known:
        raise ValueError(
            f"the model has no layer {layer!r}; "
            f"its outermost layers are {', '.join(children)}"
        )
    return name


def _outermost_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return a model's own layers by their names, each as often as it stands there."""
    layers = {}
    # `named_children` leaves out a layer that was there before
    for name, layer in model.named_modules(remove_duplicate=False):
        if name and "." not in name:
            layers[name] = layer
    return layers


def _is_chain(model: nn.Module) -> bool:
    """Whether a model calls its layers one after another, and does nothing else."""
    # not the class's: `forward` may be an attribute of this very model
    forward = getattr(model.forward, "__func__", None)
    return forward is nn.Sequential.forward and not has_hooks(model)


def _split_chain(
    layers: Mapping[str, nn.Module], name: str
) -> tuple[nn.Sequential, nn.Sequential]:
    # OrderedDicts, so that a half's layers keep their names in the model
    device: OrderedDict[str, nn.Module] = OrderedDict()
    server: OrderedDict[str, nn.Module] = OrderedDict()
    half = device
    for child, layer in layers.items():
        half[child] = layer
        if child == name:
            half = server
    if not server:
        raise ValueError(
            f"{name!r} is the model's last layer: nothing is left for the server half"
        )
    for child, layer in server.items():
        # one without entries may be on both sides, such as an activation
        if layer in device.values() and layer.state_dict():
            raise ValueError(
                f"the model cannot be cut after {name!r}: {child} is a layer of the "
                "device half, too, and each half trains its own"
            )
    return nn.Sequential(device), nn.Sequential(server)

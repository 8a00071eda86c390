"""A finished run: its settings, its trained halves, and its devices' data.

The run's folder has ``results.json`` and the halves as `SplitLearning.save` writes
them; the app that made it has the code.
"""

import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard

import torch
from flwr.app import Context, RecordDict
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from flwr_splitfc.apps.client_app import LoadData, SplitClientApp
from flwr_splitfc.apps.factories import MakeModel, make_half, tail_of
from flwr_splitfc.apps.run_codecs import codec_of, output_codec_of
from flwr_splitfc.apps.run_defence import clip, defend
from flwr_splitfc.apps.server_app import SplitServerApp
from flwr_splitfc.codec import CutCodec, cut_codec
from flwr_splitfc.codec.link import Link
from flwr_splitfc.compare.flower_app import FlowerApp
from flwr_splitfc.compare.runs import method_label
from flwr_splitfc.compare.workers.run_client_app import load_component
from flwr_splitfc.defence import FeatureDefence
from flwr_splitfc.defence.asked_defence import defence_of
from flwr_splitfc.exchange.protocol.records import without_prefix
from flwr_splitfc.leakage.levels import FeatureLoss
from flwr_splitfc.model import LossFn
from flwr_splitfc.model.structures import Structure
from flwr_splitfc.run.columns import last_known
from flwr_splitfc.run.results import read_results
from flwr_splitfc.run.rounds import Round
from flwr_splitfc.settings import RunConfig

_HALF_FILE = "device.pt"
_SERVER_FILE = "server.pt"
_STEPS_KEY = "steps-per-turn"


@dataclass(frozen=True, eq=False)
class AppParts:
    """The functions of an app from which a run's parts are made again.

    Parameters
    ----------
    model : callable
        Makes the device half.
    load_data : callable
        Gives a device's batches to train on and to evaluate on.
    defence : FeatureDefence, optional
        That of an app whose run-config says nothing of it.
    """

    model: MakeModel
    load_data: LoadData
    defence: FeatureDefence | None = None


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run and its app, ready to be attacked.

    Parameters
    ----------
    folder : Path
        With ``results.json``.
    app : FlowerApp
    results : dict
        What ``results.json`` holds.
    parts : AppParts
    """

    folder: Path
    app: FlowerApp
    results: dict[str, Any]
    parts: AppParts

    @classmethod
    def load(
        cls, folder: Path, app_folder: Path, *, model: str = "", load_data: str = ""
    ) -> "LoadedRun":
        """Read a run's folder, and import its app.

        Parameters
        ----------
        folder : Path
        app_folder : Path
        model, load_data : str
            ``module:name`` of the functions of `AppParts`, for an app whose ClientApp
            is no `SplitClientApp`.

        Raises
        ------
        ResultsError
            If the folder holds no run.
        ValueError
            If the app does not say how its device half and its data are made.
        """
        results = read_results(folder / "results.json", "run_config", "rounds")
        app = FlowerApp.load(app_folder)
        sys.path.insert(0, str(app.folder))
        return cls(folder, app, results, _parts_of(app, model, load_data))

    @property
    def config(self) -> RunConfig:
        """The run's settings."""
        config: RunConfig = self.results["run_config"]
        return config

    @property
    def label(self) -> str:
        """What a comparison calls the run, or the folder's name."""
        about = self.results.get("run")
        if about is None:
            return self.folder.resolve().name
        method = method_label(about["method"], about["budget"])
        return f"{method} seed {about['seed']}"

    @property
    def accuracy(self) -> float | None:
        """The last that was measured."""
        return last_known(done.accuracy for done in self._rounds)

    @property
    def moved_bytes(self) -> int:
        """All that was sent, both ways."""
        return sum(done.moved_bytes for done in self._rounds)

    @property
    def _rounds(self) -> list[Round]:
        return [Round.from_json(row) for row in self.results["rounds"]]

    @property
    def num_devices(self) -> int:
        """How many devices there are, by the key ``num-devices``."""
        return int(self.config.get("num-devices", 1))

    def context(self, device: int) -> Context:
        """Return the context of device number `device`.

        A turn is one pass over what the device has, whatever the run's were.
        """
        config = dict(self.config)
        if _STEPS_KEY in config:
            config[_STEPS_KEY] = 0
        return Context(
            run_id=0,
            node_id=device,
            node_config={"partition-id": device, "num-partitions": self.num_devices},
            state=RecordDict(),
            run_config=config,
        )

    def codec(self) -> CutCodec:
        """Return the codec at the run's cut; decoupled features have both budgets."""
        codec = self._codec_of("codec", codec_of)
        return codec.one_way() if self.is_decoupled else codec

    def _codec_of(
        self, key: str, of_config: Callable[[RunConfig], CutCodec]
    ) -> CutCodec:
        """Return the codec that results have, with all its settings.

        Results of an app that is no `SplitServerApp` may have its run-config alone.
        """
        settings = self.results.get(key)
        if isinstance(settings, dict):
            return cut_codec(settings)
        return of_config(self.config)

    @property
    def is_decoupled(self) -> bool:
        """Whether no gradient of the features came to devices."""
        return bool(self.config.get("decoupled"))

    def device_half(self, *, noise: bool = True) -> nn.Module:
        """Return the trained device half, without last layers, in training mode.

        Its features have gone through the run's defence, with noise of its own.

        Parameters
        ----------
        noise : bool (default: True)
            False only clips: what an attacker can compute.

        Raises
        ------
        ValueError
            If the saved entries do not fit the app's device half.
        """
        entries = self._entries(_HALF_FILE)
        if self.is_u_shaped:
            entries = without_prefix("head.", entries)
        half = make_half(self.parts.model, self.context(0))
        half = _with_entries(half, entries, self._file(_HALF_FILE))
        defence = self.parts.defence or defence_of(self.config)
        if noise:
            defend(half, defence)
        else:
            clip(half, defence)
        return half

    def loss(self) -> FeatureLoss:
        """Return the loss of features, through the trained layers after the cut.

        They are in training mode, as they were.

        Raises
        ------
        ValueError
            If the app is none of this package's, or the run left no server half.
        """
        if self.is_u_shaped:
            return self.u_shape().loss
        server_app = load_component(self.app.server_app)
        if not isinstance(server_app, SplitServerApp):
            raise ValueError(f"{self.app.server_app} is no SplitServerApp")
        server = self._server_half(server_app)
        loss_fn = server_app.loss_fn
        if loss_fn is None:
            raise ValueError(f"{self.app.server_app} has no loss_fn")
        return lambda features, labels: loss_fn(server(features), labels)

    def _server_half(self, server_app: SplitServerApp) -> nn.Module:
        half = make_half(server_app.server_model, self.context(0))
        return _with_entries(
            half, self._entries(_SERVER_FILE), self._file(_SERVER_FILE)
        )

    # Where devices have the last layers

    @property
    def is_u_shaped(self) -> bool:
        """Whether devices had the last layers and the labels.

        A device half may have a layer called ``head``, and even one called ``tail``.
        """
        names = self._entries(_HALF_FILE)
        prefixes = {name.partition(".")[0] for name in names}
        if prefixes != {"head", "tail"}:
            return False
        server_app = load_component(self.app.server_app)
        if not isinstance(server_app, SplitServerApp):
            return True
        return tail_of(server_app.tail, self.context(0)) is not None

    def u_shape(self) -> "UShape":
        """Return what stands after the device half, of a `SplitServerApp`'s run.

        Raises
        ------
        ValueError
            If the app is none of this package's.
        """
        server_app = load_component(self.app.server_app)
        client_app = load_component(self.app.client_app)
        if not isinstance(server_app, SplitServerApp) or client_app.loss_fn is None:
            raise ValueError(
                f"{self.app.server_app} is no SplitServerApp, or its ClientApp has no "
                "loss_fn"
            )
        context = self.context(0)
        tail = tail_of(server_app.tail, context)
        assert tail is not None  # the run had one
        middle = self._server_half(server_app)
        tail_entries = without_prefix("tail.", self._entries(_HALF_FILE))
        last = make_half(tail, context)
        last = _with_entries(last, tail_entries, self._file(_HALF_FILE))
        codec = self._codec_of("output_codec", output_codec_of).mirror()
        return UShape(middle, last, client_app.loss_fn, codec)

    def batches(
        self, devices: list[int], *, evaluation: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of some devices, one of each in turn.

        They are those to train on, or those to evaluate on. What is random in them
        comes from torch's generator.
        """
        under_way: list[Iterator[tuple[Tensor, Tensor]]] = []
        for device in devices:
            pair = self.parts.load_data(self.context(device))
            under_way.append(iter(pair[evaluation]))
        while under_way:
            for batches in list(under_way):
                batch = list(islice(batches, 1))
                if batch:
                    yield batch[0]
                else:
                    under_way.remove(batches)

    def _file(self, name: str) -> Path:
        """Return the path of a saved half; a comparison's app has a folder inside."""
        inside = self.folder / "output" / name
        return inside if inside.exists() else self.folder / name

    def _entries(self, name: str) -> dict[str, Tensor]:
        path = self._file(name)
        try:
            entries: object = torch.load(path, weights_only=True)
        except FileNotFoundError as error:
            raise ValueError(
                f"{path} does not exist: the run of a split strategy leaves it, "
                "which was given save_to"
            ) from error
        except Exception as error:
            # torch lets through whatever its own reading of damaged bytes raises
            reason = type(error).__name__
            raise ValueError(f"{path} is no state dict: {reason}") from error
        if not _is_state_dict(entries):
            raise ValueError(f"{path} is no state dict: wanted tensors by name")
        return entries


@dataclass(frozen=True, eq=False)
class UShape:
    """The layers after the device half, and the loss, where labels are the devices'.

    Parameters
    ----------
    middle : nn.Module
        The server half.
    tail : nn.Module
        The last layers, on devices.
    loss_fn : callable
    output_codec : CutCodec
        Of the server half's output, as the device sees it.
    """

    middle: nn.Module
    tail: nn.Module
    loss_fn: LossFn
    output_codec: CutCodec

    def loss(self, features: Structure, labels: Tensor) -> Tensor:
        """Return the loss of features, as if the output came down exactly."""
        return self.loss_fn(self.tail(self.middle(features)), labels)

    def gradient(
        self,
        features: Structure,
        labels: Tensor,
        *,
        labels_per_row: float,
        full_rows: int | None = None,
    ) -> tuple[Tensor, Tensor, Link]:
        """Return the output, (B, ...), as it came down, and its gradient as it came up.

        With them comes the server's link of the two. The server has all three.

        Parameters
        ----------
        features : structure of Tensor of shape (B, ...)
            As the server decoded them.
        labels : Tensor of shape (B, ...)
        labels_per_row : float
            As the codecs are told.
        full_rows : int, optional
            Of the largest batch so far: budgets do not bind a shorter last one.
        """
        codec = self.output_codec
        with torch.no_grad():
            output = self.middle(features)
        rows = len(output)
        down, server_link = codec.encode_features(
            output, all_rows=True, full_rows=full_rows, labels_per_row=labels_per_row
        )
        matrix, device_link = codec.decode_features(
            down, expect=(rows, output[0].numel())
        )
        seen = matrix.reshape(output.shape).requires_grad_()
        self.loss_fn(self.tail(seen), labels).backward()
        assert seen.grad is not None
        gradient = seen.grad.flatten(1)
        up = codec.encode_gradient(
            gradient, device_link, full_rows=full_rows, labels_per_row=labels_per_row
        )
        came = codec.decode_gradient(up, server_link).reshape(output.shape)
        return seen.detach(), came, server_link

    def scores(self, seen: Tensor) -> Tensor:
        """Return what the last layers answer to an output that came down."""
        answering = deepcopy(self.tail).eval()
        with torch.no_grad():
            scores: Tensor = answering(seen)
        return scores

    @cached_property
    def _without_dropout(self) -> nn.Module:
        """The last layers as they train, but that all units are kept."""
        tail = deepcopy(self.tail)
        for module in tail.modules():
            if isinstance(module, _DropoutNd):
                module.eval()
        return tail

    def gradient_for(self, seen: Tensor, labels: Tensor, link: Link) -> Tensor:
        """Return the gradient by an output (B, ...), if it had these labels.

        It is exact but for what the link leaves out and scales, and for what dropout
        drew, which a server does not know.
        """
        seen = seen.detach().requires_grad_()
        loss = self.loss_fn(self._without_dropout(seen), labels)
        exact = torch.autograd.grad(loss, seen)[0].flatten(1)
        return link.expand(link.restrict(exact)).reshape(seen.shape)


def _is_state_dict(entries: object) -> TypeGuard[dict[str, Tensor]]:
    return isinstance(entries, dict) and all(
        isinstance(name, str) and isinstance(entry, Tensor)
        for name, entry in entries.items()
    )


def _parts_of(app: FlowerApp, model: str, load_data: str) -> AppParts:
    """Return the app's functions: those that are named, else its SplitClientApp's."""
    component = load_component(app.client_app)
    if isinstance(component, SplitClientApp):
        return AppParts(
            _named("--model", model) if model else component.model,
            _named("--load-data", load_data) if load_data else component.load_data,
            component.defence,
        )
    if not (model and load_data):
        raise ValueError(
            f"{app.client_app} is no SplitClientApp: say how its device half and its "
            "data are made, by --model module:name and --load-data module:name"
        )
    return AppParts(_named("--model", model), _named("--load-data", load_data))


def _named(option: str, function: str) -> Any:
    """Import the function that an option names."""
    try:
        return load_component(function)
    except (AttributeError, ImportError, ValueError) as error:
        raise ValueError(f"{option} {function}: {error}") from error


def _with_entries(
    module: nn.Module, entries: dict[str, Tensor], path: Path
) -> nn.Module:
    try:
        module.load_state_dict(entries)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit the app's {type(module).__name__}: {error}"
        ) from error
    return module

"""The codec of a cut: a selector, a quantiser and two budgets."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from math import ceil, isfinite, prod
from typing import Final, Literal, final

import torch
from flwr.app import Array
from torch import Tensor

from flwr_splitfc.codec.channels import Channels, Layout
from flwr_splitfc.codec.errors import BudgetError, PayloadError
from flwr_splitfc.codec.format.fields import MOST_DIMENSIONS, view
from flwr_splitfc.codec.link import Link
from flwr_splitfc.codec.quantisers.float16 import Float16
from flwr_splitfc.codec.quantisers.float32 import Float32
from flwr_splitfc.codec.quantisers.quantiser import Quantiser
from flwr_splitfc.codec.selectors.all_columns import AllColumns
from flwr_splitfc.codec.selectors.selection import Selection
from flwr_splitfc.codec.selectors.selector import Selector
from flwr_splitfc.settings import Scalar

_EVALUATION: Final[dict[str, Quantiser]] = {"float16": Float16(), "float32": Float32()}
_BIT_DECIMALS = 4


@final
@dataclass(frozen=True, repr=False)
class CutCodec:
    """Compresses features on their way up and gradients on their way down.

    It keeps no state: what one step needs on its way back is in the `Link` that
    encoding (on the device) and decoding (on the server) return. Made by `cut_codec`.

    Parameters
    ----------
    name : str
        The name in the catalogue, the first half of `stype`.
    selector : Selector
        What is sent.
    quantiser : Quantiser
        How precisely.
    uplink_bits, downlink_bits : float
        Budgets in bits per entry of the original (B, D) matrix; a payload, all
        included, has at most ``floor(B D bits / 8)`` bytes.
    evaluation : {"float16", "float32", "codec"}
        How features go up when nothing trains: all columns at that precision, or as
        this codec sends them without anything random (no dropout).
    evaluation_bits : float, optional
        The budget of ``evaluation="codec"``; default `uplink_bits`.
    channel_dim : int, optional
        The channel's dimension, where the shape of the features does not tell.
    mirrored : bool
        Whether features go down and their gradient up, see `mirror`; not a setting.

    Examples
    --------
    >>> from flwr_splitfc.codec import cut_codec
    >>> cut = cut_codec("dropout-only", reduction=2)
    >>> features = torch.tensor([[0.0, 1.0, 7.0, 4.0], [1.0, 1.0, 7.0, 2.0]])
    >>> array, link = cut.encode_features(features, generator=torch.Generator().manual_seed(1))
    >>> seen, server_link = cut.decode_features(array, expect=(2, 4))
    >>> seen
    tensor([[0., 0., 0., 4.],
            [1., 0., 0., 2.]])
    >>> array = cut.encode_gradient(torch.ones(2, 4), server_link)
    >>> cut.decode_gradient(array, link)
    tensor([[1., 0., 0., 1.],
            [1., 0., 0., 1.]])
    """

    name: str
    selector: Selector
    quantiser: Quantiser
    uplink_bits: float = 0.2
    downlink_bits: float = 0.4
    evaluation: Literal["float16", "float32", "codec"] = "float16"
    evaluation_bits: float | None = None
    channel_dim: int | None = None
    mirrored: bool = False

    def __post_init__(self) -> None:
        for setting in ("uplink_bits", "downlink_bits", "evaluation_bits"):
            value = getattr(self, setting)
            if value is not None and not (isfinite(value) and value > 0):
                raise ValueError(
                    f"{setting} must be a finite number above 0, got {value}"
                )
        if self.evaluation not in (*_EVALUATION, "codec"):
            raise ValueError(
                f"evaluation must be one of {', '.join(_EVALUATION)}, codec, got {self.evaluation!r}"
            )
        if self.channel_dim == 0:
            raise ValueError("channel_dim must not be 0, the samples' dimension")

    def __repr__(self) -> str:
        settings = "".join(
            f", {key}={value!r}" for key, value in self._settings().items()
        )
        return f"cut_codec({self.name!r}{settings})"

    def mirror(self) -> CutCodec:
        """This codec for a cut at which the server has the features, as where its output goes down to a device.

        Budgets keep their directions: `uplink_bits` binds what goes up, which is the
        gradient there.

        >>> from flwr_splitfc.codec import cut_codec
        >>> cut_codec("splitfc").mirror().smallest_bits(256, 1152)
        (0.0011, 0.0034)
        """
        return replace(self, mirrored=not self.mirrored)

    @property
    def _features_bits(self) -> str:
        return "downlink_bits" if self.mirrored else "uplink_bits"

    @property
    def _gradient_bits(self) -> str:
        return "uplink_bits" if self.mirrored else "downlink_bits"

    @property
    def stype(self) -> str:
        """Name and version of the byte format, as in ``Array.stype``."""
        return f"{self.name}/{_version(self.selector, self.quantiser)}"

    @property
    def evaluation_stype(self) -> str:
        """The `stype` of features that are sent without training."""
        if self.evaluation == "codec":
            return self.stype
        return (
            f"{self.evaluation}/{_version(AllColumns(), _EVALUATION[self.evaluation])}"
        )

    def config(self) -> dict[str, Scalar]:
        """The flat mapping, in kebab case, from which `cut_codec` makes this codec.

        >>> from flwr_splitfc.codec import cut_codec
        >>> cut_codec("float32").config()
        {'name': 'float32', 'uplink-bits': 0.2, 'downlink-bits': 0.4, 'evaluation': 'float16'}
        """
        settings = {
            key.replace("_", "-"): value for key, value in self._settings().items()
        }
        return {"name": self.name, **settings}

    def _settings(self) -> dict[str, Scalar]:
        own = {key: getattr(self, key) for key in own_settings()}
        parts = {
            field.name: getattr(part, field.name)
            for part in self._parts()
            for field in fields(part)
        }  # type: ignore[arg-type]
        return {
            key: value for key, value in {**own, **parts}.items() if value is not None
        }

    def _parts(self) -> tuple[Selector, Quantiser]:
        return self.selector, self.quantiser

    def encode_features(
        self,
        features: Tensor,
        *,
        generator: torch.Generator | None = None,
        channels: int | None = None,
        training: bool = True,
        full_rows: int | None = None,
        all_rows: bool = False,
    ) -> tuple[Array, Link]:
        """Encode features on the device.

        Parameters
        ----------
        features : Tensor
            Floating point (B, D), (B, T, C) or (B, C, ...), on any device; coded as
            float32.
        generator : torch.Generator, optional
            A CPU generator, the source of all randomness; default torch's own.
        channels : int, optional
            How many equal contiguous groups of columns a flat (B, D) has; default
            ``D``.
        training : bool
            False sends the features as `evaluation` says.
        full_rows : int, optional
            The session's batch size: a shorter batch for which the budget is impossible
            is sent in the smallest payload there is.
        all_rows : bool
            Whether every sample must arrive, as where the loss is not the receiver's.

        Returns
        -------
        array : Array
            ``dtype="float32"``, the shape of the features, `data` the payload.
        link : Link
            Stays on the device, for `decode_gradient`.

        Raises
        ------
        BudgetError
            If the budget is impossible for this shape, whatever is drawn.
        ValueError
            If the features are empty, hold NaN or inf, or exceed 1e38 in magnitude
            after scaling.
        """
        matrix = _as_matrix(features)
        rows, columns = matrix.shape
        channel_groups = Channels.of(
            features.shape, channels=channels, dim=self.channel_dim
        )
        if not training and self.evaluation != "codec":
            link = Link(rows, columns, device=matrix.device)
            data = _EVALUATION[self.evaluation].encode(matrix, 0)
            return _array(self.evaluation_stype, features.shape, data), link
        setting = self._features_bits if training else "evaluation_bits"
        self._check(setting, rows, columns, full_rows)
        affordable = self._affordable(rows, columns, training)
        budget_bytes = _budget_bytes(rows, columns, self._bits(setting))
        selection = Selection(
            channel_groups,
            affordable=affordable,
            budget_bytes=budget_bytes,
            training=training,
            all_rows=all_rows or self.mirrored,
            generator=generator,
        )
        kept, link = self.selector.select(matrix, selection)
        link = self._laid_out(link, features.shape)
        selected = self.selector.pack(link)
        quantiser = _for_layout(self.quantiser, link)
        data = quantiser.encode(
            kept, self.selector.useful_bytes(link, budget_bytes - len(selected))
        )
        if training and (strength := self.quantiser.gradient_correction):
            seen = quantiser.decode(memoryview(data), link.sent, link.kept).to(
                kept.device
            )
            link = replace(link, correction=strength * (kept - seen))
        return _array(self.stype, features.shape, selected + data), link

    def decode_features(
        self, array: Array, *, expect: tuple[int, int]
    ) -> tuple[Tensor, Link]:
        """Decode features on the server.

        Parameters
        ----------
        array : Array
            From the wire; nothing in it is trusted.
        expect : tuple of int
            Most rows, and the exact number of columns.

        Returns
        -------
        features : Tensor
            float32 (B, D) on the CPU, zeros where dropped.
        link : Link
            For `encode_gradient`. Where it has `samples`, only these rows were sent,
            and the loss is of these.

        Raises
        ------
        PayloadError
            If the array is no payload of this codec and shape.
        """
        rows, columns = _shape_of(array)
        if rows > expect[0] or columns != expect[1]:
            raise PayloadError(
                f"features are {rows} x {columns}; at most {expect[0]} x {expect[1]} wanted"
            )
        data = view(array.data)
        selector, quantiser = self._parts()
        if array.stype == self.stype:
            pass
        elif array.stype == self.evaluation_stype:
            selector, quantiser = AllColumns(), _EVALUATION[self.evaluation]
        else:
            wanted = f"{self.stype!r} or {self.evaluation_stype!r}"
            raise PayloadError(f"stype is {array.stype!r}; {wanted} was wanted")
        link, rest = selector.unpack(data, rows, columns)
        try:
            link = self._laid_out(link, array.shape)
        except ValueError as error:
            raise PayloadError(str(error)) from error
        kept = _for_layout(quantiser, link).decode(rest, link.sent, link.kept)
        return link.expand(kept), link

    def encode_gradient(
        self, gradient: Tensor, link: Link, *, full_rows: int | None = None
    ) -> Array:
        """Encode the gradient by the features on the server, the kept columns alone.

        Parameters
        ----------
        gradient : Tensor
            (B, D) or (B, ...) on any device; coded as float32.
        link : Link
            From `decode_features`.
        full_rows : int, optional
            As in `encode_features`.

        Raises
        ------
        BudgetError
            If the budget is impossible for this shape.
        ValueError
            If the shape is not the link's, or a value is NaN, inf or beyond 1e38.
        """
        matrix = _as_matrix(gradient)
        rows, columns = matrix.shape
        if (rows, columns) != (link.rows, link.width):
            raise ValueError(
                f"gradient is {rows} x {columns}; the features were {link.rows} x {link.width}"
            )
        self._check(self._gradient_bits, rows, columns, full_rows)
        budget_bytes = _budget_bytes(rows, columns, self._bits(self._gradient_bits))
        quantiser = _for_layout(self.quantiser.for_gradient(), link)
        data = quantiser.encode(
            link.restrict(matrix), self.selector.useful_bytes(link, budget_bytes)
        )
        return _array(self.stype, gradient.shape, data)

    def decode_gradient(self, array: Array, link: Link) -> Tensor:
        """Decode the gradient by the unscaled features on the device.

        Parameters
        ----------
        array : Array
            From the wire.
        link : Link
            From `encode_features`.

        Returns
        -------
        gradient : Tensor
            float32 (B, D) on the features' device: kept columns times ``1/(1-p)``,
            zeros where dropped.

        Raises
        ------
        PayloadError
            If the array is no gradient of this codec and shape.
        """
        rows, columns = _shape_of(array)
        if (rows, columns) != (link.rows, link.width):
            raise PayloadError(
                f"gradient is {rows} x {columns}; {link.rows} x {link.width} was wanted"
            )
        if array.stype != self.stype:
            raise PayloadError(f"stype is {array.stype!r}; {self.stype!r} was wanted")
        quantiser = _for_layout(self.quantiser.for_gradient(), link)
        kept = quantiser.decode(view(array.data), link.sent, link.kept).to(link.device)
        if link.correction is not None:
            kept = kept + link.correction
        _check_scaled(kept, link)
        return link.expand(kept)

    def _laid_out(self, link: Link, shape: Sequence[int]) -> Link:
        return replace(
            link, layout=Layout.of(shape, channels=link.groups, dim=self.channel_dim)
        )

    def smallest_bits(self, rows: int, columns: int) -> tuple[float, float]:
        """Smallest `uplink_bits` and `downlink_bits` that work for every batch of (B, D) features.

        Rounded up to four decimals; 0 for codecs that ignore the budget.

        >>> from flwr_splitfc.codec import cut_codec
        >>> cut_codec("splitfc").smallest_bits(256, 1152)
        (0.0034, 0.0011)
        """
        kept = self.selector.most_columns(columns)
        features_bits = self._smallest_features_bits(rows, columns, kept)
        gradient_bytes = (
            self.quantiser.for_gradient().smallest_bytes(rows, kept)
            if self._budgeted
            else 0
        )
        gradient_bits = _bits_for(gradient_bytes, rows, columns)
        return (
            (gradient_bits, features_bits)
            if self.mirrored
            else (features_bits, gradient_bits)
        )

    @property
    def _budgeted(self) -> bool:
        """Whether budgets bind: both do as soon as one part spends one."""
        parts = self.selector, self.quantiser, self.quantiser.for_gradient()
        return any(part.budgeted for part in parts)

    def _smallest_features_bits(self, rows: int, columns: int, kept: int) -> float:
        if not self._budgeted:
            return 0.0
        return _bits_for(self._features_bytes(rows, kept, columns), rows, columns)

    def _features_bytes(self, rows: int, kept: int, columns: int) -> int:
        """Enough for features of which up to `kept` columns are sent."""
        return self.selector.most_bytes(
            rows, kept, columns
        ) + self.quantiser.smallest_bytes(rows, kept)

    def _affordable(self, rows: int, columns: int, training: bool) -> int:
        """The largest ``K`` whose features, and in training whose gradient, are sure to meet the budgets."""
        if not self.selector.budgeted:
            return columns
        setting = self._features_bits if training else "evaluation_bits"
        most_bytes = _budget_bytes(rows, columns, self._bits(setting))
        most_gradient_bytes = _budget_bytes(
            rows, columns, self._bits(self._gradient_bits)
        )

        def too_many(kept: int) -> bool:
            gradient_bytes = (
                self.quantiser.for_gradient().smallest_bytes(rows, kept)
                if training
                else 0
            )
            return (
                self._features_bytes(rows, kept, columns) > most_bytes
                or gradient_bytes > most_gradient_bytes
            )

        return bisect_left(range(1, columns + 1), True, key=too_many)

    def _bits(self, setting: str) -> float:
        value = getattr(self, setting)
        return float(getattr(self, self._features_bits) if value is None else value)

    def check_budget(self, rows: int, columns: int) -> None:
        """Check once that every batch of (B, D) features can be sent.

        Raises
        ------
        BudgetError
            If either budget is impossible; the message names the smallest that works.
        """
        settings = ("uplink_bits", "downlink_bits", "evaluation_bits")
        problems = [
            self._budget_problem(setting, rows, columns) for setting in settings
        ]
        if any(problems):
            raise BudgetError("; ".join(filter(None, problems)))

    def _check(
        self, setting: str, rows: int, columns: int, full_rows: int | None
    ) -> None:
        if full_rows is not None and rows < full_rows:
            return
        if problem := self._budget_problem(setting, rows, columns):
            raise BudgetError(problem)

    def _budget_problem(self, setting: str, rows: int, columns: int) -> str | None:
        if setting == "evaluation_bits":
            if self.evaluation != "codec":
                return None
            least = self._smallest_features_bits(
                rows, columns, self.selector.most_columns(columns, training=False)
            )
        else:
            least = self.smallest_bits(rows, columns)[setting == "downlink_bits"]
        if self._bits(setting) >= least:
            return None
        bits = self._bits(setting)
        return f"{setting}={bits} is too small for {rows} x {columns}; the smallest that works is {least}"


def own_settings() -> dict[str, Scalar | None]:
    """Settings that every codec has, with their defaults."""
    own = (field for field in fields(CutCodec) if field.name != "mirrored")
    return {field.name: field.default for field in own if field.default is not MISSING}


def _for_layout(quantiser: Quantiser, link: Link) -> Quantiser:
    """A layout is of all columns."""
    return (
        quantiser
        if link.layout is None or link.columns is not None
        else quantiser.for_layout(link.layout)
    )


def _version(selector: Selector, quantiser: Quantiser) -> int:
    """Of a payload's format: one more for each change of either part's."""
    return selector.version + quantiser.version - 1


def _budget_bytes(rows: int, columns: int, bits: float) -> int:
    return int(rows * columns * bits) // 8


def _bits_for(size_bytes: int, rows: int, columns: int) -> float:
    """Bits per entry, rounded up to a short decimal that is enough as it is printed."""
    scale = 10**_BIT_DECIMALS
    steps = ceil(8 * size_bytes * scale / (rows * columns))
    while _budget_bytes(rows, columns, steps / scale) < size_bytes:
        steps += 1
    return float(steps / scale)


def _as_matrix(tensor: Tensor) -> Tensor:
    """Flatten to float32 (B, D)."""
    if not tensor.is_floating_point():
        raise ValueError(f"a floating point tensor was wanted, got {tensor.dtype}")
    if tensor.ndim == 0 or tensor.numel() == 0:
        raise ValueError(
            f"a batch with rows and columns was wanted, got shape {tuple(tensor.shape)}"
        )
    if tensor.ndim > MOST_DIMENSIONS:
        raise ValueError(
            f"at most {MOST_DIMENSIONS} dimensions can be sent, got {tensor.ndim}"
        )
    return tensor.detach().reshape(tensor.shape[0], -1).to(torch.float32)


def _array(stype: str, shape: Sequence[int], data: bytes) -> Array:
    return Array(dtype="float32", shape=tuple(shape), stype=stype, data=data)


def _shape_of(array: Array) -> tuple[int, int]:
    """Rows and columns that an array from the wire claims."""
    shape = array.shape
    if array.dtype != "float32":
        raise PayloadError(f"dtype is {array.dtype!r}; 'float32' was wanted")
    if not isinstance(shape, tuple) or len(shape) > MOST_DIMENSIONS:
        raise PayloadError(f"shape is not a tuple of at most {MOST_DIMENSIONS} sizes")
    if not shape or not all(type(size) is int and size > 0 for size in shape):
        raise PayloadError(f"shape {shape} is not one of positive sizes")
    return shape[0], prod(shape[1:])


def _check_scaled(kept: Tensor, link: Link) -> None:
    """Refuse a gradient that correction or scale carry out of float32."""
    if kept.numel() == 0:
        return
    largest = float(kept.abs().max()) * (
        1.0 if link.scale is None else float(link.scale.max())
    )
    if not largest <= torch.finfo(torch.float32).max:
        raise PayloadError(
            f"gradient reaches {largest:.3g} after scaling, beyond float32"
        )

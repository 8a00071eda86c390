"""The codec of a cut: a selector, a quantiser and two budgets.

On the device, features are selected and then quantised; the payload is the selection
followed by the quantised matrix. The gradient comes back for the same selection, which
both sides keep as a `Link`, so its payload is the quantised matrix alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import cached_property
from typing import Any, Final, Literal, final

import torch
from flwr.app import Array
from torch import Tensor

from flwr_splitfc.codec.budget import Budgets, WorstCase
from flwr_splitfc.codec.channels import Channels, Layout, other_channel_dim
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.exponents import (
    exponents_bytes,
    pack_exponents,
    take_exponents,
)
from flwr_splitfc.codec.format.fields import view
from flwr_splitfc.codec.format.floats import largest_magnitude
from flwr_splitfc.codec.levels import (
    PROBABLY,
    SURELY,
    are_felt_alike,
    gains_of,
    gradient_exponents,
    most_different,
    vanish_below,
)
from flwr_splitfc.codec.link import Link
from flwr_splitfc.codec.matrices import Coded, as_matrix, claimed_shape, payload_array
from flwr_splitfc.codec.quality import (
    AUTOMATIC,
    GRADIENT_OFFSET,
    NO_CEILING,
    automatic_quality,
    check_quality,
    feature_scale,
    quality_step,
    root_mean_square,
)
from flwr_splitfc.codec.quantisers.float16 import Float16, is_half_enough
from flwr_splitfc.codec.quantisers.float32 import Float32
from flwr_splitfc.codec.quantisers.quantiser import Quantiser
from flwr_splitfc.codec.selectors.all_columns import AllColumns
from flwr_splitfc.codec.selectors.selection import Selection
from flwr_splitfc.codec.selectors.selector import Selector
from flwr_splitfc.codec.subnormals import with_subnormals
from flwr_splitfc.settings import Scalar, key_of

_PRECISIONS: Final[dict[str, Quantiser]] = {"float16": Float16(), "float32": Float32()}
"""How features go up without training, unless this codec sends them itself."""

# shapes differ where sequences do, and a device may make up any
_MOST_KNOWN_BUDGETS = 64
_MOST_BUDGET = 1_000_000  # in no payload's way, and no product with it is infinite


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
        The part that picks what is sent.
    quantiser : Quantiser
        The part that decides how precisely.
    uplink_bits, downlink_bits : float
        Budgets in bits per entry of the original (B, D) matrix; a payload, all
        included, has at most ``floor(B D bits / 8)`` bytes.
    quality : float, optional
        In decibels, see `flwr_splitfc.codec.quality`: a payload takes what this
        precision takes, and the budgets are its ceilings. 0 is the automatic one. None
        spends the budgets.
    evaluation : {"float16", "float32", "codec"}
        How features go up when nothing trains: all columns at that precision, or as
        this codec sends them without anything random (no dropout). What float16
        would change too much, beside how it varies, goes up as float32.
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
    >>> generator = torch.Generator().manual_seed(1)
    >>> array, link = cut.encode_features(features, generator=generator)
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
    quality: float | None = None
    evaluation: Literal["float16", "float32", "codec"] = "float16"
    evaluation_bits: float | None = None
    channel_dim: int | None = None
    mirrored: bool = False

    def __post_init__(self) -> None:
        for setting in ("uplink_bits", "downlink_bits", "evaluation_bits"):
            bits = getattr(self, setting)
            if bits is not None and not 0 < bits <= _MOST_BUDGET:
                raise ValueError(
                    f"{setting} must be above 0 and at most {_MOST_BUDGET}, got {bits}"
                )
        if self.quality is not None:
            if not self.quantiser.has_quality:
                raise ValueError(f"codec {self.name!r} has no quality")
            check_quality(self.quality)
        choices = [*_PRECISIONS, "codec"]
        if self.evaluation not in choices:
            known = ", ".join(choices)
            raise ValueError(
                f"evaluation must be one of {known}, got {self.evaluation!r}"
            )
        if self.channel_dim == 0:
            raise ValueError("channel_dim must not be 0, the samples' dimension")

    def __repr__(self) -> str:
        arguments = [repr(self.name)]
        for key, value in self._settings().items():
            arguments.append(f"{key}={value!r}")
        return f"cut_codec({', '.join(arguments)})"

    def mirror(self) -> CutCodec:
        """Return this codec for a cut at which the server has the features.

        So it is where the server half's output goes down to a device that has the last
        layers. Budgets keep their directions: `uplink_bits` binds what goes up, which
        is the gradient there.

        >>> from flwr_splitfc.codec import cut_codec
        >>> cut_codec("splitfc").mirror().smallest_bits(256, 1152)
        (0.0011, 0.0034)
        """
        return replace(self, mirrored=not self.mirrored)

    def one_way(self) -> CutCodec:
        """Return this codec for features whose gradient does not come down.

        They have both budgets.

        >>> from flwr_splitfc.codec import cut_codec
        >>> cut_codec("quant-only", uplink_bits=0.25, downlink_bits=0.5).one_way()
        cut_codec('quant-only', uplink_bits=0.75, downlink_bits=0.5, \
evaluation='float16')
        """
        both_bits = min(self.uplink_bits + self.downlink_bits, NO_CEILING)
        return replace(self, uplink_bits=both_bits)

    @cached_property
    def stype(self) -> str:
        """Name and version of the byte format, as in ``Array.stype``."""
        version = _version(self.selector, self.quantiser)
        return f"{self.name}/{version}"

    @cached_property
    def evaluation_stypes(self) -> tuple[str, ...]:
        """Each `stype` that features may have that are sent without training."""
        if self.evaluation == "codec":
            return (self.stype,)
        stypes = [_precision_stype(self.evaluation)]
        if self.evaluation == "float16":
            stypes.append(_precision_stype("float32"))
        return tuple(stypes)

    def config(self) -> dict[str, Scalar]:
        """Return the flat mapping, in kebab case, from which `cut_codec` makes this.

        >>> from flwr_splitfc.codec import cut_codec
        >>> config = cut_codec("float32", uplink_bits=0.1).config()
        >>> config["name"], config["uplink-bits"], config["evaluation"]
        ('float32', 0.1, 'float16')
        """
        config: dict[str, Scalar] = {"name": self.name}
        for key, value in self._settings().items():
            config[key_of(key)] = value
        return config

    def _settings(self) -> dict[str, Scalar]:
        """Return all settings that have a value, those of every codec first."""
        values = {key: getattr(self, key) for key in shared_settings()}
        # Contracts are no dataclasses, but all parts are.
        parts: list[Any] = [self.selector, self.quantiser]
        for part in parts:
            for field in fields(part):
                values[field.name] = getattr(part, field.name)
        # None stands for a default, and no config record holds it.
        return {key: value for key, value in values.items() if value is not None}

    @with_subnormals
    def encode_features(
        self,
        features: Tensor,
        *,
        generator: torch.Generator | None = None,
        channels: int | None = None,
        training: bool = True,
        full_rows: int | None = None,
        all_rows: bool = False,
        labels_per_row: float | None = None,
        levelled: bool | None = None,
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
            Equal contiguous groups of columns of a flat (B, D); default ``D``.
        training : bool
            False sends the features as `evaluation` says.
        full_rows : int, optional
            The session's batch size: a shorter batch for which the budget is impossible
            is sent in the smallest payload there is.
        all_rows : bool
            Whether every sample must arrive, as where the loss is not the receiver's.
        labels_per_row : float, optional
            How many labels the features of a sample decide, for the automatic quality;
            by default one, or one for each position of a sequence.
        levelled : bool, optional
            Whether to send small channels as precisely as large ones, as
            `needs_levels` tells of an earlier batch; by default where most would be
            lost. The gradient is levelled then, too, by scales of its own. Only codecs
            that `can_level` do.

        Returns
        -------
        array : Array
            ``dtype="float32"``, the shape of the features, `data` the payload.
        link : Link
            For `decode_gradient`, on the device.

        Raises
        ------
        BudgetError
            If the budget is impossible for this shape, whatever is drawn.
        ValueError
            If features are missing, not finite, or scaled to magnitudes above 1e38.
        """
        matrix = as_matrix(features)
        shape = features.shape
        groups = Channels.of(shape, channels=channels, dim=self.channel_dim)
        if not training and self.evaluation != "codec":
            return self._encode_at_precision(matrix, shape)
        budgets = self._budgets(*matrix.shape)
        if _is_full(len(matrix), full_rows):
            budgets.check_features(training=training)
        selection = Selection(
            groups,
            budgets.affordable(training=training),
            budgets.features_bytes(training=training),
            training=training,
            all_rows=all_rows or self.mirrored,
            in_haste=self.quality is None,
            generator=generator,
        )
        return self._encode_selected(matrix, shape, selection, labels_per_row, levelled)

    def _encode_at_precision(
        self, matrix: Tensor, shape: Sequence[int]
    ) -> tuple[Array, Link]:
        """Encode features as `evaluation` says, where that is not this codec."""
        rows, columns = matrix.shape
        precision: str = self.evaluation
        if precision == "float16" and not is_half_enough(matrix):
            precision = "float32"
        payload = _PRECISIONS[precision].encode(matrix, 0)
        array = payload_array(_precision_stype(precision), shape, payload)
        link = Link(rows, columns, device=matrix.device)
        return array, link

    def _encode_selected(
        self,
        matrix: Tensor,
        shape: Sequence[int],
        selection: Selection,
        labels_per_row: float | None,
        levelled: bool | None,
    ) -> tuple[Array, Link]:
        """Select from features and quantise what is kept."""
        selector = self._budgets(*matrix.shape).worst_case.selector
        kept, link = selector.select(matrix, selection)
        link = self._with_layout(link, shape)
        link = self._with_levels(link, kept, shape, selection, labels_per_row, levelled)
        if link.gains is not None:
            kept = kept * link.gains.to(kept.device)
        selected = selector.pack(link)
        # The quantiser spends what the selection leaves of the budget.
        left_bytes = selection.budget_bytes - len(selected)
        useful_bytes = selector.useful_bytes(link, left_bytes)
        quantiser = _for_layout(self.quantiser, link)
        if self.quality is not None:
            quality = self._decibels(link, labels_per_row)
            quantiser = _at_quality(quantiser, feature_scale(kept), quality)
        quantised = quantiser.encode(kept, useful_bytes)
        strength = self.quantiser.gradient_correction
        if strength and selection.training:
            # What the server will see: the device decodes its own payload.
            payload = memoryview(quantised)
            seen = quantiser.decode(payload, link.sent, link.kept)
            lost = kept - seen.to(kept.device)
            link = replace(link, correction=strength * lost)
        array = payload_array(self.stype, shape, selected + quantised)
        return array, link

    @with_subnormals
    def decode_features(
        self, array: Coded, *, expect: tuple[int, int]
    ) -> tuple[Tensor, Link]:
        """Decode features on the server.

        Parameters
        ----------
        array : Array or CodedMatrix
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
        rows, columns = claimed_shape(array)
        most_rows, wanted_columns = expect
        if rows > most_rows or columns != wanted_columns:
            raise PayloadError(
                f"features are {rows} x {columns}; "
                f"at most {most_rows} x {wanted_columns} wanted"
            )
        payload = view(array.data)
        selector, quantiser = self._parts_of(array)
        link, quantised = selector.unpack(payload, rows, columns)
        # Channels may come from the payload and contradict the shape.
        try:
            link = self._with_layout(link, array.shape)
        except ValueError as error:
            raise PayloadError(str(error)) from error
        quantiser = _for_layout(quantiser, link)
        kept = quantiser.decode(quantised, link.sent, link.kept)
        if link.gains is not None:
            kept = kept / link.gains
        return link.expand(kept), link

    def _parts_of(self, array: Coded) -> tuple[Selector, Quantiser]:
        """Return the parts that encoded the features in an array, by its `stype`."""
        if array.stype == self.stype:
            return self.selector, self.quantiser
        if array.stype in self.evaluation_stypes:
            precision, _, _ = array.stype.partition("/")
            return AllColumns(), _PRECISIONS[precision]
        wanted = " or ".join(map(repr, [self.stype, *self.evaluation_stypes]))
        raise PayloadError(f"stype is {array.stype!r}; {wanted} was wanted")

    @with_subnormals
    def encode_gradient(
        self,
        gradient: Tensor,
        link: Link,
        *,
        full_rows: int | None = None,
        labels_per_row: float | None = None,
    ) -> Array:
        """Encode the gradient by the features on the server, the kept columns alone.

        Parameters
        ----------
        gradient : Tensor
            (B, D) or (B, ...) on any device; coded as float32.
        link : Link
            From `decode_features`.
        full_rows, labels_per_row
            As in `encode_features`.

        Raises
        ------
        BudgetError
            If the budget is impossible for this shape.
        ValueError
            If the shape is not the link's, or a value is NaN, inf or beyond 1e38.
        """
        matrix = as_matrix(gradient)
        rows, columns = matrix.shape
        if (rows, columns) != (link.rows, link.width):
            raise ValueError(
                f"gradient is {rows} x {columns}; "
                f"the features were {link.rows} x {link.width}"
            )
        budgets = self._budgets(rows, columns)
        if _is_full(rows, full_rows):
            budgets.check_gradient()
        kept = link.restrict(matrix)
        levels = b""
        if link.exponents is not None and link.layout is not None:
            exponents = gradient_exponents(kept, link.layout)
            levels = pack_exponents(exponents)
            gains = gains_of(exponents, link.layout)
            kept = kept * gains.to(kept.device)
        # The quantiser spends what the levels leave of the budget.
        left_bytes = budgets.gradient_bytes() - len(levels)
        useful_bytes = self.selector.useful_bytes(link, left_bytes)
        quantiser = _for_layout(self.quantiser.for_gradient(), link)
        if self.quality is not None:
            quality = self._decibels(link, labels_per_row) - GRADIENT_OFFSET
            quantiser = _at_quality(quantiser, root_mean_square(kept), quality)
        payload = levels + quantiser.encode(kept, useful_bytes)
        return payload_array(self.stype, gradient.shape, payload)

    @with_subnormals
    def decode_gradient(self, array: Coded, link: Link) -> Tensor:
        """Decode the gradient by the unscaled features on the device.

        Parameters
        ----------
        array : Array or CodedMatrix
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
        rows, columns = claimed_shape(array)
        # Checked before anything of that size is allocated.
        if (rows, columns) != (link.rows, link.width):
            raise PayloadError(
                f"gradient is {rows} x {columns}; {link.rows} x {link.width} was wanted"
            )
        if array.stype != self.stype:
            raise PayloadError(f"stype is {array.stype!r}; {self.stype!r} was wanted")
        payload = view(array.data)
        quantiser = _for_layout(self.quantiser.for_gradient(), link)
        gains = None
        if link.exponents is not None and link.layout is not None:
            exponents, payload = take_exponents(payload, len(link.exponents))
            gains = gains_of(exponents, link.layout)
        kept = quantiser.decode(payload, link.sent, link.kept)
        if gains is not None:
            kept = kept / gains
        kept = kept.to(link.device)
        if link.correction is not None:
            kept = kept + link.correction
        if link.correction is not None or link.scale is not None:
            _check_scaled(kept, link)
        return link.expand(kept)

    def needs_levels(
        self, features: Tensor, gradient: Tensor, link: Link
    ) -> bool | None:
        """Tell by a batch's gradient whether the next ones are better sent levelled.

        Parameters
        ----------
        features, gradient : Tensor
            The features in the shape in which they were encoded, and the gradient
            (B, D) or (B, ...) as it was decoded.
        link : Link

        Returns
        -------
        bool or None
            None if this codec levels nothing, or the batch does not tell.
        """
        if not self.can_level or link.layout is None:
            return None
        sent = link.restrict(as_matrix(features))
        layouts = self._layouts(features.shape, link.groups)
        place, _ = most_different(sent, layouts)
        told = link.restrict(as_matrix(gradient))
        return are_felt_alike(sent, told, layouts[place])

    @property
    def can_level(self) -> bool:
        """Whether it may send channels of different scales in units of their own."""
        return self.quality is not None and self.selector.levels

    def _with_levels(
        self,
        link: Link,
        kept: Tensor,
        shape: Sequence[int],
        selection: Selection,
        labels_per_row: float | None,
        levelled: bool | None,
    ) -> Link:
        """Add to a link by what its channels are levelled, if they are to be."""
        if levelled is False or not self.can_level or self.mirrored:
            return link
        layouts = self._layouts(shape, link.groups)
        place, exponents = most_different(kept, layouts)
        layout = layouts[place]
        channels = layout.channels.count
        training = selection.training
        budgets = self._budgets(link.rows, link.width)
        levels_bytes = exponents_bytes(channels)
        if not budgets.leave_room(link.width, levels_bytes, training=training):
            return link
        if levelled is None:
            quality = self._decibels(link, labels_per_row)
            step = quality_step(feature_scale(kept), quality)
            # without training there is no gradient that could tell later
            part = SURELY if training else PROBABLY
            if not vanish_below(part * step, kept, layout):
                return link
        if not exponents.any():
            return link
        return replace(
            link, layout=layout, groups=channels, turned=place > 0, exponents=exponents
        )

    def _decibels(self, link: Link, labels_per_row: float | None) -> float:
        """Return the quality of the features that a link is of."""
        assert self.quality is not None
        if self.quality != AUTOMATIC:
            return self.quality
        if labels_per_row is None:
            labels_per_row = _likely_labels(link.layout)
        return automatic_quality(link.width / labels_per_row)

    def _with_layout(self, link: Link, shape: Sequence[int]) -> Link:
        """Add the layout of features of `shape` to a link."""
        dim = self.channel_dim
        if link.turned:
            if dim is not None or len(shape) == 2:
                raise ValueError("channels are turned where they have one place alone")
            dim = other_channel_dim(shape)
        layout = Layout.of(shape, channels=link.groups, dim=dim)
        return replace(link, layout=layout)

    def _layouts(self, shape: Sequence[int], groups: int | None) -> list[Layout]:
        """Return the layouts that features may have, the usual one first."""
        other = other_channel_dim(shape)
        if other is None or self.channel_dim is not None:
            return [Layout.of(shape, channels=groups, dim=self.channel_dim)]
        return [Layout.of(shape), Layout.of(shape, dim=other)]

    def smallest_bits(self, rows: int, columns: int) -> tuple[float, float]:
        """Return the smallest budgets that work for every batch of (B, D) features.

        Rounded up to four decimals; 0 for codecs that ignore the budget. Where the
        budget decides how many columns are kept, they pay for one in 16.

        Returns
        -------
        uplink_bits, downlink_bits : float
            Bits per entry.

        Examples
        --------
        >>> from flwr_splitfc.codec import cut_codec
        >>> cut_codec("splitfc").smallest_bits(256, 1152)
        (0.0034, 0.0011)
        """
        return self._new_budgets(self.selector, rows, columns).smallest_bits

    def check_budget(self, rows: int, columns: int) -> None:
        """Check once that every batch of (B, D) features can be sent.

        Raises
        ------
        BudgetError
            If either budget is impossible; the message names the smallest that works.
        """
        self._budgets(rows, columns).check()

    def _budgets(self, rows: int, columns: int) -> Budgets:
        """Return the budgets of a shape: once, since most batches have the same."""
        known = self._known_budgets
        budgets = known.get((rows, columns))
        if budgets is None:
            if len(known) == _MOST_KNOWN_BUDGETS:
                known.clear()
            budgets = self._new_budgets(self._selector_within, rows, columns)
            if not budgets.are_enough:
                # with few rows a column costs more than its entries
                budgets = self._new_budgets(self.selector, rows, columns)
            known[rows, columns] = budgets
        return budgets

    def _new_budgets(self, selector: Selector, rows: int, columns: int) -> Budgets:
        return Budgets(
            WorstCase(selector, self.quantiser, rows, columns),
            self.uplink_bits,
            self.downlink_bits,
            self._evaluation_bits,
            self.mirrored,
            only_ceilings=self.quality is not None,
        )

    @cached_property
    def _selector_within(self) -> Selector:
        """The selector with what the budget of the features decides."""
        bits = self.downlink_bits if self.mirrored else self.uplink_bits
        if self.quality is not None:
            # it says what is lost, and that is no whole column
            bits = NO_CEILING
        return self.selector.within(bits, self.quantiser.kept_entry_bits)

    @property
    def rescales(self) -> bool:
        """Whether kept features are scaled, see `Selector.rescales`."""
        return self._selector_within.rescales

    @cached_property
    def _known_budgets(self) -> dict[tuple[int, int], Budgets]:
        return {}

    @property
    def _evaluation_bits(self) -> float | None:
        """The budget of features without training, if this codec sends them."""
        if self.evaluation != "codec":
            return None
        if self.evaluation_bits is not None:
            return self.evaluation_bits
        return self.downlink_bits if self.mirrored else self.uplink_bits


def shared_settings() -> dict[str, Scalar | None]:
    """Return the settings that every codec has, with their defaults."""
    settings = {}
    for field in fields(CutCodec):
        if field.default is not MISSING and field.name != "mirrored":
            settings[field.name] = field.default
    return settings


def _is_full(rows: int, full_rows: int | None) -> bool:
    """Tell whether the budget binds a batch: a session's last one may be shorter."""
    return full_rows is None or rows >= full_rows


def _for_layout(quantiser: Quantiser, link: Link) -> Quantiser:
    """Apply the layout only when no column was dropped."""
    if link.layout is None or link.columns is not None:
        return quantiser
    return quantiser.for_layout(link.layout)


def _likely_labels(layout: Layout | None) -> int:
    """Return how many labels a sample may have: a sequence's positions, or one."""
    if layout is not None and len(layout.axes) == 1:
        return layout.axes[0]
    return 1


def _at_quality(quantiser: Quantiser, scale: float, quality: float) -> Quantiser:
    """Return the quantiser with the step of a quality; zeros need none."""
    if scale == 0:
        return quantiser
    return quantiser.at_step(quality_step(scale, quality))


def _version(selector: Selector, quantiser: Quantiser) -> int:
    """Return a payload's version: each change of either part's adds one."""
    return selector.version + quantiser.version - 1


def _precision_stype(precision: str) -> str:
    """Return the `stype` of features at one of `_PRECISIONS`."""
    version = _version(AllColumns(), _PRECISIONS[precision])
    return f"{precision}/{version}"


def _check_scaled(kept: Tensor, link: Link) -> None:
    """Refuse a gradient that correction or scale carry out of float32."""
    largest = largest_magnitude(kept)
    if kept.numel() and link.scale is not None:
        largest *= float(link.scale.max())
    # Written so that NaN, which is in no order, is refused.
    if not largest <= torch.finfo(torch.float32).max:
        raise PayloadError(
            f"gradient reaches {largest:.3g} after scaling, beyond float32"
        )

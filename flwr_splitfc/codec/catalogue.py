"""The catalogue: codecs by name.

A codec is listed here once, as a pair of its selector and its quantiser. Tests,
documentation, ``--help`` and settings find it from there: its settings are the fields
of the two, its description the first lines of their docstrings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import entry_points
from typing import Any, Final, TypeAlias, cast, get_type_hints

from flwr_splitfc.codec.cut import CutCodec, shared_settings
from flwr_splitfc.codec.quality import NO_CEILING
from flwr_splitfc.codec.quantisers.entry.easy_quant import EasyQuant
from flwr_splitfc.codec.quantisers.entry.noisy_quant import NoisyQuant
from flwr_splitfc.codec.quantisers.entry.power_quant import PowerQuant
from flwr_splitfc.codec.quantisers.entry.uniform import Uniform
from flwr_splitfc.codec.quantisers.feature.feature_quant import FeatureQuant
from flwr_splitfc.codec.quantisers.float16 import Float16
from flwr_splitfc.codec.quantisers.float32 import Float32
from flwr_splitfc.codec.quantisers.int8 import Int8
from flwr_splitfc.codec.quantisers.mask.mask_encoded import MaskEncoded
from flwr_splitfc.codec.quantisers.product.product_quant import ProductQuant
from flwr_splitfc.codec.quantisers.quantiser import Quantiser
from flwr_splitfc.codec.quantisers.transform.transform_quant import TransformQuant
from flwr_splitfc.codec.selectors.all_columns import AllColumns
from flwr_splitfc.codec.selectors.feature_dropout import FeatureDropout
from flwr_splitfc.codec.selectors.random_top_entries import RandomTopEntries
from flwr_splitfc.codec.selectors.row_sample import RowSample
from flwr_splitfc.codec.selectors.selector import Selector
from flwr_splitfc.codec.selectors.top_entries import TopEntries
from flwr_splitfc.settings import Scalar, check_scalar, field_of

ENTRY_POINTS = "flwr_splitfc.codecs"
"""The entry-point group of other packages' codecs.

An entry's name is the codec's; it loads a (selector class, quantiser class) pair.
"""

Pair: TypeAlias = tuple[type[Selector], type[Quantiser]]

CATALOGUE: Final[dict[str, Pair]] = {
    "float32": (AllColumns, Float32),
    "float16": (AllColumns, Float16),
    "splitfc": (FeatureDropout, FeatureQuant),
    "dropout-only": (FeatureDropout, Float32),
    "quant-only": (AllColumns, FeatureQuant),
    "int8": (AllColumns, Int8),
    "splitfc-uniform": (FeatureDropout, Uniform),
    "splitfc-power": (FeatureDropout, PowerQuant),
    "splitfc-easy": (FeatureDropout, EasyQuant),
    "splitfc-noisy": (FeatureDropout, NoisyQuant),
    "fedlite": (AllColumns, ProductQuant),
    "mask-encoded": (AllColumns, MaskEncoded),
    "rand-top-s": (RandomTopEntries, Float16),
    "top-s": (TopEntries, Float16),
    "splitfc-rd": (RowSample, TransformQuant),
}

_COMPLAINT = "{key} must be {wanted}, got {value!r}"


@dataclass(frozen=True)
class CodecEntry:
    """A codec of the catalogue, for documentation and ``--help``.

    Examples
    --------
    >>> entry = next(entry for entry in codec_table() if entry.name == "rand-top-s")
    >>> entry.selector.__name__, entry.quantiser.__name__, entry.own_settings
    ('RandomTopEntries', 'Float16', {'alpha': 0.1})
    """

    name: str
    selector: type[Selector]
    quantiser: type[Quantiser]

    @property
    def summary(self) -> str:
        """The first lines of both docstrings: what is sent, and how precisely."""
        what = _first_line(self.selector)
        how_precisely = _first_line(self.quantiser)
        return f"{what} {how_precisely}"

    @property
    def own_settings(self) -> dict[str, Scalar | None]:
        """The settings that are the codec's own, with their defaults."""
        return {**_field_defaults(self.selector), **_field_defaults(self.quantiser)}

    @property
    def settings(self) -> dict[str, Scalar | None]:
        """All settings with their defaults: its own, then those of every codec."""
        shared = shared_settings()
        if not self.quantiser.has_quality:
            del shared["quality"]
        return {**self.own_settings, **shared, **self._without_budgets()}

    def _without_budgets(self) -> dict[str, Scalar | None]:
        """Return the defaults of a codec that needs no budget."""
        quality = self.quantiser.default_quality
        return {} if quality is None else _qualities(quality)


def codec_table() -> list[CodecEntry]:
    """Return all codecs that `cut_codec` knows, sorted by name.

    >>> [entry.name for entry in codec_table()][:5]
    ['dropout-only', 'fedlite', 'float16', 'float32', 'int8']
    """
    return [_entry(name) for name in codec_names()]


def codec_names() -> list[str]:
    """Return the names that `cut_codec` knows, sorted.

    >>> codec_names()[:5]
    ['dropout-only', 'fedlite', 'float16', 'float32', 'int8']
    """
    from_afar = {entry.name for entry in entry_points(group=ENTRY_POINTS)}
    return sorted(CATALOGUE.keys() | from_afar)


def codec_settings(name: str) -> list[str]:
    """Return the settings that `cut_codec` takes for a name, sorted.

    >>> codec_settings("splitfc")[:4]
    ['channel_dim', 'downlink_bits', 'evaluation', 'evaluation_bits']
    >>> codec_settings("splitfc")[4:]
    ['quality', 'reduction', 'uplink_bits']
    """
    return sorted(_entry(name).settings)


def register_codec(
    name: str, selector_class: type[Selector], quantiser_class: type[Quantiser]
) -> None:
    """Add a codec to the catalogue.

    Parameters
    ----------
    name : str
        Kebab case, not taken. It names a byte format and never changes its meaning.
    selector_class, quantiser_class : type
        Frozen dataclasses whose fields have defaults and are scalars: the codec's
        settings.

    Raises
    ------
    ValueError
        If the name is taken or a setting has two meanings.
    """
    if name in CATALOGUE:
        raise ValueError(f"codec {name!r} is already in the catalogue")
    pair = (selector_class, quantiser_class)
    _check_pair(name, pair)
    CATALOGUE[name] = pair


def cut_codec(name: str | Mapping[str, Any], **settings: Any) -> CutCodec:
    """Make a codec by its name and settings, or from a flat mapping of both.

    Parameters
    ----------
    name : str or mapping
        A name in `codec_names`, or a mapping with the key ``name`` and settings in
        kebab or snake case.
    **settings : scalar
        Fields of the codec's selector and quantiser, ``uplink_bits``,
        ``downlink_bits``, ``quality``, ``evaluation`` and ``channel_dim``; see
        `CutCodec`. With a quality, budgets have no default. A codec whose default is a
        quality has none where a budget is given.

    Raises
    ------
    ValueError
        If the name or a setting is unknown (the message lists the known ones), or a
        value is of the wrong type or out of range.

    Examples
    --------
    >>> cut_codec("splitfc", uplink_bits=0.1, reduction=8).selector
    FeatureDropout(reduction=8.0)
    >>> cut_codec({"name": "splitfc", "uplink-bits": 0.1, "reduction": 8}).stype
    'splitfc/1'
    """
    if isinstance(name, Mapping):
        settings = {**name, **settings}
        if "name" not in settings:
            keys = ", ".join(map(repr, settings))
            raise ValueError(f"the codec's mapping has no 'name', only {keys}")
        name = settings.pop("name")
    entry = _entry(name)
    values = _with_quality(entry, _checked_settings(entry, settings))
    selector_values = _picked(values, _field_defaults(entry.selector))
    quantiser_values = _picked(values, _field_defaults(entry.quantiser))
    return CutCodec(
        entry.name,
        entry.selector(**selector_values),
        entry.quantiser(**quantiser_values),
        **_picked(values, shared_settings()),
    )


def _checked_settings(entry: CodecEntry, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings under their fields' names and in their fields' types."""
    # No name stands twice among these: `_check_pair` has seen to it.
    hints = {
        **get_type_hints(CutCodec),
        **get_type_hints(entry.selector),
        **get_type_hints(entry.quantiser),
    }
    known = entry.settings
    checked = {}
    for given_key, value in settings.items():
        key = field_of(given_key)
        if key not in known:
            names = ", ".join(sorted(known))
            raise ValueError(
                f"codec {entry.name!r} has no setting {key!r}; it has {names}"
            )
        checked[key] = check_scalar(key, value, hints[key], complaint=_COMPLAINT)
    return checked


def _with_quality(entry: CodecEntry, values: dict[str, Any]) -> dict[str, Any]:
    """Return settings in which a quality, if there is one, has budgets as ceilings."""
    given = {key: value for key, value in values.items() if value is not None}
    quality = given.get("quality")
    has_budget = "uplink_bits" in given or "downlink_bits" in given
    if quality is None and not has_budget:
        quality = entry.quantiser.default_quality
    if quality is None:
        return given
    return {**_qualities(quality), **given}


def _qualities(quality: float) -> dict[str, Scalar | None]:
    """Return the settings that a quality brings with it."""
    ceilings = {"uplink_bits": NO_CEILING, "downlink_bits": NO_CEILING}
    return {"quality": quality, **ceilings}


def _picked(values: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in keys}


def _entry(name: object) -> CodecEntry:
    """Find a codec here or among the entry points."""
    if isinstance(name, str):
        # What is listed here is not to be replaced from outside.
        pair = CATALOGUE.get(name) or _entry_point(name)
        if pair is not None:
            return CodecEntry(name, *pair)
    raise ValueError(f"unknown codec {name!r}; known are {', '.join(codec_names())}")


def _entry_point(name: str) -> Pair | None:
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name == name:
            pair = entry.load()
            _check_pair(name, pair)
            return cast(Pair, pair)
    return None


def _check_pair(name: str, pair: Any) -> None:
    """Refuse a pair that is no codec, or of which a setting has two meanings."""
    selector, quantiser = pair
    if not (issubclass(selector, Selector) and issubclass(quantiser, Quantiser)):
        raise ValueError(
            f"codec {name!r} must be a Selector class and a Quantiser class, got {pair}"
        )
    if not (is_dataclass(selector) and is_dataclass(quantiser)):
        raise ValueError(f"codec {name!r} must be two dataclasses, got {pair}")
    counts = Counter(
        [
            "name",
            *shared_settings(),
            *_field_defaults(selector),
            *_field_defaults(quantiser),
        ]
    )
    twice = sorted(key for key, count in counts.items() if count > 1)
    if twice:
        raise ValueError(f"codec {name!r} has two settings called {', '.join(twice)}")


def _field_defaults(part: Any) -> dict[str, Any]:
    return {field.name: field.default for field in fields(part)}


def _first_line(part: type) -> str:
    return (part.__doc__ or "").partition("\n")[0]

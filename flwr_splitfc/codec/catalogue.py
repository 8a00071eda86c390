"""Codecs by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import entry_points
from typing import Any, Final, TypeAlias, get_type_hints

from flwr_splitfc.codec.cut import CutCodec, own_settings
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
from flwr_splitfc.settings import check_scalar

ENTRY_POINTS = "flwr_splitfc.codecs"
"""Entry-point group: the entry's name is the codec's, it loads a (selector class, quantiser class) pair."""

_COMPLAINT = "{key} must be {wanted}, got {value!r}"

Pair: TypeAlias = tuple[type[Selector], type[Quantiser]]

_CATALOGUE: Final[dict[str, Pair]] = {
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


def codec_names() -> list[str]:
    """Names that `cut_codec` knows, sorted.

    >>> codec_names()[:5]
    ['dropout-only', 'fedlite', 'float16', 'float32', 'int8']
    """
    return sorted(
        _CATALOGUE.keys() | {entry.name for entry in entry_points(group=ENTRY_POINTS)}
    )


def codec_settings(name: str) -> list[str]:
    """Settings that `cut_codec` takes for a name, sorted.

    >>> codec_settings("splitfc")
    ['channel_dim', 'downlink_bits', 'evaluation', 'evaluation_bits', 'reduction', 'uplink_bits']
    """
    return sorted(_known_settings(*_pair(name)))


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
    if name in _CATALOGUE:
        raise ValueError(f"codec {name!r} is already in the catalogue")
    _check_pair(name, (selector_class, quantiser_class))
    _CATALOGUE[name] = selector_class, quantiser_class


def cut_codec(name: str | Mapping[str, Any], **settings: Any) -> CutCodec:
    """Make a codec by its name and settings, or from a flat mapping of both.

    Parameters
    ----------
    name : str or mapping
        A name in `codec_names`, or a mapping with the key ``name`` and settings in
        kebab or snake case.
    **settings : scalar
        Fields of the codec's selector and quantiser, ``uplink_bits``,
        ``downlink_bits``, ``evaluation`` and ``channel_dim``; see `CutCodec`.

    Raises
    ------
    ValueError
        If the name or a setting is unknown (the message lists the known ones), or a
        value is of the wrong type or out of range.

    Examples
    --------
    >>> cut_codec("splitfc", uplink_bits=0.1, reduction=8)
    cut_codec('splitfc', uplink_bits=0.1, downlink_bits=0.4, evaluation='float16', reduction=8.0)
    >>> cut_codec({"name": "splitfc", "uplink-bits": 0.1, "reduction": 8}).stype
    'splitfc/1'
    """
    if isinstance(name, Mapping):
        given = {**name, **settings}
        if "name" not in given:
            raise ValueError(
                f"the codec's mapping has no 'name', only {', '.join(map(repr, given))}"
            )
        name = given.pop("name")
        settings = given
    selector_class, quantiser_class = _pair(name)
    values = {key.replace("-", "_"): value for key, value in settings.items()}
    known = _known_settings(selector_class, quantiser_class)
    for key in values.keys() - known.keys():
        raise ValueError(
            f"codec {name!r} has no setting {key!r}; it has {', '.join(sorted(known))}"
        )
    values = {
        key: check_scalar(key, value, known[key], complaint=_COMPLAINT)
        for key, value in values.items()
    }
    parts = [
        kind(
            **{key: value for key, value in values.items() if key in _field_types(kind)}
        )
        for kind in (selector_class, quantiser_class)
    ]
    return CutCodec(
        name,
        *parts,
        **{key: value for key, value in values.items() if key in own_settings()},
    )  # type: ignore[arg-type]


def _known_settings(
    selector_class: type[Selector], quantiser_class: type[Quantiser]
) -> dict[str, Any]:
    own = {
        key: kind
        for key, kind in get_type_hints(CutCodec).items()
        if key in own_settings()
    }
    return {**_field_types(selector_class), **_field_types(quantiser_class), **own}


def _pair(name: object) -> Pair:
    if isinstance(name, str) and name in _CATALOGUE:
        return _CATALOGUE[name]
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name == name:
            pair = entry.load()
            _check_pair(entry.name, pair)
            return pair  # type: ignore[no-any-return]
    raise ValueError(f"unknown codec {name!r}; known are {', '.join(codec_names())}")


def _check_pair(name: str, pair: Any) -> None:
    selector_class, quantiser_class = pair
    if not (
        issubclass(selector_class, Selector) and issubclass(quantiser_class, Quantiser)
    ):
        raise ValueError(
            f"codec {name!r} must be a Selector class and a Quantiser class, got {pair}"
        )
    if not (is_dataclass(selector_class) and is_dataclass(quantiser_class)):
        raise ValueError(f"codec {name!r} must be two dataclasses, got {pair}")
    keys = [
        *_field_types(selector_class),
        *_field_types(quantiser_class),
        *own_settings(),
        "name",
    ]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"codec {name!r} has two settings called {', '.join(twice)}")


def _field_types(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}

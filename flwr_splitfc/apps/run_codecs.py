"""The codecs that a run-config asks for.

A codec's settings stand under keys of their own, such as ``uplink-bits``, of which a
codec takes those that it has; or all in one string, ``codec-settings``, all of which it
must have. So an app that lists its keys needs no new one for a new codec.

Flower overrides only keys that an app lists, with values of the listed type. So 0 is
the value of a key that is listed and not set, unless the codec has a use for it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flwr_splitfc.codec import CutCodec, codec_settings, cut_codec
from flwr_splitfc.codec.cut import shared_settings
from flwr_splitfc.settings import (
    RunConfig,
    Scalar,
    check_dashes,
    field_of,
    key_of,
    parse_settings,
    under_key,
)
from flwr_splitfc.strategy.splitfc import splitfc_codec


def codec_of(config: RunConfig) -> CutCodec:
    """Return the codec of a run-config: of strategy ``splitfc``, or of key ``codec``.

    Raises
    ------
    ValueError
        If there is no such codec or setting, or both keys name codecs, and others.

    >>> config = {"strategy": "splitfed-v2", "codec": "top-s", "uplink-bits": 0.1}
    >>> codec_of({**config, "codec-settings": "downlink-bits=0.2", "seed": 7})
    cut_codec('top-s', uplink_bits=0.1, downlink_bits=0.2, evaluation='float16')
    """
    if config.get("strategy", "splitfc") == "splitfc":
        cut = _made(splitfc_codec, settings_of("splitfc", config))
        _check_none_beside(cut, config)
        return cut
    name = str(config.get("codec", "float32"))
    return _made(partial(cut_codec, name), settings_of(name, config))


def _check_none_beside(cut: CutCodec, config: RunConfig) -> None:
    """Refuse a codec beside strategy ``splitfc``, but for the one that it is anyway."""
    name = config.get("codec", "")
    # the default of the key, which apps list
    if name not in ("", "float32", cut.name):
        raise ValueError(
            f"codec is {name!r}, and strategy is 'splitfc', whose codec follows from "
            f"quality, uplink-bits, downlink-bits and reduction: {cut.name!r} here. "
            "Give these, or strategy 'split-learning' for another codec"
        )


def output_codec_of(config: RunConfig) -> CutCodec:
    """Return the codec of the server half's output that a run-config asks for.

    >>> config = {"output-codec": "top-s", "downlink-bits": 0.3}
    >>> output_codec_of({**config, "output-downlink-bits": 0.1})
    cut_codec('top-s', uplink_bits=0.2, downlink_bits=0.1, evaluation='float16')
    """
    name = str(config.get("output-codec", "float32"))
    settings = settings_of(name, config, prefix="output-")
    return _made(partial(cut_codec, name), settings, prefix="output-")


def _made(
    make: Callable[..., CutCodec], settings: Mapping[str, Any], *, prefix: str = ""
) -> CutCodec:
    """Make a codec; the error of a setting that is wrong by itself names its key."""
    try:
        return make(**settings)
    except ValueError:
        for setting, value in settings.items():
            with under_key(prefix + key_of(setting)):
                make(**{setting: value})
        raise


def settings_of(name: str, config: RunConfig, *, prefix: str = "") -> dict[str, Any]:
    """Return the settings of codec `name` in a run-config, in snake case.

    `prefix` stands before each of the keys. A key of 0 is not set, unless it is a
    setting of the codec alone that may be 0, such as ``alpha``. ``codec-settings`` wins
    over a key of the same setting, because apps list such keys with a default.

    Raises
    ------
    ValueError
        If there is no such codec, or ``codec-settings`` is no string of settings, or a
        key is written with underscores.
    """
    codec_key = f"{prefix}codec"
    settings_key = f"{prefix}codec-settings"
    with under_key(codec_key):
        names = codec_settings(name)
    keys = {setting: prefix + key_of(setting) for setting in names}
    settings: dict[str, Any] = {}
    for setting, key in keys.items():
        if key not in config:
            continue
        value = config[key]
        if _is_set(name, setting, value):
            settings[setting] = value
    check_dashes(config, [codec_key, settings_key, *keys.values()])
    text = config.get(settings_key, "")
    for word, value in _parsed(settings_key, text).items():
        setting = field_of(word)
        settings[setting] = value
    return settings


def _is_set(name: str, setting: str, value: Scalar) -> bool:
    """Tell whether codec `name` is to take a key's value, which may be 0."""
    if value != 0:
        return True
    # no budget is 0, and a quality of 0 is the automatic one
    if setting in shared_settings():
        return False
    try:
        cut_codec(name, **{setting: value})
    except ValueError:
        return False
    return True


def _parsed(key: str, text: Scalar) -> dict[str, Scalar]:
    if not isinstance(text, str):
        raise ValueError(f"{key} is {text!r}, wanted str")
    with under_key(key):
        return parse_settings(text)

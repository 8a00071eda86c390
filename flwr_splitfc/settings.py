"""Settings: scalars that a person writes, checked against the types of a dataclass."""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from math import inf
from typing import (
    Any,
    Literal,
    TypeAlias,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

Scalar: TypeAlias = bool | int | float | str
"""A value that TOML, Flower's run-configs and its config records all carry."""

RunConfig: TypeAlias = Mapping[str, Scalar]
"""The run-config of a Flower app: settings under keys in kebab case."""

Settings = TypeVar("Settings")

_COMPLAINT = "{key} is {value!r}, wanted {wanted}"
_TOO_MANY = 2**31  # torch and Flower hold counts in 32 bits


def key_of(field: str) -> str:
    """Return the key of a field, which is its name in kebab case.

    >>> key_of("batch_size")
    'batch-size'
    """
    return field.replace("_", "-")


def field_of(key: str) -> str:
    """Return the name of a key's field.

    >>> field_of("batch-size")
    'batch_size'
    """
    return key.replace("-", "_")


def read_settings(kind: type[Settings], config: RunConfig) -> Settings:
    """Fill the dataclass `kind` from the keys of a run-config.

    A key is the field's name in kebab case. A field without a key keeps its default;
    keys that are no field are left to others.

    Raises
    ------
    ValueError
        If a value is not of its field's type, or an integer of more than 64 bits; an
        integer is a float, too. If a field's key is written with underscores.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Turn:
    ...     batch_size: int = 64
    ...     learning_rate: float = 1e-3
    >>> read_settings(Turn, {"batch-size": 32, "seed": 7})
    Turn(batch_size=32, learning_rate=0.001)
    """
    hints = get_type_hints(kind)
    check_dashes(config, [key_of(name) for name in hints])
    values = {}
    for field in fields(kind):  # type: ignore[arg-type]
        name = field.name
        key = key_of(name)
        if key in config:
            with under_key(key):
                check_int64(config[key])
            values[name] = check_scalar(key, config[key], hints[name])
    return kind(**values)


def check_dashes(config: Mapping[str, object], keys: Iterable[str]) -> None:
    """Refuse keys that nobody reads, since they are written with underscores.

    Parameters
    ----------
    config : mapping
    keys : iterable of str
        Those that are read.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> check_dashes({"feature_noise": 0.5}, ["feature-noise"])
    Traceback (most recent call last):
    ValueError: the config has 'feature_noise': write feature-noise, ...
    """
    known = set(keys)
    for key in config.keys() - known:
        if key_of(key) in known:
            raise ValueError(
                f"the config has {key!r}: write {key_of(key)}, or give a key of your "
                "own another name"
            )


def parse_settings(text: str) -> dict[str, Scalar]:
    """Parse settings that stand in one string, as ``key=value`` with spaces between.

    A value is a TOML scalar; what is no TOML is a string, so that plain words need no
    quotes. No value may hold a space. Whether a setting exists and what type it has is
    for the reader of the mapping to check.

    Raises
    ------
    ValueError
        If a part is not ``key=value``, its value is an array, a table or a time, or a
        key stands twice.

    Examples
    --------
    >>> parse_settings("reduction=8 correction=0.1 evaluation=codec")
    {'reduction': 8, 'correction': 0.1, 'evaluation': 'codec'}
    """
    settings: dict[str, Scalar] = {}
    for part in text.split():
        key, _, value_text = part.partition("=")
        if not key or not value_text:
            raise ValueError(f"a setting is key=value, got {part!r} in {text!r}")
        if key in settings:
            raise ValueError(f"setting {key!r} stands twice in {text!r}")
        value = parse_toml_value(value_text)
        if not isinstance(value, Scalar):
            raise ValueError(f"setting {part!r} is not a number, a boolean or a string")
        settings[key] = value
    return settings


def parse_toml_value(text: str) -> Any:
    """Parse a TOML value; what is no TOML is a string.

    >>> parse_toml_value("16"), parse_toml_value("fresh")
    (16, 'fresh')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (RecursionError, ValueError):
        return text


def check_scalar(
    key: str, value: object, hint: Any, *, complaint: str = _COMPLAINT
) -> Any:
    """Return `value` as the scalar that its type hint asks for.

    Parameters
    ----------
    key : str
        The setting's name, for the message.
    value : object
        What was given.
    hint : type
        A scalar type, a union of such types and None, or a `Literal`.
    complaint : str
        The error's message, a format string of `key`, `value` and `wanted`.

    Raises
    ------
    ValueError
        If the value is not of the type; an integer is a float, too, and comes back as
        one.

    Examples
    --------
    >>> check_scalar("reduction", 8, float)
    8.0
    """
    if get_origin(hint) is Literal:
        check_choice(key, value, get_args(hint), complaint=complaint)
        return value
    kinds = get_args(hint) or (hint,)
    if type(value) in kinds:
        return value
    if type(value) is int and float in kinds:
        with under_key(key):
            return float(value)
    names = [kind.__name__ for kind in kinds if kind is not type(None)]
    wanted = " or ".join(names)
    message = complaint.format(key=key, value=value, wanted=wanted)
    raise ValueError(message)


def check_choice(
    key: str, value: object, choices: Iterable[str], *, complaint: str = _COMPLAINT
) -> None:
    """Raise a `ValueError` that names the key if `value` is none of `choices`.

    The message leaves out the empty string, which stands for a default.
    """
    choices = list(choices)
    if value not in choices:
        named = filter(None, choices)
        wanted = "one of " + ", ".join(named)
        message = complaint.format(key=key, value=value, wanted=wanted)
        raise ValueError(message)


def check_int64(value: object) -> None:
    """Raise a `ValueError` if an integer does not fit into 64 bits, as in messages."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{value} is no integer of 64 bits")


def check_least(settings: object, **least: float) -> None:
    """Raise a `ValueError` that names the first of `settings` below its least value.

    An infinite one is refused, too, and an integer of more than 31 bits. A setting that
    is None is not checked.
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        too_many = _TOO_MANY if isinstance(value, int) else inf
        if value is None or bound <= value < too_many:
            continue
        key = key_of(name)
        wanted = f"{bound} or more"
        if value >= too_many:
            wanted = "a finite number" if value == inf else f"less than {too_many}"
        raise ValueError(f"{key} is {value}, wanted {wanted}")


@contextmanager
def under_key(key: str) -> Iterator[None]:
    """Put a key before the message of an error of the block about a value or a file.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> with under_key("split-port"):
    ...     int("many")
    Traceback (most recent call last):
    ValueError: split-port: invalid literal for int() with base 10: 'many'
    """
    try:
        yield
    except (OSError, OverflowError, ValueError) as error:
        raise ValueError(f"{key}: {error}") from None

"""A run-config's keys as the fields of a dataclass."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

RunConfig = Mapping[str, bool | float | int | str]
Settings = TypeVar("Settings")


def read_settings(kind: type[Settings], config: RunConfig) -> Settings:
    """The dataclass `kind`, filled from the keys of a run-config that are its fields in kebab case.

    A field without a key keeps its default; keys that are no field are left to others.

    Raises
    ------
    ValueError
        If a value is not of its field's type; an integer is a float, too.

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
    keys = {field.name: field.name.replace("_", "-") for field in fields(kind)}  # type: ignore[arg-type]
    return kind(
        **{
            name: _checked(key, config[key], hints[name])
            for name, key in keys.items()
            if key in config
        }
    )


def _checked(key: str, value: Any, hint: Any) -> Any:
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
    if type(value) in kinds:
        return value
    if type(value) is int and float in kinds:
        return float(value)
    raise ValueError(
        f"{key} is {value!r}, wanted {' or '.join(kind.__name__ for kind in kinds)}"
    )


def check_least(settings: object, **least: float) -> None:
    """Raise a `ValueError` that names the key of the first of `settings` that is below its least value."""
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is not None and not value >= bound:
            raise ValueError(
                f"{name.replace('_', '-')} is {value}, wanted {bound} or more"
            )


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Raise a `ValueError` that names the key if `value` is none of `choices`."""
    if value not in choices:
        raise ValueError(
            f"{key} is {value!r}, wanted one of {', '.join(filter(None, choices))}"
        )

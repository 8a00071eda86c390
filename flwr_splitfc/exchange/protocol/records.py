"""Config records that Flower can carry and count, and our fields in a message's."""

from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, RecordDict

FIELD_PREFIX = "split."
"""Before the keys of this package's fields in a message's config."""

_RECORD_KEY = "split"


def record_without_empty(fields: Mapping[str, Any]) -> ConfigRecord:
    """Return a record of the fields whose value is not the empty text.

    `ConfigRecord.count_bytes` fails for an empty text.
    """
    record = ConfigRecord()
    for key, value in fields.items():
        if value != "":
            record[key] = value
    return record


def with_fields(content: RecordDict, fields: Mapping[str, Any]) -> RecordDict:
    """Return a message's content with fields beside those of the strategy's config.

    Mods count a message's `ConfigRecord`, and want one: the fields stand in that,
    behind a prefix. Where there is none, or several, they have a record of their own.

    Parameters
    ----------
    content : RecordDict
        It is left as it is: strategies share it, and its records, among messages.
    fields : mapping
        Values by their keys, without the prefix.
    """
    configs = content.config_records
    key = next(iter(configs)) if len(configs) == 1 else _RECORD_KEY
    prefixed = {FIELD_PREFIX + name: value for name, value in fields.items()}
    config = ConfigRecord({**configs.get(key, {}), **prefixed})
    return RecordDict({**content, key: config})


def fields_of(content: RecordDict) -> dict[str, Any]:
    """Return the fields of `with_fields` in a message's content, by their keys."""
    fields: dict[str, Any] = {}
    for config in content.config_records.values():
        fields |= without_prefix(FIELD_PREFIX, config)
    return fields


def without_prefix(prefix: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries whose keys start with a prefix, under the rest of their keys.

    >>> without_prefix("codec.", {"codec.name": "splitfc", "seed": 0})
    {'name': 'splitfc'}
    """
    return {
        key.removeprefix(prefix): entry
        for key, entry in entries.items()
        if key.startswith(prefix)
    }

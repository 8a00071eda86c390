"""Config records that Flower can carry and count."""

from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord


def record_without_empty(fields: Mapping[str, Any]) -> ConfigRecord:
    """Return a record of the fields whose value is not the empty text.

    `ConfigRecord.count_bytes` fails for an empty text.
    """
    record = ConfigRecord()
    for key, value in fields.items():
        if value != "":
            record[key] = value
    return record

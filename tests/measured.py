"""The counts that differ when a run is repeated, because they depend on the machine."""

from dataclasses import fields

from flwr_splitfc.exchange.server.accounts.traffic import Traffic

MEASURED = tuple(
    declared.name
    for declared in fields(Traffic)
    if declared.metadata.get("group") == "measured"
)

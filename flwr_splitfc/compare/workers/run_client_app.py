"""The ClientApp of a simulation that serves many runs of one app."""

import json
from importlib import import_module
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

RUN_KEY = "flwr-splitfc.run"
"""The record of a message, and of a device's state, that says which run it is of."""

READY_TYPE = "query.flwr_splitfc_ready"
"""The type of messages that are answered as soon as the app is imported."""


class RunClientApp(ClientApp):
    """The ClientApp of a simulation that serves many runs of one app.

    The app's own gets the message as in a simulation of its own, and a context with the
    run's run-config and with what the device has kept since this run began.

    Parameters
    ----------
    component : str
        The app's ClientApp, ``module:name``; each process imports it once.
    """

    def __init__(self, component: str) -> None:
        super().__init__()
        self.component = component

    def __call__(self, message: Message, context: Context) -> Message:
        """Let the app's own ClientApp answer."""
        app = load_component(self.component)
        if message.metadata.message_type == READY_TYPE:
            return Message(RecordDict(), reply_to=message)
        told = message.content.config_records[RUN_KEY]
        message.content = _without_run(message.content)
        own = Context(
            run_id=context.run_id,
            node_id=context.node_id,
            node_config=context.node_config,
            state=_state_of(str(told["id"]), context.state),
            run_config=json.loads(str(told["config"])),
        )
        reply: Message = app(message, own)
        mark = ConfigRecord({"id": told["id"]})
        context.state = RecordDict({**own.state, RUN_KEY: mark})
        return reply


def load_component(component: str) -> Any:
    """Import what ``module:name`` names."""
    module, _, name = component.partition(":")
    return getattr(import_module(module), name)


def _state_of(run_id: str, state: RecordDict) -> RecordDict:
    """Return what a device kept from earlier messages of this run, not of others."""
    mark = state.config_records.get(RUN_KEY)
    if mark is None or mark["id"] != run_id:
        return RecordDict()
    return _without_run(state)


def _without_run(records: RecordDict) -> RecordDict:
    return RecordDict(
        {key: record for key, record in records.items() if key != RUN_KEY}
    )

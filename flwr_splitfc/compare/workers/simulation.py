"""One simulation that serves many runs: an app's parts, told in each message which run it belongs to."""

import json
import logging
import time
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from flwr_splitfc.codec import BudgetError
from flwr_splitfc.compare.flower_app import Settings
from flwr_splitfc.exchange.server.delegating_grid import DelegatingGrid
from flwr_splitfc.exchange.server.flower_messages import purpose_of

RUN_KEY = "flwr-splitfc.run"
_READY_TYPE = "query.flwr_splitfc_ready"
_POLL_S = 0.1
_TOO_SMALL = "the smallest that works is"


class DeviceFailed(RuntimeError):
    """A device raised an error in its turn: what a strategy would go on without, a comparison must not."""


class RunGrid(DelegatingGrid):
    """A grid that writes the run into each message, and stops the run when a device fails.

    Parameters
    ----------
    grid : Grid
        The simulation's own.
    run_id : str
    config : dict
        The run-config that the run's ClientApps shall see.

    Attributes
    ----------
    turns : int
        Train and evaluate messages sent.
    """

    def __init__(self, grid: Grid, run_id: str, config: Settings) -> None:
        super().__init__(grid)
        self.turns = 0
        # As text, because a ConfigRecord takes no empty strings.
        self._record = ConfigRecord({"id": run_id, "config": json.dumps(config)})

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Delegate."""
        return self._checked(
            super().send_and_receive(self._marked(messages), timeout=timeout)
        )

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Delegate."""
        return super().push_messages(self._marked(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Delegate."""
        return self._checked(super().pull_messages(message_ids))

    def _marked(self, messages: Iterable[Message]) -> list[Message]:
        marked = list(messages)
        for message in marked:
            # Strategies share one RecordDict among their messages; the copy shares its
            # arrays.
            message.content = RecordDict({**message.content, RUN_KEY: self._record})
            self.turns += purpose_of(message) is not None
        return marked

    def _checked(self, replies: Iterable[Message]) -> list[Message]:
        checked = list(replies)
        for reply in checked:
            if reply.has_error() and purpose_of(reply):
                reason = (reply.error.reason or "no reason given").strip()
                # of a traceback, which holds a machine's paths
                for line in reason.splitlines():
                    if _TOO_SMALL in line:
                        raise BudgetError(line.strip())
                raise DeviceFailed(f"a device failed: {reason}")
        return checked


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
        if message.metadata.message_type == _READY_TYPE:
            return Message(RecordDict(), reply_to=message)
        told = message.content.config_records[RUN_KEY]
        message.content = RecordDict(
            {key: part for key, part in message.content.items() if key != RUN_KEY}
        )
        own = Context(
            run_id=context.run_id,
            node_id=context.node_id,
            node_config=context.node_config,
            state=_state_of(str(told["id"]), context.state),
            run_config=json.loads(str(told["config"])),
        )
        reply: Message = app(message, own)
        context.state = RecordDict(
            {**own.state, RUN_KEY: ConfigRecord({"id": told["id"]})}
        )
        return reply


def wait_until_ready(grid: Grid, num_supernodes: int) -> None:
    """Wait until the simulation has started and its processes have loaded the app: no run's time to count."""
    while len(nodes := list(grid.get_node_ids())) < num_supernodes:
        time.sleep(_POLL_S)
    list(
        grid.send_and_receive(
            [Message(RecordDict(), node, _READY_TYPE) for node in nodes]
        )
    )


def run_server_app(
    component: str, grid: RunGrid, context: Context, config: Settings
) -> None:
    """Call an app's own ServerApp for one run."""
    own = Context(
        run_id=context.run_id,
        node_id=context.node_id,
        node_config=context.node_config,
        state=RecordDict(),
        run_config=config,
    )
    load_component(component)(grid, own)


def load_component(component: str) -> Any:
    """What ``module:name`` names."""
    module, _, name = component.partition(":")
    return getattr(import_module(module), name)


def simulate(
    main: Callable[[Grid, Context], None],
    client_app: ClientApp,
    num_supernodes: int,
    backend: dict[str, Any],
) -> None:
    """Run Flower's simulation engine in this process until `main`, the ServerApp, is done.

    ``flwr.simulation.run_simulation`` is deprecated since flwr 1.41, with no other
    public way to hold a simulation open for more than one run; that warning is not
    logged, everything else is. It is called here and nowhere else.
    """
    from flwr.simulation import run_simulation

    server_app = ServerApp()
    server_app.main()(main)
    flowers_log = logging.getLogger("flwr")
    flowers_log.addFilter(_is_no_deprecation)
    try:
        run_simulation(server_app, client_app, num_supernodes, backend_config=backend)
    finally:
        flowers_log.removeFilter(_is_no_deprecation)


def _is_no_deprecation(record: logging.LogRecord) -> bool:
    return not (
        "DEPRECATED" in str(record.msg) and "`run_simulation`" in record.getMessage()
    )


def _state_of(run_id: str, state: RecordDict) -> RecordDict:
    """What a device kept from earlier messages of this run; nothing of other runs."""
    mark = state.config_records.get(RUN_KEY, ConfigRecord())
    return RecordDict(
        {key: part for key, part in state.items() if key != RUN_KEY}
        if mark.get("id") == run_id
        else {}
    )

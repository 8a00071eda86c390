"""One of Flower's simulations, held open for many runs."""

import logging
import time
from collections.abc import Callable
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from flwr_splitfc.compare.workers.run_client_app import READY_TYPE, load_component
from flwr_splitfc.compare.workers.run_grid import RunGrid
from flwr_splitfc.settings import RunConfig

_POLL_S = 0.1


def simulate(
    main: Callable[[Grid, Context], None],
    client_app: ClientApp,
    num_supernodes: int,
    backend: dict[str, Any],
) -> None:
    """Run Flower's simulation engine in this process until its ServerApp is done.

    ``flwr.simulation.run_simulation`` is deprecated since flwr 1.41, with no other
    public way to hold a simulation open for more than one run. That warning is not
    logged, everything else is. It is called here and nowhere else.

    Parameters
    ----------
    main : callable
        The ServerApp.
    client_app : ClientApp
    num_supernodes : int
    backend : dict
        Flower's ``backend_config``.
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
    deprecation = "DEPRECATED" in str(record.msg)
    return not (deprecation and "`run_simulation`" in record.getMessage())


def wait_until_ready(grid: Grid, num_supernodes: int) -> None:
    """Wait until the simulation has started and its processes have loaded the app.

    No run's time shall count it.
    """
    nodes = list(grid.get_node_ids())
    while len(nodes) < num_supernodes:
        time.sleep(_POLL_S)
        nodes = list(grid.get_node_ids())
    questions = [Message(RecordDict(), node, READY_TYPE) for node in nodes]
    list(grid.send_and_receive(questions))


def run_server_app(
    component: str, grid: RunGrid, context: Context, config: RunConfig
) -> None:
    """Call an app's own ServerApp for one run."""
    own = Context(
        run_id=context.run_id,
        node_id=context.node_id,
        node_config=context.node_config,
        state=RecordDict(),
        run_config=dict(config),
    )
    load_component(component)(grid, own)

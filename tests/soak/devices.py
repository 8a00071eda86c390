"""The devices, in threads of this process: they answer what comes through the pipe."""

import contextlib
import random
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

from flwr.app import Context, Error, Message, RecordDict

from flwr_splitfc.exchange import has_ticket
from flwr_splitfc.exchange.protocol.ticket import Ticket
from tests.soak.legs import HONEST_NODES, HOSTILE_NODES, Leg
from tests.soak.misdeeds import Turn, misbehave
from tests.soak.pipe_grid import Packed

THREADS = 80
"""Hostile devices stay in a turn that is over for as long as they like."""


class Devices:
    """Twenty nodes.

    Parameters
    ----------
    pipe : Connection
        To the server.
    seed : int
        Of what the hostile ones do.

    Attributes
    ----------
    address : str
        Of the endpoint, as the last ticket said; empty before the first.
    """

    def __init__(self, pipe: Connection, seed: int) -> None:
        self.address = ""
        self._pipe = pipe
        self._sending = threading.Lock()
        self._pool = ThreadPoolExecutor(THREADS)
        self._draws = {node: random.Random(seed + node) for node in HOSTILE_NODES}
        self._over = threading.Event()

    def begin(self, leg: Leg) -> None:
        """Take part in another run."""
        self._over.set()
        self._over = threading.Event()
        self._leg = leg
        self.address = ""
        self._contexts = {
            node: _context(node) for node in [*HONEST_NODES, *HOSTILE_NODES]
        }

    def answer(self, packed: Packed) -> None:
        """Answer a message some time later."""
        self._pool.submit(self._answer, packed, self._leg, self._over)

    def stop(self) -> None:
        self._over.set()
        self._pool.shutdown(cancel_futures=True)

    def _answer(self, packed: Packed, leg: Leg, over: threading.Event) -> None:
        message = packed.message()
        if has_ticket(message):
            self.address = Ticket.from_message(message).address
        node = packed.node_id
        is_hostile = node in HOSTILE_NODES
        try:
            if is_hostile:
                turn = Turn(leg, message, self._contexts[node], self._draws[node], over)
                reply = misbehave(turn)
            else:
                reply = leg.app(message, self._contexts[node])
        except Exception:
            reply = Message(Error(2, traceback.format_exc()), reply_to=message)
        metadata = reply.metadata.__dict__
        metadata["_src_node_id"] = metadata.pop("forged_node", node)
        answer = Packed.of(reply, node, packed.message_id)
        # Flower cannot read it
        if is_hostile and self._draws[node].random() < 0.05:
            answer = answer.broken()
        with self._sending, contextlib.suppress(OSError):
            self._pipe.send(answer)


def _context(node: int) -> Context:
    # those whose name is not of a config of theirs go by it, too
    return Context(
        run_id=1,
        node_id=node,
        node_config={"partition-id": node - HONEST_NODES[0], "num-partitions": 20},
        state=RecordDict(),
        run_config={},
    )

"""A grid in this process: runs a ClientApp's functions in threads, without Ray or SuperLink."""

import ast
import sys
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import RLock
from typing import Any
from uuid import uuid4

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from flwr_splitfc.exchange import SplitEndpoint
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.frames import frame_field
from flwr_splitfc.exchange.protocol.records import with_fields

App = Callable[[Message, Context], Message]

# what Flower sets in a process of its own
TaskIdentity.task_id = 1
TaskIdentity.run_id = 1
TaskIdentity.node_id = 1


def _parse_one_at_a_time() -> None:
    """CPython before 3.11.8 fails now and then where two threads parse source.

    Devices are threads here, and numpy parses a header for each array that it loads.
    """
    parse, lock = ast.parse, RLock()

    def parse_alone(*args: Any, **options: Any) -> Any:
        with lock:
            return parse(*args, **options)

    ast.parse = parse_alone


if sys.version_info < (3, 11, 8):
    _parse_one_at_a_time()


class LocalGrid(Grid):
    """Runs `app` for each message; node 1000 + i is partition i.

    With no `workers`, in the thread that pushes: torch's random generator is one for
    all threads.
    """

    def __init__(self, app: App, num_devices: int, workers: int = 2) -> None:
        self.app = app
        self.contexts = {
            1000 + partition: _context(partition, num_devices)
            for partition in range(num_devices)
        }
        self.trained: list[int] = []
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._futures: dict[str, Future[Message]] = {}

    def _run(self, message: Message) -> Message:
        node_id = message.metadata.dst_node_id
        if message.metadata.message_type == "train":
            self.trained.append(node_id - 1000)
        try:
            reply = self.app(message, self.contexts[node_id])
        except Exception:
            error = Error(code=2, reason=traceback.format_exc())
            reply = Message(error, reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = node_id
        return reply

    def _submit(self, message: Message) -> Future[Message]:
        if self._pool is not None:
            return self._pool.submit(self._run, message)
        done: Future[Message] = Future()
        done.set_result(self._run(message))
        return done

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message_id = str(uuid4())
            message.metadata.__dict__["_message_id"] = message_id
            self._futures[message_id] = self._submit(message)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        waiting = [one for one in message_ids if one in self._futures]
        done = [one for one in waiting if self._futures[one].done()]
        return [self._futures.pop(one).result() for one in done]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        message_ids = self.push_messages(messages)
        wait([self._futures[one] for one in message_ids], timeout)
        return self.pull_messages(message_ids)

    def set_run(self, run: Any) -> None:
        raise AssertionError("not used")

    @property
    def run(self) -> Any:
        raise AssertionError("not used")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise AssertionError("not used")


def _context(partition: int, partitions: int) -> Context:
    return Context(
        run_id=1,
        node_id=1000 + partition,
        node_config={"partition-id": partition, "num-partitions": partitions},
        state=RecordDict(),
        run_config={},
    )


def ticket_message(
    endpoint: SplitEndpoint, purpose: str = "train", device: str = "0", **changes: Any
) -> Message:
    """A Flower message with a fresh ticket; `changes` falsify fields of it."""
    ticket = endpoint.issue(purpose, device, 1)
    fields = ticket.to_fields()
    fields |= {key.replace("_", "-"): value for key, value in changes.items()}
    kept = endpoint.kept(ticket.token)
    if kept.ByteSize():
        fields |= frame_field(pb.ServerFrame(kept=kept))
    content = with_fields(RecordDict({"config": ConfigRecord()}), fields)
    message = Message(content, 1000, purpose)
    message.metadata.__dict__["_message_id"] = str(uuid4())
    return message

"""A grid whose nodes are in another process; messages travel as Flower's bytes."""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any
from uuid import uuid4

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

# what Flower sets in a process of its own
TaskIdentity.task_id = 1
TaskIdentity.run_id = 1
TaskIdentity.node_id = 1


@dataclass(frozen=True)
class Packed:
    """A message to a node, or a node's reply to it, as bytes."""

    node_id: int
    message_id: str
    object_id: str
    contents: dict[str, bytes]

    @classmethod
    def of(cls, message: Message, node_id: int, message_id: str) -> "Packed":
        objects = get_all_nested_objects(message)
        contents = {key: each.deflate() for key, each in objects.items()}
        return cls(node_id, message_id, message.object_id, contents)

    def message(self) -> Message:
        """The message, if the bytes are those of one; Flower raises many kinds of errors."""
        read = inflate_object_from_contents(self.object_id, dict(self.contents))
        assert isinstance(read, Message)
        read.metadata.__dict__["_message_id"] = self.message_id
        return read

    def broken(self) -> "Packed":
        """The same, with bytes that Flower cannot read."""
        contents = {
            key: data.replace(b"{", b"[") if key != self.object_id else data
            for key, data in self.contents.items()
        }
        return replace(self, contents=contents)


class Courier:
    """Sends what a grid pushes, and collects the replies."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()
        self._replies: dict[str, Packed] = {}
        threading.Thread(target=self._collect, daemon=True).start()

    def send(self, what: Any) -> None:
        with self._sending:
            self._pipe.send(what)

    def take(self, message_ids: Iterable[str]) -> list[Packed]:
        """The replies to these messages that are in."""
        return [self._replies.pop(one) for one in message_ids if one in self._replies]

    def _collect(self) -> None:
        while True:
            try:
                reply = self._pipe.recv()
            except EOFError:
                return
            self._replies[reply.message_id] = reply


class PipeGrid(Grid):
    """The nodes with these ids, behind a courier."""

    def __init__(self, courier: Courier, node_ids: Iterable[int]) -> None:
        self.courier = courier
        self.node_ids = list(node_ids)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.node_ids)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message_id = str(uuid4())
            message.metadata.__dict__["_message_id"] = message_id
            node_id = message.metadata.dst_node_id
            self.courier.send(Packed.of(message, node_id, message_id))
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [packed.message() for packed in self.courier.take(message_ids)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        waiting = set(self.push_messages(messages))
        replies: list[Message] = []
        deadline = time.monotonic() + (timeout or 60.0)
        while waiting and time.monotonic() < deadline:
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
            time.sleep(0.01)
        return replies

    def set_run(self, run: Any) -> None:
        raise AssertionError("not used")

    @property
    def run(self) -> Any:
        raise AssertionError("not used")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise AssertionError("not used")

"""More sessions than the limit: they wait in order, and nobody is lost."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
import pytest

from flwr_splitfc import EndpointConfig, Limits, connect, cut_codec
from flwr_splitfc.exchange import Session, SplitEndpoint
from flwr_splitfc.exchange.device.stream import Stream
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.ticket import Ticket
from flwr_splitfc.exchange.server.endpoint.session_slots import NoRoom, SessionSlots
from tests.exchange.http2 import connection, greeting, message, open_stream
from tests.exchange.raw_device import RawDevice, open_frame, session_call
from tests.exchange.server_halves import shared_half
from tests.exchange.step_frames import label_bytes, step_frame
from tests.halves import DeviceHalf, batches, seeded
from tests.local_grid import ticket_message


def make_endpoint(**limits) -> SplitEndpoint:
    return SplitEndpoint(
        shared_half(),
        cut_codec("float32"),
        config=EndpointConfig(limits=Limits(**limits)),
    )


def train(endpoint: SplitEndpoint, device: str) -> None:
    with connect(ticket_message(endpoint, device=device)) as session:
        for x, y in batches(2):
            session.loss(seeded(DeviceHalf)(x), y)


def waiting_device(endpoint: SplitEndpoint, device: str, place: int) -> RawDevice:
    """A device that was told its place in the queue."""
    raw = RawDevice(endpoint, endpoint.issue("train", device, 1))
    assert raw.opened.waiting.place == place
    return raw


def next_frame(device: RawDevice) -> pb.ServerFrame:
    return next(device._replies)


def until_opened(device: RawDevice) -> RawDevice:
    assert next_frame(device).WhichOneof("kind") == "opened"
    return device


# -- the queue -------------------------------------------------------------------------


def test_first_come_first_served():
    slots = SessionSlots(1, most_waiting=9)
    first, second, third = [slots.take(name) for name in "abc"]
    assert [place.number for place in (first, second, third)] == [0, 1, 2]
    slots.leave(first)
    assert second.has_slot
    assert not third.has_slot
    slots.leave(second)
    assert third.has_slot


def test_streams_of_a_session_share_its_slot():
    slots = SessionSlots(1, most_waiting=9)
    old, new = slots.take("a"), slots.take("a")
    waiting = slots.take("b")
    slots.leave(old)
    assert new.has_slot
    assert not waiting.has_slot
    slots.leave(new)
    assert waiting.has_slot


def test_who_comes_back_has_its_old_rank():
    slots = SessionSlots(1, most_waiting=2)
    served, first, second = [slots.take(name) for name in "abc"]
    slots.leave(first)
    assert slots.take("b").number == 1
    slots.leave(served)
    # "b" has the slot; "a" had one before, and was the first of all
    assert slots.take("a").number == 1
    assert not second.has_slot


def test_a_full_queue_takes_nobody_new():
    slots = SessionSlots(1, most_waiting=1)
    served, waiting = slots.take("a"), slots.take("b")
    with pytest.raises(NoRoom, match="1 sessions are open and 1 wait"):
        slots.take("c")
    slots.leave(served)
    assert waiting.has_slot
    assert slots.take("c").number == 1


def test_a_session_that_is_over_is_forgotten():
    slots = SessionSlots(1, most_waiting=9)
    slots.take("a")
    over, other = slots.take("b"), slots.take("c")
    slots.forget("b")
    over.wait()
    slots.leave(over)
    # with its old rank it would be before "c"
    assert slots.take("b").number == 2
    assert not other.has_slot


# -- sessions --------------------------------------------------------------------------


def test_devices_are_told_to_wait_and_come_in_order():
    with make_endpoint(max_sessions=1) as endpoint:
        served = RawDevice(endpoint, endpoint.issue("train", "0", 1))
        queue = [waiting_device(endpoint, str(n), place=n) for n in range(1, 5)]
        for device in queue:
            served.drop()
            served = until_opened(device)
        served.drop()


def test_the_first_frame_waits_with_its_device():
    with make_endpoint(max_sessions=1) as endpoint:
        served = RawDevice(endpoint, endpoint.issue("train", "0", 1))
        device = waiting_device(endpoint, "1", place=1)
        x, _ = batches(1)[0]
        step = step_frame(seeded(DeviceHalf)(x).detach(), label_bytes(len(x)))
        step.number = 1
        device.send(step)
        assert endpoint.halves.half.steps == 0
        served.drop()
        until_opened(device)
        assert next_frame(device).WhichOneof("kind") == "stepped"
        device.drop()


def test_a_device_that_goes_away_leaves_the_queue():
    with make_endpoint(max_sessions=1) as endpoint:
        served = RawDevice(endpoint, endpoint.issue("train", "0", 1))
        leaves = waiting_device(endpoint, "1", place=1)
        stays = waiting_device(endpoint, "2", place=2)
        leaves.drop()
        served.drop()
        until_opened(stays).drop()


def test_a_running_session_comes_back_before_those_that_wait():
    with make_endpoint(max_sessions=1) as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        broken = RawDevice(endpoint, ticket)
        first = waiting_device(endpoint, "1", place=1)
        second = waiting_device(endpoint, "2", place=2)
        broken.drop()
        until_opened(first)
        again = RawDevice(endpoint, ticket)
        assert again.opened.waiting.place == 1
        first.drop()
        until_opened(again).drop()
        until_opened(second).drop()


def test_who_waits_is_neither_late_nor_silent():
    tight = dict.fromkeys(
        ("open_timeout_s", "idle_timeout_s", "reconnect_timeout_s"), 0.1
    )
    with make_endpoint(max_sessions=1, **tight) as endpoint:
        silent = RawDevice(endpoint, endpoint.issue("train", "0", 1))
        waiting = waiting_device(endpoint, "1", place=1)
        time.sleep(0.3)
        # the silent device loses its slot, and not who waited for it
        assert len(endpoint.sweep()) == 1
        until_opened(waiting).drop()
        silent.drop()


def test_the_end_of_the_round_ends_the_wait_with_its_reason():
    with make_endpoint(max_sessions=1) as endpoint, ExitStack() as at_end:
        served = RawDevice(endpoint, endpoint.issue("train", "0", 1))
        at_end.callback(served.drop)
        ticket = endpoint.issue("train", "1", 1)
        waiting = RawDevice(endpoint, ticket)
        assert waiting.opened.waiting.place == 1
        _, session = endpoint._registry.sessions()
        # the device may know its place before the server's thread sleeps
        while session.unopened_s:
            time.sleep(0.01)
        endpoint.revoke([ticket.token])
        assert next_frame(waiting).refused.reason == pb.EXPIRED
        assert next(waiting._replies, None) is None


@contextmanager
def deaf_device(endpoint: SplitEndpoint, caplog) -> Iterator[Ticket]:
    """A device in the queue whose stream has no window for what it is told."""
    caplog.set_level("DEBUG", "flwr")
    ticket = endpoint.issue("train", "deaf", 1)
    hello = message(0, open_frame().SerializeToString())
    with connection(endpoint) as its_connection:
        its_connection.sendall(greeting(window=0))
        its_connection.sendall(open_stream(0, ticket.token) + hello)
        while "split session waiting" not in caplog.text:
            time.sleep(0.01)
        yield ticket


def leave(device: RawDevice) -> None:
    """It is through, and its reply may take its time."""
    device.send(pb.DeviceFrame(leave=pb.Leave()))
    assert list(device._replies) == []


def test_who_does_not_take_its_slot_loses_it(caplog):
    with make_endpoint(max_sessions=1, idle_timeout_s=0.5) as endpoint:
        served = RawDevice(endpoint, endpoint.issue("train", "0", 1))
        with deaf_device(endpoint, caplog) as deaf:
            honest = waiting_device(endpoint, "1", place=2)
            leave(served)
            while not (given_up := endpoint.sweep()):
                time.sleep(0.02)
            assert given_up == {deaf.token: "silent for 0.5 s"}
            until_opened(honest).drop()


def test_the_end_of_the_round_frees_a_slot_that_is_not_taken(caplog):
    with make_endpoint(max_sessions=1) as endpoint:
        served = RawDevice(endpoint, endpoint.issue("train", "0", 1))
        with deaf_device(endpoint, caplog) as deaf:
            leave(served)
            endpoint.end_round([deaf.token])
            train(endpoint, "1")


def test_another_process_gets_no_place():
    with make_endpoint(max_sessions=1) as endpoint, ExitStack() as at_end:
        ticket = endpoint.issue("train", "0", 1)
        device = RawDevice(endpoint, ticket)
        at_end.callback(device.drop)
        thief = RawDevice(endpoint, ticket, nonce=b"x" * 16)
        assert thief.opened.refused.reason == pb.TOKEN
        waiting_device(endpoint, "1", place=1).drop()


def test_beyond_the_queue_devices_come_again():
    """One slot, one place to wait, and six devices: all of them train."""
    with make_endpoint(max_sessions=1, max_waiting=1) as endpoint:
        threads = [
            threading.Thread(target=train, args=(endpoint, str(n))) for n in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert endpoint.ledger.of(1, "train").steps == 12
        assert len(endpoint.ledger.devices("train")) == 6


def test_beyond_the_queue_a_device_is_told_that_the_server_is_full():
    with make_endpoint(max_sessions=1, max_waiting=1) as endpoint, ExitStack() as stack:
        served = RawDevice(endpoint, endpoint.issue("train", "0", 1))
        stack.callback(served.drop)
        stack.callback(waiting_device(endpoint, "1", place=1).drop)
        ticket = endpoint.issue("train", "2", 1)
        channel = stack.enter_context(grpc.insecure_channel(endpoint.address))
        answers = list(session_call(channel, ticket.token, iter([open_frame()])))
        assert answers[0].refused.reason == pb.LIMIT
        assert re.search("1 sessions are open and 1 wait", answers[0].refused.detail)


def test_waiting_is_neither_a_session_nor_time_on_the_link(caplog):
    caplog.set_level("DEBUG", "flwr")
    with make_endpoint(max_sessions=1) as endpoint:
        served = RawDevice(endpoint, endpoint.issue("train", "0", 1))
        ticket = Ticket.from_message(ticket_message(endpoint, device="1"))
        stream = Stream(ticket)

        def train_once() -> None:
            with Session(ticket, stream) as session:
                x, y = batches(1)[0]
                session.loss(seeded(DeviceHalf)(x), y)

        waits = threading.Thread(target=train_once)
        waits.start()
        while "1 is number 1 in its queue" not in caplog.text:
            time.sleep(0.01)
        time.sleep(0.5)
        served.drop()
        waits.join()
        assert stream.connecting_s > 0.5
        traffic = endpoint.ledger.devices("train")["1"]
        assert (traffic.sessions, traffic.reconnects) == (1, 0)
    assert "split session waiting" in caplog.text

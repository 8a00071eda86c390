"""A device's session with the server half, over a real gRPC stream."""

import math
import threading
import time
from dataclasses import replace

import grpc
import pytest
import torch
from flwr.app import Message, RecordDict
from torch import nn

from flwr_splitfc import PayloadError, connect, cut_codec
from flwr_splitfc.codec import CutCodec, pack_labels
from flwr_splitfc.exchange import (
    DeviceStates,
    EndpointConfig,
    EndpointUnreachable,
    FeaturesRefused,
    LabelsRefused,
    LimitExceeded,
    Limits,
    ProtocolError,
    Session,
    SessionCancelled,
    SplitEndpoint,
    StepRefused,
    TicketError,
    TicketExpired,
    TokenRefused,
)
from flwr_splitfc.exchange.device.stream import Stream
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.records import with_fields
from flwr_splitfc.exchange.protocol.tensors import pack_tensor, to_matrix, unpack_tensor
from flwr_splitfc.exchange.protocol.ticket import PROTOCOLS, Ticket
from flwr_splitfc.exchange.server.accounts.traffic import Traffic
from tests.exchange.raw_device import RawDevice, open_frame, session_call
from tests.exchange.server_halves import ADAM, everything, shared_half
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded, weights
from tests.local_grid import ticket_message

FLOAT32 = cut_codec("float32")


def limited(**limits) -> SplitEndpoint:
    config = EndpointConfig(limits=Limits(**limits))
    return SplitEndpoint(shared_half(), FLOAT32, config=config)


@pytest.fixture
def endpoint():
    with SplitEndpoint(shared_half(), FLOAT32) as endpoint:
        yield endpoint


@pytest.fixture
def device_half():
    return seeded(DeviceHalf)


def test_loss_and_gradient_are_those_of_the_joined_model(endpoint, device_half):
    x, y = batches(1)[0]
    server = seeded(ServerHalf)
    features = device_half(x).detach().requires_grad_()
    wanted = nn.functional.cross_entropy(server(features), y)
    wanted.backward()
    with connect(ticket_message(endpoint)) as session:
        seen = features.detach().clone().requires_grad_()
        loss = session.loss(seen, y)
        (3 * loss).backward()
    assert torch.equal(loss, wanted)
    assert torch.equal(seen.grad, 3 * features.grad)
    assert not same(weights(endpoint.halves.half.model), weights(server))


def test_predict_returns_the_server_halfs_output_and_trains_nothing(
    endpoint, device_half
):
    x, _ = batches(1)[0]
    before = everything(endpoint)
    with connect(ticket_message(endpoint, "evaluate")) as session, torch.no_grad():
        features = device_half(x)
        logits = session.predict(features)
    assert torch.equal(logits, seeded(ServerHalf)(features.half().float()))
    assert same(everything(endpoint), before)
    assert endpoint.ledger.of(1, "evaluate").uplink_bits_per_entry == 16


@pytest.mark.parametrize("purpose", ["evaluate", "train"])
def test_predictions_of_features_in_units_of_their_own_are_exact(endpoint, purpose):
    """Beyond float16, or with an offset that leaves it few bits: they go up as float32."""
    torch.manual_seed(0)
    kind = "features" if purpose == "evaluate" else "validation"
    server = seeded(ServerHalf).eval()
    with connect(ticket_message(endpoint, purpose)) as session, torch.no_grad():
        for features in (
            1e5 * torch.randn(16, 4, 4, 4),
            torch.randn(16, 4, 4, 4) + 1000,
        ):
            assert torch.equal(session.predict(features), server(features))
    traffic = endpoint.ledger.of(1, purpose)
    assert traffic.uplink_bytes[kind] == 2 * 16 * 64 * 4


def test_float32_in_place_of_float16_is_for_predictions_alone(good):
    features, y = good
    matrix = to_matrix(FLOAT32.encode_features(features)[0])
    predict = pb.DeviceFrame(predict=pb.Predict(features=matrix))
    step = pb.DeviceFrame(step=pb.Step(features=matrix, labels=pack_labels(y)))
    with SplitEndpoint(shared_half(), cut_codec("float16")) as endpoint:
        stream = Stream(endpoint.issue("train", "0", 1))
        assert stream.ask(predict).predicted.logits.data
        with pytest.raises(FeaturesRefused, match=r"agreed is 'float16/1'$"):
            stream.ask(step)


def test_training_needs_a_graph(endpoint, device_half):
    x, y = batches(1)[0]
    with connect(ticket_message(endpoint)) as session:
        with pytest.raises(RuntimeError, match="autograd graph"), torch.no_grad():
            session.loss(device_half(x), y)
        session.loss(device_half(x), y).backward()


def test_metrics_and_ledger_count_the_same_session(endpoint, device_half):
    with connect(ticket_message(endpoint)) as session:
        losses = [session.loss(device_half(x), y).item() for x, y in batches(3)]
        metrics = session.metrics()
    traffic = endpoint.ledger.of(1, "train")
    mean_loss = pytest.approx(sum(losses) / 3)
    matrix_bytes = 3 * 16 * 64 * 4
    assert metrics["steps"] == traffic.steps == 3
    assert metrics["num-examples"] == traffic.rows == 48
    assert metrics["train_loss"] == mean_loss
    assert traffic.loss == mean_loss
    assert traffic.uplink_bytes["features"] == matrix_bytes
    assert traffic.downlink_bytes["gradient"] == matrix_bytes
    assert traffic.uplink_bits_per_entry == traffic.downlink_bits_per_entry == 32
    assert 0 < traffic.uplink_bytes["labels"] < 3 * 40
    # close, and gRPC's own bytes
    assert traffic.uplink_bytes.total() > metrics["uplink_bytes"]
    assert traffic.device_codec_seconds > 0
    assert traffic.server_codec_seconds > 0
    assert traffic.link_seconds > 0


def trained(codec: CutCodec, *, validates: bool) -> tuple[Traffic, dict, dict]:
    """Traffic, the device's metrics and the server half of a turn of training."""
    device_half = seeded(DeviceHalf)
    with SplitEndpoint(shared_half(), codec) as endpoint:
        with connect(ticket_message(endpoint)) as session:
            for x, y in batches(3):
                if validates:
                    session.predict(device_half(torch.cat([x, x])))
                session.loss(device_half(x), y)
            metrics = session.metrics()
        return endpoint.ledger.of(1, "train"), metrics, everything(endpoint)


@pytest.mark.parametrize("name", ["float32", "splitfc", "splitfc-rd"])
def test_a_turn_of_training_is_measured_by_what_it_trained_on(name):
    codec = cut_codec(name, uplink_bits=3, downlink_bits=3)
    traffic, metrics, half = trained(codec, validates=True)
    wanted, wanted_metrics, wanted_half = trained(codec, validates=False)
    assert same(half, wanted_half)
    for count in ("num-examples", "steps", "train_loss"):
        assert metrics[count] == wanted_metrics[count]
    for count in ("steps", "rows", "entries", "loss", "feature_error"):
        assert getattr(traffic, count) == getattr(wanted, count)
    assert traffic.uplink_bits_per_entry == wanted.uplink_bits_per_entry
    assert traffic.downlink_bits_per_entry == wanted.downlink_bits_per_entry
    assert (traffic.predictions, wanted.predictions) == (3, 0)
    # float16, and its logits of four classes in float32
    assert traffic.uplink_bytes["validation"] == 3 * 32 * 64 * 2
    assert traffic.downlink_bytes["logits"] == 3 * 32 * 4 * 4
    more = metrics["uplink_bytes"] - wanted_metrics["uplink_bytes"]
    assert traffic.uplink_bytes.total() - wanted.uplink_bytes.total() > more > 12_288


def test_a_large_prediction_leaves_the_budget_to_bind_training(good):
    codec = cut_codec("splitfc", uplink_bits=0.001, reduction=4)
    with (
        SplitEndpoint(shared_half(), codec) as endpoint,
        connect(ticket_message(endpoint)) as session,
    ):
        session.predict(torch.rand(64, 4, 4, 4))
        with pytest.raises(ValueError, match="uplink_bits"):
            session.loss(*good)


def refused(endpoint, error, match, features, labels, message=None):
    """The step is refused by name, and the server half is as before."""
    message = message or ticket_message(endpoint)
    before = everything(endpoint)
    steps = endpoint.halves.half.steps
    with pytest.raises(error, match=match), connect(message) as session:
        session.loss(features, labels)
    assert same(everything(endpoint), before)
    assert endpoint.halves.half.steps == steps


@pytest.fixture
def good(device_half):
    x, y = batches(1)[0]
    return device_half(x).detach().requires_grad_(), y


def test_wrong_token(endpoint, good):
    message = ticket_message(endpoint, token="guess")
    refused(endpoint, TokenRefused, "unknown token", *good, message)


def test_used_token(endpoint, good):
    message = ticket_message(endpoint)
    with connect(message) as session:
        session.loss(*good)
        other = RawDevice(endpoint, session.ticket)
        assert other.opened.refused.reason == pb.TOKEN
        assert "used before, by another process or an" in other.opened.refused.detail
        other.drop()
        session.loss(*good)
    assert endpoint.halves.half.steps == 2


def test_a_message_admits_to_one_session(endpoint, good):
    message = ticket_message(endpoint)
    with connect(message) as session:
        session.loss(*good)
        refused(endpoint, TokenRefused, "within one `with`", *good, message)
        session.loss(*good)
    refused(endpoint, TokenRefused, "within one `with`", *good, message)


def test_a_session_that_was_never_opened_may_be_tried_again(endpoint, good):
    ticket = Ticket.from_message(ticket_message(endpoint))
    nobody = Session(
        ticket, Stream(replace(ticket, reconnect_timeout_s=0.01), "[::1]:1")
    )
    with pytest.raises(EndpointUnreachable), nobody:
        nobody.loss(*good)
    with Session(ticket, Stream(ticket)) as session:
        session.loss(*good)


def test_expired_ticket(endpoint, good):
    message = ticket_message(endpoint)
    endpoint.revoke([Ticket.from_message(message).token])
    refused(endpoint, TicketExpired, "is over", *good, message)


def test_wrong_feature_width(endpoint, good):
    features, labels = good
    wide = torch.cat([features, features], 1).detach().requires_grad_()
    refused(endpoint, FeaturesRefused, "does not take", wide, labels)
    with (
        pytest.raises(FeaturesRefused, match=r"does not take features \(16, 8, 4, 4\)"),
        connect(ticket_message(endpoint)) as session,
    ):
        session.loss(features, labels)
        session.loss(wide, labels)
    assert endpoint.halves.half.steps == 1


@pytest.mark.parametrize("label", [-1, 4, 10**12])
def test_label_out_of_range(endpoint, good, label):
    features, labels = good
    labels = labels.clone()
    labels[3] = label
    message = f"label {label} is out of range"
    refused(endpoint, LabelsRefused, message, features, labels)


def test_wrong_number_of_labels(endpoint, good):
    features, labels = good
    refused(endpoint, LabelsRefused, "wanted 16 rows", features, labels[:-1])


def test_labels_that_the_loss_does_not_take(endpoint, good):
    features, _ = good
    floats = torch.rand(16, 7)
    refused(endpoint, LabelsRefused, "the loss does not take", features, floats)


def test_evaluation_tickets_do_not_train(endpoint, good):
    message = ticket_message(endpoint, "evaluate")
    refused(endpoint, ProtocolError, "cannot train", *good, message)


def test_a_loss_that_is_not_finite_changes_nothing(good):
    def divided(out, y):
        return (out.squeeze(1) / y).mean()

    features, _ = good
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 1))
    with SplitEndpoint(shared_half(model, divided), FLOAT32) as endpoint:
        refused(endpoint, StepRefused, "not finite", features, torch.zeros(16))


def test_features_that_are_not_finite_stay_on_the_device(endpoint, good):
    features, labels = good
    features = features.detach().clone()
    features[0, 0, 0, 0] = torch.nan
    refused(endpoint, ValueError, "(?i)nan", features.requires_grad_(), labels)


def test_a_budget_too_small_is_refused_before_anything_is_sent(good):
    codec = cut_codec("splitfc", uplink_bits=0.001, reduction=4)
    with SplitEndpoint(shared_half(), codec) as endpoint:
        refused(endpoint, ValueError, "uplink_bits", *good)


def test_a_short_last_batch_may_exceed_the_budget(device_half):
    codec = cut_codec("splitfc", uplink_bits=3, downlink_bits=3, reduction=4)
    with SplitEndpoint(shared_half(), codec) as endpoint:
        x, y = batches(1, rows=32)[0]
        with connect(ticket_message(endpoint)) as session:
            session.loss(device_half(x), y).backward()
            session.loss(device_half(x[:1]), y[:1]).backward()
        assert endpoint.ledger.of(1, "train").steps == 2


def test_limit_of_steps(good):
    with limited(max_steps=2) as endpoint:
        with (
            pytest.raises(LimitExceeded, match="2 steps"),
            connect(ticket_message(endpoint)) as session,
        ):
            for _ in range(3):
                session.loss(*good)
        assert endpoint.halves.half.steps == 2


def test_predictions_count_for_the_limit_of_steps(good):
    with (
        limited(max_steps=2) as endpoint,
        pytest.raises(LimitExceeded, match="2 steps"),
        connect(ticket_message(endpoint)) as session,
    ):
        session.loss(*good)
        session.predict(good[0])
        session.predict(good[0])


def test_a_matrix_over_the_limit(good):
    with limited(max_matrix_bytes=4095) as endpoint:
        refused(endpoint, FeaturesRefused, "over 4095 bytes", *good)


def test_a_device_that_fails_mid_turn_leaves_the_others_alone(endpoint, good):
    with pytest.raises(ZeroDivisionError), connect(ticket_message(endpoint)) as session:
        session.loss(*good)
        raise ZeroDivisionError
    with connect(ticket_message(endpoint, device="1")) as session:
        session.loss(*good)
    assert endpoint.halves.half.steps == 2


def test_revoking_cancels_an_open_session(endpoint, good):
    message = ticket_message(endpoint)
    with pytest.raises((SessionCancelled, TicketExpired)), connect(message) as session:
        session.loss(*good)
        endpoint.revoke([Ticket.from_message(message).token])
        session.loss(*good)
    assert endpoint.halves.half.steps == 1


def test_idle_sessions_are_cancelled(good):
    with limited(idle_timeout_s=0.05) as endpoint:
        with (
            pytest.raises((SessionCancelled, TicketExpired)),
            connect(ticket_message(endpoint)) as session,
        ):
            session.loss(*good)
            time.sleep(0.2)
            endpoint.sweep()
            session.loss(*good)
        assert endpoint.halves.half.steps == 1


def test_nobody_at_the_address(endpoint, good):
    message = ticket_message(endpoint, address="127.0.0.1:9", reconnect_timeout_s=0.1)
    told = r"127\.0\.0\.1:9.*split-address"
    with pytest.raises(EndpointUnreachable, match=told), connect(message):
        pass


@pytest.mark.parametrize("timeout_s", [60.0, 60, 5, 0.5])
def test_a_ticket_arrives_as_it_was_issued(timeout_s):
    with limited(reconnect_timeout_s=timeout_s) as endpoint:
        ticket = endpoint.issue("train", "7", 3)
        content = with_fields(RecordDict(), ticket.to_fields())
        assert Ticket.from_message(Message(content, 1000, "train")) == ticket


@pytest.mark.parametrize("timeout_s", [math.nan, -1.0])
def test_a_ticket_names_a_time_to_give_up(endpoint, timeout_s):
    message = ticket_message(endpoint, reconnect_timeout_s=timeout_s)
    with pytest.raises(TicketError, match=rf"{timeout_s}, wanted 0 or more"):
        Ticket.from_message(message)


def test_no_ticket_and_other_protocols(endpoint):
    message = ticket_message(endpoint, protocols=[99])
    with pytest.raises(ProtocolError, match=r"99.*same version"):
        connect(message)
    message.content.pop("config")
    with pytest.raises(TicketError, match="no split ticket"):
        connect(message)
    with pytest.raises(TicketError, match="codec"):
        connect(ticket_message(endpoint, **{"codec.name": "nonsense"}))


def exchange_raw(endpoint, frames, token):
    """Send frames as they are; the replies until the stream ends."""
    with grpc.insecure_channel(endpoint.address) as channel:
        return list(session_call(channel, token, iter(frames)))


OPEN = open_frame()


@pytest.mark.parametrize(
    ("matrix", "detail"),
    [
        (pb.Matrix(stype="float32/1", shape=[16, 4, 4, 4], data=b"short"), ""),
        (pb.Matrix(stype="pickle/1", shape=[16, 4, 4, 4], data=b""), "pickle/1"),
        (pb.Matrix(stype="float32/1", shape=[2**31, 2**31], data=b""), "over"),
        (pb.Matrix(stype="float32/1", shape=[16], data=bytes(64)), "empty dimension"),
        (pb.Matrix(stype="float32/1", shape=[1] * 9, data=bytes(4)), "9 dimensions"),
        (pb.Matrix(stype="float32/1", shape=[0, 64], data=b""), "empty dimension"),
        (pb.Matrix(stype="float32/1", shape=[1, 64], data=b"\xff" * 256), ""),
    ],
)
def test_features_from_a_stranger(endpoint, matrix, detail):
    token = endpoint.issue("train", "0", 1).token
    before = everything(endpoint)
    step = pb.DeviceFrame(number=1, step=pb.Step(features=matrix))
    opened, answer = exchange_raw(endpoint, [OPEN, step], token)
    assert opened.WhichOneof("kind") == "opened"
    assert answer.refused.reason == pb.FEATURES
    assert detail in answer.refused.detail
    assert same(everything(endpoint), before)


@pytest.mark.parametrize(
    "frames",
    [
        [pb.DeviceFrame()],
        [pb.DeviceFrame(close=pb.Close())],
        [pb.DeviceFrame(open=pb.Open(protocol=PROTOCOLS[-1] + 1, nonce=bytes(16)))],
        [pb.DeviceFrame(open=pb.Open(protocol=PROTOCOLS[-1]))],
        [OPEN, OPEN],
        [OPEN, pb.DeviceFrame(number=2, step=pb.Step())],
        [OPEN, pb.DeviceFrame(number=1)],
        [OPEN, pb.DeviceFrame(number=2**64 - 1, close=pb.Close())],
    ],
)
def test_frames_out_of_order(endpoint, frames):
    replies = exchange_raw(endpoint, frames, endpoint.issue("train", "0", 1).token)
    assert replies[-1].refused.reason == pb.PROTOCOL


@pytest.mark.parametrize(
    ("mode", "shared", "kept"), [("relay", 1, 2), ("per-device", 0, 1), ("fresh", 0, 0)]
)
def test_optimizer_state_between_turns(mode, shared, kept, device_half):
    """Steps the optimizer has behind it: on the second device's first turn, and on the first's second."""
    x, y = batches(1)[0]
    steps = []
    states = DeviceStates(mode)
    with SplitEndpoint(shared_half(), FLOAT32, states=states) as endpoint:
        for device in ("a", "b", "a"):
            optimizer = ADAM(device_half.parameters())
            message = ticket_message(endpoint, device=device)
            with connect(message, optimizer=optimizer) as session:
                state = optimizer.state_dict()["state"]
                steps.append(int(state[0]["step"]) if state else 0)
                session.loss(device_half(x), y).backward()
                optimizer.step()
            endpoint.replied(session.ticket.token)
    assert steps == [0, shared, kept]


@pytest.mark.parametrize(
    ("mode", "sent"), [("relay", True), ("per-device", True), ("fresh", False)]
)
def test_optimizer_state_that_nobody_starts_from_is_not_sent(mode, sent, device_half):
    x, y = batches(1)[0]
    optimizer = ADAM(device_half.parameters())
    with SplitEndpoint(shared_half(), FLOAT32, states=DeviceStates(mode)) as endpoint:
        message = ticket_message(endpoint)
        # devices of before it was there go by the others
        (config,) = message.content.config_records.values()
        assert ("split.keeps-optimizer" in config) is not sent
        with connect(message, optimizer=optimizer) as session:
            session.loss(device_half(x), y).backward()
            optimizer.step()
        traffic = endpoint.ledger.of(1, "train")
    assert (traffic.uplink_bytes["state"] > 0) is sent


def test_a_device_that_sends_it_all_the_same_is_no_worse(device_half):
    """Older ones do."""
    x, y = batches(1)[0]
    optimizer = ADAM(device_half.parameters())
    states = DeviceStates("fresh")
    with SplitEndpoint(shared_half(), FLOAT32, states=states) as endpoint:
        message = ticket_message(endpoint, keeps_optimizer=True)
        with connect(message, optimizer=optimizer) as session:
            session.loss(device_half(x), y).backward()
            optimizer.step()
        endpoint.replied(session.ticket.token)
        assert endpoint.ledger.of(1, "train").uplink_bytes["state"] > 0
    assert states.of("0").optimizer == ()


def test_other_state_stays_with_its_device(endpoint):
    seen = []
    for device in ("a", "b", "a"):
        with connect(ticket_message(endpoint, device=device)) as session:
            seen.append(session.state.get("position"))
            session.state["position"] = torch.tensor([7, 8])
        endpoint.replied(session.ticket.token)
    assert seen[:2] == [None, None]
    assert torch.equal(seen[2], torch.tensor([7, 8]))


def test_tensors_cross_the_wire_bit_by_bit():
    for dtype in (torch.bool, torch.int64, torch.bfloat16, torch.float64):
        for shape in ((), (3, 2), (0, 4)):
            tensor = torch.ones(shape).to(dtype)
            again = unpack_tensor(pack_tensor("x", tensor))
            assert again.dtype == dtype
            assert torch.equal(again, tensor)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pb.Tensor(dtype="object", shape=[1], data=b"x"), "unknown dtype"),
        (
            pb.Tensor(dtype="float32", shape=[2], data=bytes(4)),
            "has 4 bytes, its shape needs 8",
        ),
        (
            pb.Tensor(dtype="float32", shape=[2**31, 2**31], data=bytes(4)),
            "its shape needs",
        ),
        (pb.Tensor(dtype="bool", shape=[1], data=b"\x02"), "no bool"),
        (pb.Tensor(dtype="uint8", shape=[1] * 9, data=b"x"), "9 dimensions"),
    ],
)
def test_malformed_tensors_are_named(frame, message):
    with pytest.raises(PayloadError, match=message):
        unpack_tensor(frame)


def test_a_gradient_too_large_to_send_changes_nothing(good):
    def steep(out, y):
        return out.sum() * 1e38

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with SplitEndpoint(shared_half(model, steep), FLOAT32) as endpoint:
        refused(endpoint, StepRefused, "beyond 1e18", *good)


def test_sessions_side_by_side(endpoint, device_half):
    def turn(device: str) -> None:
        with connect(ticket_message(endpoint, device=device)) as session:
            for x, y in batches(5, seed=int(device)):
                session.loss(seeded(DeviceHalf)(x), y).backward()

    threads = [threading.Thread(target=turn, args=(str(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert endpoint.halves.half.steps == endpoint.ledger.of(1, "train").steps == 40
    assert endpoint.ledger.of(1, "train").sessions == 8

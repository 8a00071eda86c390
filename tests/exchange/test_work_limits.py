"""A small frame asks for no large work, and all sessions together have one budget."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from flwr_splitfc import EndpointConfig, Limits, connect, cut_codec
from flwr_splitfc.exchange import FeaturesRefused, LimitExceeded, SplitEndpoint
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.ticket import Ticket
from flwr_splitfc.exchange.server.turn.work_budget import WorkBudget
from tests.exchange.raw_device import RawDevice
from tests.exchange.server_halves import shared_half
from tests.exchange.step_frames import label_bytes, step_frame
from tests.local_grid import ticket_message

ROWS = 16_384


def make_endpoint(codec: str = "float32", **limits) -> SplitEndpoint:
    return SplitEndpoint(
        shared_half(), cut_codec(codec), config=EndpointConfig(limits=Limits(**limits))
    )


def test_a_step_of_a_few_bytes_cannot_ask_for_many_rows():
    """Features of zeros, whose means are all that is sent."""
    frame = step_frame(torch.zeros(ROWS, 4, 4, 4), label_bytes(ROWS), "quant-only")
    frame.number = 1
    assert frame.ByteSize() < 100
    with make_endpoint("quant-only") as endpoint:
        device = RawDevice(endpoint, Ticket.from_message(ticket_message(endpoint)))
        refused = device.ask(frame).refused
        assert refused.reason == pb.LIMIT
        assert f"{ROWS} samples, at most 4096" in refused.detail
        device.drop()


def test_training_and_prediction_have_limits_of_their_own():
    labels = torch.zeros(16, dtype=torch.long)
    features = torch.rand(16, 4, 4, 4, requires_grad=True)
    with make_endpoint(max_train_rows=8, max_predict_rows=16) as endpoint:
        with connect(ticket_message(endpoint)) as session:
            session.predict(features)
        with (
            pytest.raises(LimitExceeded, match="16 samples, at most 8") as train,
            connect(ticket_message(endpoint)) as session,
        ):
            session.loss(features, labels)
        with (
            pytest.raises(LimitExceeded, match="17 samples, at most 16") as predict,
            connect(ticket_message(endpoint, "evaluate")) as session,
        ):
            session.predict(torch.rand(17, 4, 4, 4))
    assert "Limits(max_train_rows=...)" in str(train.value)
    assert "split-max-predict-rows" in str(predict.value)


def test_work_waits_until_it_fits():
    budget = WorkBudget(100)
    most_bytes = 0
    counting = threading.Lock()

    def work(size_bytes: int) -> None:
        nonlocal most_bytes
        with budget.work(size_bytes):
            with counting:
                most_bytes = max(most_bytes, budget.in_work_bytes)
            # longer than others need to begin, where they may
            threading.Event().wait(0.002)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, [30, 60, 100, 10] * 20))
    assert 0 < most_bytes <= 100
    assert budget.in_work_bytes == 0


def test_work_over_the_budget_is_done_alone():
    budget = WorkBudget(100)
    with budget.work(1000):
        assert budget.in_work_bytes == 1000
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda _: _alone(budget), range(20)))
    assert sizes == [1000] * 20


def _alone(budget: WorkBudget) -> int:
    with budget.work(1000):
        return budget.in_work_bytes


def test_sessions_share_the_budget():
    """Each step is as large as the budget: they come one after another, and all come."""
    features = torch.rand(16, 4, 4, 4)
    with make_endpoint(max_work_bytes=features.nbytes) as endpoint:

        def device(name: int) -> None:
            with connect(ticket_message(endpoint, device=str(name))) as session:
                for _ in range(5):
                    leaf = features.clone().requires_grad_()
                    session.loss(leaf, torch.zeros(16, dtype=torch.long))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(device, range(8)))
        assert endpoint.halves.half.steps == 40


def test_a_refused_frame_gives_its_share_back():
    """Many in a row would otherwise stop the server."""
    features = torch.rand(16, 4, 4, 4)
    labels = torch.zeros(16, dtype=torch.long)
    wide = torch.rand(16, 5, 4, 4)
    with make_endpoint(max_work_bytes=features.nbytes) as endpoint:
        for _ in range(3):
            with (
                pytest.raises(FeaturesRefused),
                connect(ticket_message(endpoint)) as session,
            ):
                session.loss(wide.requires_grad_(), labels)
        with connect(ticket_message(endpoint)) as session:
            session.loss(features.requires_grad_(), labels)
        assert endpoint.halves.half.steps == 1

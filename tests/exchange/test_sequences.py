"""Sequences whose lengths differ between batches and between devices."""

from functools import partial

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from flwr_splitfc import SplitClientApp, SplitLearning, connect, cut_codec
from flwr_splitfc.exchange import (
    FeaturesRefused,
    HalfTrainer,
    SharedHalf,
    SplitEndpoint,
)
from tests.exchange.server_halves import ADAM, everything
from tests.halves import same, seeded, weights
from tests.local_grid import LocalGrid, ticket_message

WORDS, WIDTH, CLASSES = 12, 8, 3
CROSS_ENTROPY = nn.CrossEntropyLoss()


class DeviceHalf(nn.Module):
    """Token ids (B, T) to features (B, T, C), with a mask of what is no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        hidden = self.layer(self.embedding(ids)).relu()
        return {"hidden": hidden, "mask": ids != 0}


class ServerHalf(nn.Module):
    """The mean over the places that are no padding, in a class."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.last = nn.Linear(WIDTH, CLASSES)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        outputs, _ = self.gru(features["hidden"])
        mask = features["mask"].unsqueeze(-1)
        return self.last((outputs * mask).sum(1) / mask.sum(1))


def batches(lengths: list[int], seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Token ids of which the first says the class."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        ids = torch.randint(1, WORDS, (8, length), generator=draw)
        ids[:4, length // 2 :] = 0
        made.append((ids, ids[:, 0] % CLASSES))
    return made


def run(codec: str, lengths: list[list[int]], **bits: float) -> SplitLearning:
    """Devices train at once, each on sequences of its own lengths."""
    app = SplitClientApp(
        DeviceHalf,
        lambda context: (batches(lengths[context.node_config["partition-id"]]),) * 2,
        ADAM,
        loss_fn=CROSS_ENTROPY,
    )
    strategy = SplitLearning(
        seeded(ServerHalf),
        CROSS_ENTROPY,
        ADAM,
        codec=cut_codec(codec, **bits),
        devices=FedAvg(),
    )
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    strategy.start(LocalGrid(app, len(lengths)), arrays, 2)
    return strategy


@pytest.mark.parametrize(
    ("codec", "bits"),
    [
        ("float32", {}),
        ("splitfc-rd", {"quality": 0, "uplink_bits": 32, "downlink_bits": 32}),
        ("splitfc", {"uplink_bits": 8, "downlink_bits": 8, "reduction": 2}),
    ],
)
def test_lengths_differ_between_batches_and_devices(codec, bits):
    lengths = [[9, 4, 17], [6, 30]]
    strategy = run(codec, lengths, **bits)
    traffic = strategy.ledger.total("train")
    assert traffic.steps == 2 * 5
    assert traffic.entries == 2 * 8 * WIDTH * sum(map(sum, lengths))


def test_training_is_that_of_the_unsplit_model():
    lengths = [9, 4, 17, 9]
    device, server = seeded(DeviceHalf), seeded(ServerHalf)
    optimizers = [ADAM(half.parameters()) for half in (device, server)]
    for x, y in batches(lengths):
        for optimizer in optimizers:
            optimizer.zero_grad()
        CROSS_ENTROPY(server(device(x)), y).backward()
        for optimizer in optimizers:
            optimizer.step()
    half = HalfTrainer(seeded(ServerHalf), CROSS_ENTROPY, ADAM, device="cpu")
    model = seeded(DeviceHalf)
    optimizer = ADAM(model.parameters())
    with (
        SplitEndpoint(SharedHalf(half), cut_codec("float32")) as endpoint,
        connect(ticket_message(endpoint)) as session,
    ):
        for x, y in batches(lengths):
            optimizer.zero_grad()
            session.loss(model(x), y).backward()
            optimizer.step()
    assert same(weights(model), weights(device))
    assert same(weights(half.model), weights(server))


class Positions(nn.Module):
    """Adds a position to each place, of which its cache holds as many as came."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(1, 4, WIDTH))
        self.register_buffer("lengths", None)
        self.last = nn.Linear(WIDTH, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        length = features.shape[1]
        if length > self.cache.shape[1]:
            self.cache = torch.ones(1, length, WIDTH)
            self.lengths = torch.tensor([length])
        if length > 20:
            raise ValueError(f"{length} places are too many")
        return self.last((features + self.cache[:, :length]).mean(1))


def test_a_refused_length_leaves_no_trace_in_caches():
    half = HalfTrainer(seeded(Positions), CROSS_ENTROPY, ADAM, device="cpu")
    y = torch.zeros(8, dtype=torch.long)

    def step(endpoint: SplitEndpoint, length: int) -> None:
        with connect(ticket_message(endpoint)) as session:
            session.loss(torch.rand(8, length, WIDTH, requires_grad=True), y)

    with SplitEndpoint(SharedHalf(half), cut_codec("float32")) as endpoint:
        for good in (4, 9):
            step(endpoint, good)
            before = everything(endpoint)
            with pytest.raises(FeaturesRefused, match="21 places are too many"):
                step(endpoint, 21)
            assert same(everything(endpoint), before)
        assert half.model.cache.shape == (1, 9, WIDTH)
        assert half.steps == 2


def test_a_shape_with_a_free_length_binds_the_rest():
    half = HalfTrainer(
        seeded(partial(nn.Linear, WIDTH, CLASSES)),
        CROSS_ENTROPY,
        ADAM,
        device="cpu",
        feature_shape=(None, WIDTH),
    )
    wanted = r"shape \(2, 5, 8\), feature_shape is \(None, 8\)"
    with (
        SplitEndpoint(SharedHalf(half), cut_codec("float32")) as endpoint,
        pytest.raises(FeaturesRefused, match=wanted),
        connect(ticket_message(endpoint)) as session,
    ):
        for length in (3, 5):
            hidden = torch.rand(8, length, WIDTH)
            assert session.predict(hidden).shape == (8, length, CLASSES)
        session.predict(torch.rand(8, 2, 5, WIDTH))

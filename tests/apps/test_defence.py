"""Defences of features, as the run-config, a device or an app asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import Context
from torch import Tensor, nn

from flwr_splitfc import RunFailed, SplitClientApp, SplitServerApp, split_at
from flwr_splitfc.apps.run_defence import defend
from flwr_splitfc.defence import FeatureDefence, SecretNoise
from tests.apps.server_runs import load_data, results_of
from tests.halves import DeviceHalf, ServerHalf

NORM = 0.5


class Watched(ServerHalf):
    """Keeps how long the features were that it got, in training and in evaluation."""

    lengths: ClassVar[list[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.lengths.append(x.detach().flatten(1).norm(dim=1))
        return super().forward(x)


def no_metrics(model: nn.Module, context: Context) -> dict[str, float]:
    with torch.no_grad():
        model(torch.rand(8, 1, 8, 8))
    return {}


def middle_of() -> nn.Module:
    return split_at(Watched().layers, -2)[0]


def tail_of() -> nn.Module:
    return split_at(ServerHalf().layers, -2)[1]


def run(
    folder: Path,
    *,
    defence: FeatureDefence | None = None,
    node_config: dict[str, Any] | None = None,
    u_shaped: bool = False,
    device: type[nn.Module] = DeviceHalf,
    **options: Any,
) -> dict[str, Any]:
    Watched.lengths = []
    parts: dict[str, Any] = {"tail": tail_of} if u_shaped else {}
    client = SplitClientApp(
        device,
        load_data,
        torch.optim.Adam,
        loss_fn=nn.CrossEntropyLoss(),
        defence=defence,
        **parts,
    )
    server = SplitServerApp(
        device,
        middle_of if u_shaped else Watched,
        nn.CrossEntropyLoss(),
        torch.optim.Adam,
        defence=defence,
        evaluate=no_metrics,
        **parts,
    )
    config = {
        "strategy": "split-learning",
        "num-rounds": 2,
        "num-devices": 3,
        "steps-per-turn": 2,
        "results-dir": str(folder),
        **{key.replace("_", "-"): value for key, value in options.items()},
    }
    results = results_of(server, client, config, node_config=node_config)
    assert [row["failures"] for row in results["rounds"]] == [{}, {}]
    return results


def lengths() -> Tensor:
    return torch.cat(Watched.lengths)


def test_features_are_clipped_wherever_the_server_half_gets_them(
    tmp_path: Path,
) -> None:
    """In training, in evaluation on devices, and in the server's own."""
    run(tmp_path / "clipped", feature_clip_norm=NORM, evaluate_on_devices=True)
    assert lengths().max() < 1.001 * NORM
    run(tmp_path / "plain")
    assert lengths().max() > 2 * NORM


def test_noise_is_another_in_each_run_of_a_seed(tmp_path: Path) -> None:
    def digests(**settings: float) -> set[str]:
        folders = [tmp_path / f"{len(settings)}-{number}" for number in range(2)]
        return {run(folder, **settings)["payload_digest"] for folder in folders}

    assert len(digests(feature_clip_norm=NORM, feature_noise=0.1)) == 2
    assert len(digests(feature_clip_norm=NORM)) == 1


def test_a_nodes_own_config_wins(tmp_path: Path) -> None:
    """The run-config is the server operator's; a device need not believe in it."""
    run(tmp_path, node_config={"feature-clip-norm": NORM}, evaluate_every=9)
    training = torch.cat(Watched.lengths[1:-1])  # the others are the server's own
    assert training.max() < 1.001 * NORM


def test_an_app_may_have_its_defence_in_code(tmp_path: Path) -> None:
    """On devices, and where the server evaluates; keys may ask for the same."""
    defence = FeatureDefence(clip_norm=NORM)
    run(tmp_path, defence=defence, feature_clip_norm=NORM, feature_noise=0.0)
    assert lengths().max() < 1.001 * NORM


def test_a_defence_that_a_device_asks_for_with_underscores_is_not_left_out(
    tmp_path: Path,
) -> None:
    """The run-config may have the key as it is read, too."""
    keys = {"feature_clip_norm": NORM}
    with pytest.raises(
        RunFailed, match="has 'feature_clip_norm': write feature-clip-n"
    ):
        run(tmp_path, node_config=keys, feature_clip_norm=0.0)


@pytest.mark.parametrize("transport", ["stream", "messages"])
@pytest.mark.parametrize("is_nodes", [True, False])
def test_keys_that_ask_for_another_defence_than_the_apps_are_refused(
    tmp_path: Path, is_nodes: bool, transport: str
) -> None:
    """What a device's operator asks for must not be dropped without a word."""
    keys = {"feature-clip-norm": 1.0, "feature-noise": 4.0}
    options: dict[str, Any] = {"node_config": keys} if is_nodes else keys
    told = r"asks for FeatureDefence\(clip_norm=1.0, noise=4.0.* without defence="
    with pytest.raises(RunFailed, match=told):
        run(
            tmp_path,
            defence=FeatureDefence(nopeek=1.0),
            split_transport=transport,
            **options,
        )


@pytest.mark.parametrize("u_shaped", [False, True])
def test_a_step_that_is_made_again_draws_the_same_noise(
    tmp_path: Path, u_shaped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where frames travel in messages, a step starts again with its answer."""
    drawn: dict[bytes, list[Tensor]] = {}
    normal = SecretNoise.normal

    def watched(source: SecretNoise, shape: torch.Size) -> Tensor:
        noise = normal(source, shape)
        drawn.setdefault(source.key, []).append(noise)
        return noise

    monkeypatch.setattr(SecretNoise, "normal", watched)
    settings = {"feature_clip_norm": 5.0, "feature_noise": 0.5}
    run(tmp_path, u_shaped=u_shaped, split_transport="messages", **settings)
    # a key for each of two turns' two steps
    assert len(drawn) == 4
    for first, *others in drawn.values():
        assert others
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("depth", [1, 2])
def test_nopeek_trains_the_device_half(tmp_path: Path, depth: int) -> None:
    """The features' distance correlation is in their gradient, pipelined or not."""
    options: dict[str, Any] = {"pipeline_depth": depth, "model_bits": 32}
    run(tmp_path / "plain", **options)
    run(tmp_path / "nopeek", nopeek=5.0, **options)
    plain, other = (
        torch.load(tmp_path / name / "device.pt", weights_only=True)
        for name in ("plain", "nopeek")
    )
    assert plain.keys() == other.keys()
    assert any(not torch.equal(plain[name], other[name]) for name in plain)


def test_the_last_layers_may_be_the_devices(tmp_path: Path) -> None:
    run(tmp_path, u_shaped=True, feature_clip_norm=NORM, nopeek=0.1)


class Rows(DeviceHalf):
    """Several rows of each sample, as of patches."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).repeat_interleave(2, dim=0)


@pytest.mark.parametrize(
    "options",
    [{}, {"pipeline_depth": 2}, {"u_shaped": True}, {"split_transport": "messages"}],
)
def test_a_half_that_makes_several_rows_of_a_sample_cannot_be_clipped(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """Each row would be clipped by itself."""
    with pytest.raises(RunFailed, match="wanted a row of features for each"):
        run(tmp_path, device=Rows, feature_clip_norm=NORM, **options)


class Normalised(DeviceHalf):
    """A sample is in the features of its whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers.append(nn.BatchNorm2d(4))


def test_noise_with_batch_normalisation_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    defences = FeatureDefence(clip_norm=1.0), FeatureDefence(clip_norm=1.0, noise=1.0)
    defend(Normalised(), defences[0])
    defend(Normalised().eval(), defences[1])
    assert not caplog.records
    for _ in range(3):
        defend(Normalised(), defences[1])
    [record] = caplog.records
    assert "Normalised has batch normalisation" in record.getMessage()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"feature_noise": 0.1}, "noise is 0.1 without a clip_norm"),
        ({"nopeek": -1.0}, "nopeek is -1.0"),
        ({"feature_clip_norm": "long"}, "feature-clip-norm is 'long'"),
    ],
)
def test_settings_that_are_none_are_refused(
    tmp_path: Path, settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        run(tmp_path, **settings)

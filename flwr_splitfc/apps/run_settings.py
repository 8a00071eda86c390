"""What a run-config says about a run, but for its codecs."""

from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord

from flwr_splitfc.apps.message_config import MOST_TORCH_THREADS
from flwr_splitfc.apps.precision import PRECISIONS
from flwr_splitfc.apps.strategies import DEFAULT_DEVICES, SPLIT, UNSPLIT
from flwr_splitfc.callbacks import BestModel, Callback, EarlyStopping, TargetAccuracy
from flwr_splitfc.codec import ModelCodec
from flwr_splitfc.codec.model_arrays import EXACT_BITS
from flwr_splitfc.defence import FeatureDefence
from flwr_splitfc.exchange.server.accounts.budget_rules import BudgetRule
from flwr_splitfc.settings import check_choice, check_least, parse_settings, under_key
from flwr_splitfc.strategy.budget_schedule import BudgetSchedule
from flwr_splitfc.strategy.budgets import budget_rules


@dataclass(frozen=True)
class RunSettings:
    """The keys of a run-config that `SplitServerApp` understands, in snake case.

    `SplitServerApp` says what they mean; `run_codecs` has those of the codecs.
    """

    strategy: str = "splitfc"
    devices: str = ""
    turns_at_once: int = 1
    fraction_train: float = 1.0
    num_rounds: int = 3
    steps_per_turn: int = 0
    learning_rate: float | None = None
    optimizer_state: str = ""
    u_shaped: bool = True
    model_bits: int = 0
    model_codec: str = ""
    device_budgets: str = "node-config"
    uplink_schedule: str = ""
    downlink_schedule: str = ""
    evaluate_every: int = 1
    evaluate_on_devices: bool = False
    best_metric: str = ""
    keep_best: bool = False
    stop_patience: int = 0
    target_accuracy: float = 0.0
    pipeline_depth: int = 0
    merge_steps: int = 1
    replay_steps: int = 0
    server_device: str = ""
    decoupled: bool = False
    send_every: int = 1
    feature_clip_norm: float = 0.0
    feature_noise: float = 0.0
    nopeek: float = 0.0
    max_failed_rounds: int = 1
    num_devices: int = 2
    round_timeout_s: float = 3600.0
    seed: int = 0
    torch_threads: int = 1
    device_precision: str = "float32"
    results_dir: str = "results"
    checkpoint_dir: str = ""

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_least()
        self._check_ranges()
        self._check_together()
        self._check_folders()
        self._check_made()

    def _check_choices(self) -> None:
        optimizer_states = ["", "relay", "per-device", "fresh"]
        check_choice("strategy", self.strategy, [*SPLIT, *UNSPLIT])
        check_choice("devices", self.devices, ["", "round-robin", *UNSPLIT])
        check_choice("optimizer-state", self.optimizer_state, optimizer_states)
        check_choice("device-precision", self.device_precision, PRECISIONS)

    def _check_least(self) -> None:
        check_least(
            self,
            num_rounds=1,
            evaluate_every=1,
            turns_at_once=1,
            pipeline_depth=0,
            merge_steps=1,
            replay_steps=0,
            send_every=1,
            max_failed_rounds=1,
            num_devices=1,
            torch_threads=1,
            steps_per_turn=0,
            stop_patience=0,
            learning_rate=0.0,
            feature_clip_norm=0.0,
            feature_noise=0.0,
            nopeek=0.0,
        )

    def _check_ranges(self) -> None:
        if self.torch_threads > MOST_TORCH_THREADS:
            raise ValueError(
                f"torch-threads is {self.torch_threads}, "
                f"wanted {MOST_TORCH_THREADS} or less"
            )
        if not 0.0 < self.fraction_train <= 1.0:
            raise ValueError(
                f"fraction-train is {self.fraction_train}, "
                "wanted more than 0 and at most 1"
            )
        if not 0 < self.round_timeout_s < inf:
            raise ValueError(
                f"round-timeout-s is {self.round_timeout_s}, "
                "wanted more than 0, and finite"
            )
        if not 0.0 <= self.target_accuracy <= 1.0:
            raise ValueError(
                f"target-accuracy is {self.target_accuracy}, wanted 0 to 1, "
                "such as 0.9 for 90%"
            )

    def _check_together(self) -> None:
        """Refuse settings that do not go with the others."""
        if self.decoupled and self.strategy in UNSPLIT:
            raise ValueError(
                f"decoupled is true, and strategy is {self.strategy!r}, which has no "
                "server half: wanted a split strategy"
            )
        if self.turns_at_once > 1 and not self._in_turn:
            raise ValueError(
                f"turns-at-once is {self.turns_at_once}, and strategy is "
                f"{self.strategy!r} with devices {self.devices!r}: wanted a split "
                "strategy with devices in turn, 'round-robin'"
            )
        if self.send_every > 1 and not self.decoupled:
            raise ValueError(
                f"send-every is {self.send_every}, and decoupled is false: "
                "a device half that needs gradients sends every mini-batch"
            )

    def _check_folders(self) -> None:
        if not self.results_dir:
            raise ValueError("results-dir is '', wanted a folder")
        with under_key("results-dir"):
            folder = _absolute(self.results_dir)
        # a folder beside it may be needed, which has its name and a number
        if not folder.name:
            raise ValueError(
                f"results-dir is {self.results_dir!r}, wanted a folder below"
            )
        with under_key("checkpoint-dir"):
            _absolute(self.checkpoint_dir)

    def _check_made(self) -> None:
        """Make what raises an error of its own for a setting that is none."""
        with under_key("best-metric"):
            self.best_model(Path())
        with under_key("feature-clip-norm, feature-noise and nopeek"):
            self.defence()
        self.server_devices()
        self.models()
        self.budgets()

    @property
    def _in_turn(self) -> bool:
        devices = self.devices or DEFAULT_DEVICES.get(self.strategy)
        return self.strategy in SPLIT and devices == "round-robin"

    def server_devices(self) -> list[torch.device] | None:
        """Return where the server half and its copies train; None for the default."""
        if not self.server_device:
            return None
        try:
            # what torch cannot put an array on is no device of this machine
            names = self.server_device.split()
            return [torch.empty(0, device=name).device for name in names]
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"server-device is {self.server_device!r}, wanted names of torch "
                f'devices here, such as "cuda:0 cuda:1": {error}'
            ) from error

    def budgets(self) -> list[BudgetRule]:
        """Return the rules of what devices get, the schedule's last."""
        rules = budget_rules(self.device_budgets)
        if self.uplink_schedule or self.downlink_schedule:
            rules.append(BudgetSchedule(self.uplink_schedule, self.downlink_schedule))
        return rules

    def defence(self) -> FeatureDefence:
        """Return the defence of devices' features."""
        return FeatureDefence(self.feature_clip_norm, self.feature_noise, self.nopeek)

    def models(self) -> ModelCodec | None:
        """Return how models travel; None leaves it to the strategy."""
        if not self.model_bits and not self.model_codec:
            return None
        try:
            settings = parse_settings(self.model_codec)
            codec = ModelCodec.of(self.model_bits or EXACT_BITS)
            return replace(codec, **settings)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"model-bits is {self.model_bits} and model-codec "
                f"{self.model_codec!r}: {error}"
            ) from None

    @property
    def _metric(self) -> str:
        return self.best_metric or "highest accuracy"

    def stopping(self) -> list[Callback]:
        """Return what may end the run before its last round."""
        made: list[Callback] = []
        if self.target_accuracy:
            made.append(TargetAccuracy(self.target_accuracy))
        if self.stop_patience:
            made.append(EarlyStopping(self.stop_patience, self._metric))
        return made

    def best_model(self, folder: Path) -> BestModel | None:
        """Return what keeps the best model below a folder, if anything does."""
        keeps = BestModel(folder / "best", self._metric)
        return keeps if self.keep_best else None

    def train_config(self) -> ConfigRecord:
        """Return what `SplitClientApp` reads in a message to train."""
        config: dict[str, Any] = {"seed": self.seed, **self._config()}
        if self.learning_rate is not None:
            config["learning-rate"] = self.learning_rate
        # without the key a turn is one pass over what `load_data` gives
        if self.steps_per_turn:
            config["steps-per-turn"] = self.steps_per_turn
        return ConfigRecord(config)

    def device_settings(self) -> dict[str, str]:
        """Return what devices train by, but for what else a strategy knows."""
        return {
            "learning-rate": str(self.learning_rate),
            "steps-per-turn": str(self.steps_per_turn),
            "device-precision": self.device_precision,
        }

    def evaluate_config(self) -> ConfigRecord:
        """Return what `SplitClientApp` reads in a message to evaluate."""
        return ConfigRecord(self._config())

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"torch-threads": self.torch_threads}
        # without the key devices compute in float32
        if self.device_precision != "float32":
            config["device-precision"] = self.device_precision
        return config

    @property
    def results_folder(self) -> Path:
        """Where ``results.json`` goes, and the halves, if no other run's are there."""
        return _absolute(self.results_dir)

    @property
    def checkpoint_folder(self) -> Path | None:
        """Where the checkpoint is kept; None keeps no checkpoint."""
        return _absolute(self.checkpoint_dir) if self.checkpoint_dir else None


def _absolute(folder: str) -> Path:
    # results.json and the log name the folder where anyone finds it
    return Path(folder).expanduser().resolve()

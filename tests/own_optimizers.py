"""Optimizers as other packages have them: what they keep is not where torch's own keep theirs."""

from collections import OrderedDict, defaultdict
from typing import Any

import numpy as np
import torch


class GroupAdam(torch.optim.Optimizer):
    """Adam that counts its steps in the group, as Adan of timm does.

    It also has a step size of its own there, which changes in every fourth step alone,
    and an attribute.
    """

    def __init__(self, params: Any, lr: float = 1e-2, every: int = 4) -> None:
        super().__init__(params, {"lr": lr, "size": 1.0})
        self.every = every

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            if group["step"] % self.every == 0:
                group["size"] = np.float64(0.7 * group["size"])
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(group, parameter)

    def update(self, group: dict[str, Any], parameter: torch.Tensor) -> None:
        state, grad = self.state[parameter], parameter.grad
        if not state:
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        mean = state["mean"].lerp_(grad, 0.1) / (1 - 0.9 ** group["step"])
        square = state["square"].lerp_(grad.square(), 0.01)
        spread = (square / (1 - 0.99 ** group["step"])).sqrt() + 1e-8
        parameter.addcdiv_(mean, spread, value=-group["lr"] * group["size"])


class AveragingSGD(torch.optim.Optimizer):
    """SGD whose weights are averages, farther on in evaluation, as schedulefree's are."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "k": 0, "train_mode": False})

    @classmethod
    def ready(cls, params: Any) -> "AveragingSGD":
        made = cls(params)
        made.train()
        return made

    def train(self) -> None:
        self.move(True, -1.0)

    def eval(self) -> None:
        self.move(False, 0.5)

    @torch.no_grad()
    def move(self, train_mode: bool, weight: float) -> None:
        for group in self.param_groups:
            if group["train_mode"] != train_mode:
                for parameter in group["params"]:
                    if "z" in self.state[parameter]:
                        parameter.lerp_(self.state[parameter]["z"], weight)
            group["train_mode"] = train_mode

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            assert group["train_mode"], "not in train mode"
            group["k"] += 1
            for parameter in group["params"]:
                state = self.state[parameter]
                z = state.setdefault("z", parameter.clone())
                z.sub_(parameter.grad, alpha=group["lr"])
                parameter.lerp_(z, 1 / group["k"])


class Lookahead(torch.optim.Optimizer):
    """Wraps another optimizer, and leaves the state to that, as timm's does."""

    def __init__(self, base: torch.optim.Optimizer, k: int = 2) -> None:
        # as torch's constructor does, which is not called
        self._optimizer_step_pre_hooks: Any = OrderedDict()
        self._optimizer_step_post_hooks: Any = OrderedDict()
        self.base = base
        self.state = defaultdict(dict)
        self.defaults = base.defaults
        self.defaults.update(lookahead_k=k, lookahead_step=0)
        self.param_groups = base.param_groups
        for group in self.param_groups:
            group.update(lookahead_k=k, lookahead_step=0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.base.step()
        for group in self.param_groups:
            group["lookahead_step"] += 1
            for parameter in group["params"]:
                state = self.base.state[parameter]
                slow = state.setdefault("slow", parameter.clone())
                if group["lookahead_step"] % group["lookahead_k"] == 0:
                    parameter.copy_(slow.lerp_(parameter, 0.5))

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict)
        self.param_groups = self.base.param_groups


class BareLookahead(torch.optim.Optimizer):
    """Wraps another one without anything that torch's constructor makes."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base = base
        self.param_groups, self.state = base.param_groups, base.state
        self.defaults = base.defaults

    def step(self, closure: Any = None) -> None:
        self.base.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict)

"""Flower strategies for split learning."""

from flwr_splitfc.strategy.budget_schedule import BudgetSchedule
from flwr_splitfc.strategy.budgets import NodeConfigBudgets, ThroughputBudgets
from flwr_splitfc.strategy.checkpoint import CheckpointError
from flwr_splitfc.strategy.failed_rounds import RunFailed, SimulationBroken
from flwr_splitfc.strategy.resumable import Resumable
from flwr_splitfc.strategy.round_robin import RoundRobin
from flwr_splitfc.strategy.split_learning import SplitLearning
from flwr_splitfc.strategy.splitfc import SplitFC
from flwr_splitfc.strategy.splitfed import SplitFedV1, SplitFedV2

__all__ = [
    "BudgetSchedule",
    "CheckpointError",
    "NodeConfigBudgets",
    "Resumable",
    "RoundRobin",
    "RunFailed",
    "SimulationBroken",
    "SplitFC",
    "SplitFedV1",
    "SplitFedV2",
    "SplitLearning",
    "ThroughputBudgets",
]

"""Flower strategies for split learning."""

from flwr_splitfc.strategy.round_robin import RoundRobin
from flwr_splitfc.strategy.split_learning import SplitLearning
from flwr_splitfc.strategy.splitfc import SplitFC

__all__ = ["RoundRobin", "SplitFC", "SplitLearning"]

"""Defences of features, on the device and before the codec."""

from flwr_splitfc.defence.distance_correlation import distance_correlation
from flwr_splitfc.defence.feature_defence import FeatureDefence
from flwr_splitfc.defence.feature_epsilon import feature_epsilon
from flwr_splitfc.defence.secret_noise import SecretNoise

__all__ = ["FeatureDefence", "SecretNoise", "distance_correlation", "feature_epsilon"]

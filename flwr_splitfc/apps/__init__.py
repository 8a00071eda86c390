"""Whole Flower apps: `SplitClientApp` and `SplitServerApp`."""

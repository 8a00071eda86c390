"""The server half, which takes a step as a whole or not at all.

- `Halves` say which half a turn trains: one for all devices, or a copy for each.
- `HalfTrainer` makes the passes (half_passes) and the updates (half_updater) of a half,
  with each session's randomness (half_randomness), and merges steps (step_merger).
- step_checks, half_guard and step_undo: what a step must hold to, and what goes back if
  it does not.
"""

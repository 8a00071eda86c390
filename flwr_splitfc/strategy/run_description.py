"""What describes a run of `SplitLearning`: in the log, and beside a checkpoint."""

from __future__ import annotations

from logging import getLogger
from typing import TYPE_CHECKING

from flwr_splitfc.exchange.server.accounts.budget_rules import rules_text
from flwr_splitfc.strategy.innermost import innermost, name_of

if TYPE_CHECKING:
    from flwr_splitfc.strategy.split_learning import SplitLearning

logger = getLogger("flwr")


def log_settings(strategy: SplitLearning) -> None:
    """Log the settings, a line each, without those of `devices`."""
    half = strategy.half
    logger.info("\t├──> At the cut: %r", strategy.codec)
    if strategy.output_codec is not None:
        logger.info(
            "\t├──> Labels and last layers on devices, output: %r",
            strategy.output_codec,
        )
    logger.info("\t├──> Device halves on their way: %r", strategy.model_codec)
    logger.info("\t├──> Budgets by device and round: %s", rules_text(strategy.budgets))
    logger.info(
        "\t├──> Server half on %s, evaluation every %d rounds",
        half.device,
        strategy.evaluate_every,
    )
    logger.info("\t├──> Device optimizer state: %s", strategy.optimizer_state)
    if strategy.decoupled:
        logger.info("\t├──> Device halves learn from a loss of their own")
    if strategy.send_every > 1:
        logger.info("\t├──> One mini-batch in %d goes up", strategy.send_every)
    if strategy.pipeline_depth > 1:
        logger.info("\t├──> Mini-batches under way: %d", strategy.pipeline_depth)
    if half.merge_steps > 1:
        logger.info(
            "\t├──> Mini-batches in one step of the server half: up to %d",
            half.merge_steps,
        )
    if half.replay_steps:
        logger.info(
            "\t├──> Replayed mini-batches after each one: %d", half.replay_steps
        )
    logger.info("\t├──> Device halves: %s", name_of(strategy.devices))


def settings_texts(strategy: SplitLearning) -> dict[str, str]:
    """Return settings that two runs share if one goes on where the other stopped.

    Those of the server half's optimizer, and of devices, come beside them.
    """
    half = strategy.half
    return {
        "strategy": type(strategy).__name__,
        "codec": repr(strategy.codec),
        "output_codec": repr(strategy.output_codec),
        "model_codec": repr(strategy.model_codec),
        "budgets": rules_text(strategy.budgets),
        "devices": type(strategy.devices).__name__,
        "turns_at_once": str(getattr(innermost(strategy.devices), "turns_at_once", 1)),
        "server half": "shared" if strategy.shared_server_half else "copied",
        "optimizer_state": strategy.optimizer_state,
        "pipeline_depth": str(strategy.pipeline_depth),
        "merge_steps": str(half.merge_steps),
        "replay_steps": str(half.replay_steps),
        "accumulate_steps": str(half.accumulate_steps),
        "max_grad_norm": str(half.max_grad_norm),
        "decoupled": str(strategy.decoupled),
        "send_every": str(strategy.send_every),
        "seed": str(half.seed),
    }

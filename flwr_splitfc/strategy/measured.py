"""What the ledger measured, in a round's metrics and in the log at the end of a run."""

from logging import getLogger

from flwr.app import MetricRecord

from flwr_splitfc.exchange.protocol.ticket import Purpose
from flwr_splitfc.exchange.server.accounts.ledger import Ledger
from flwr_splitfc.exchange.server.accounts.traffic import Traffic

logger = getLogger("flwr")


def with_totals(
    metrics: MetricRecord | None, ledger: Ledger, server_round: int, purpose: Purpose
) -> MetricRecord:
    """Return the metrics of a round with the ledger's sums in place of averages.

    Bytes add up over devices; the strategy that combines the replies has averaged what
    each device counted.
    """
    traffic = ledger.of(server_round, purpose)
    total = MetricRecord({**(metrics or {}), **traffic.metrics()})
    # a device's own measure; the ledger has it as device_codec_seconds
    total.pop("codec_seconds", None)
    total["failures"] = len(ledger.failures(server_round, purpose))
    # none where devices have the loss, and do not tell it
    if purpose == "train" and traffic.loss_rows:
        total["train_loss"] = traffic.loss
    return total


def log_devices(ledger: Ledger) -> None:
    """Log a line for each device, at debug level: the sums over its sessions.

    Bits per entry are those of training: evaluation may send other ones.
    """
    trained = ledger.devices("train")
    for device, traffic in ledger.devices().items():
        training = trained.get(device, Traffic())
        logger.debug(
            "Device %s: %d sessions, %d steps, bits/entry up %.3f down %.3f, "
            "%.2f MB up, %.2f MB down, %d reconnections",
            device,
            traffic.sessions,
            traffic.steps,
            training.uplink_bits_per_entry,
            training.downlink_bits_per_entry,
            traffic.uplink_bytes.total() / 1e6,
            traffic.downlink_bytes.total() / 1e6,
            traffic.reconnects,
        )

"""The seed of a device's turn."""

from flwr.app import Context, Message

from flwr_splitfc.apps.message_config import MessageConfig
from flwr_splitfc.exchange.device.identity import device_name
from flwr_splitfc.exchange.protocol.seeds import derive_seed
from flwr_splitfc.exchange.protocol.ticket import Ticket, has_ticket


def turn_seed(message: Message, context: Context) -> int:
    """Return the seed of (run seed, device, round), for what is random in the turn.

    They are the ticket's. Without one the round and the run's seed are what the
    strategy sends in its config, as Flower's do, or else ``seed`` of the run-config.
    """
    if has_ticket(message):
        return Ticket.from_message(message).turn_seed
    config = MessageConfig(message)
    seed = config.seed
    if seed is None:
        seed = str(context.run_config.get("seed", 0))
    return derive_seed(seed, device_name(context), config.server_round)

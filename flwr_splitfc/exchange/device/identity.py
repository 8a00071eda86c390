"""The name of a device: node ids are random, so every device says its name once."""

from flwr.app import ConfigRecord, Context, Message, RecordDict

from flwr_splitfc.exchange.protocol.device_query import NAME_KEY, NODE_CONFIG_KEY
from flwr_splitfc.exchange.protocol.records import record_without_empty
from flwr_splitfc.settings import check_dashes


def device_name(context: Context) -> str:
    """Return the device's lasting name.

    It is the ``device-name`` of its node config, else its partition, else its node id.

    Raises
    ------
    ValueError
        If the node config has ``device_name``, with an underscore.
    """
    config = context.node_config
    check_dashes(config, [NAME_KEY])
    for key in (NAME_KEY, "partition-id"):
        if key in config:
            return str(config[key])
    return str(context.node_id)


def answer_device_query(message: Message, context: Context) -> Message:
    """Return a `ClientApp`'s reply to a split strategy that asks who the device is.

    The reply holds the device's name and its node config. `SplitClientApp` has this
    function already; register it in an app with a training loop of its own::

        app.query("split_device")(answer_device_query)
    """
    name = ConfigRecord({NAME_KEY: device_name(context)})
    config = record_without_empty(context.node_config)
    content = RecordDict({NAME_KEY: name, NODE_CONFIG_KEY: config})
    return Message(content, reply_to=message)

"""Who a device is: node ids are random, so every device says its name once."""

from flwr.app import ConfigRecord, Context, Message, RecordDict

from flwr_splitfc.exchange.protocol.device_query import NAME_KEY, NODE_CONFIG_KEY


def device_name(context: Context) -> str:
    """The device's lasting name: ``device-name`` of its node config, or its partition, or its node id."""
    config = context.node_config
    return str(config.get(NAME_KEY, config.get("partition-id", context.node_id)))


def answer_device_query(message: Message, context: Context) -> Message:
    """The reply of a `ClientApp` to a split strategy that asks who it is: its name and its node config.

    Register it in an app with a training loop of its own, `SplitClientApp` has it
    already::

        app.query("split_device")(answer_device_query)
    """
    name = ConfigRecord({NAME_KEY: device_name(context)})
    # as in tickets
    config = ConfigRecord(
        {key: value for key, value in context.node_config.items() if value != ""}
    )
    return Message(
        RecordDict({NAME_KEY: name, NODE_CONFIG_KEY: config}), reply_to=message
    )

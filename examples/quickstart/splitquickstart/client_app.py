"""The device's side: its half of the model, its share of the data, and an optimizer."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from flwr_splitfc import (
    JoinedModel,
    answer_device_query,
    connect,
    has_ticket,
    model_codec_mod,
)
from flwr_splitfc.settings import read_settings
from flwr_splitfc.vision import load_data
from splitquickstart.task import DeviceHalf, ServerHalf, Settings, test, train

app = ClientApp(mods=[model_codec_mod])
app.query("split_device")(answer_device_query)


@app.train()
def train_model(msg: Message, context: Context) -> Message:
    """Train the half of the model that came, with the server; or all of it, alone."""
    settings = read_settings(Settings, context.run_config)
    model = received_model(msg)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings.learning_rate, momentum=0.9
    )
    batches, _ = load_data(context)
    epochs = settings.local_epochs
    if has_ticket(msg):
        with connect(msg, context, optimizer=optimizer) as server:
            torch.manual_seed(server.seed)  # which draws the batches
            train(model, server.loss, optimizer, batches, epochs)
            metrics = server.metrics()
    else:
        loss = train(model, nn.CrossEntropyLoss(), optimizer, batches, epochs)
        metrics = {"train_loss": loss, "num-examples": len(batches.data)}
    content = RecordDict({"metrics": MetricRecord({**metrics})})
    content["arrays"] = ArrayRecord(model.state_dict())
    return Message(content, reply_to=msg)


@app.evaluate()
def evaluate_model(msg: Message, context: Context) -> Message:
    """Test the model on this device's share of the test set."""
    model = received_model(msg)
    model.eval()
    _, batches = load_data(context)
    if has_ticket(msg):
        with connect(msg, context) as server:
            metrics = test(lambda x: server.predict(model(x)), batches)
    else:
        metrics = test(model, batches)
    content = RecordDict({"metrics": MetricRecord({**metrics})})
    return Message(content, reply_to=msg)


def received_model(msg: Message) -> nn.Module:
    """Return what came: the device half from a split strategy, else the whole model."""
    model: nn.Module = DeviceHalf()
    if not has_ticket(msg):
        model = JoinedModel(model, ServerHalf())
    arrays = msg.content.array_records["arrays"]
    model.load_state_dict(arrays.to_torch_state_dict())
    return model

"""The device's side: its half of the model, its share of the data, and an optimizer."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from torch import nn

from flwr_splitfc import DeviceApp, JoinedModel, model_for, session_for
from flwr_splitfc.settings import read_settings
from flwr_splitfc.vision import load_data
from splitquickstart.task import DeviceHalf, ServerHalf, Settings, test, train

app = DeviceApp()
criterion = nn.CrossEntropyLoss()


@app.train()
def train_model(msg: Message, context: Context) -> Message:
    """Train the half of the model that came, with the server; or all of it, alone."""
    settings = read_settings(Settings, context.run_config)
    model = model_for(msg, JoinedModel(DeviceHalf(), ServerHalf()))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings.learning_rate, momentum=0.9
    )
    batches, _ = load_data(context)
    with session_for(msg, context, criterion, optimizer=optimizer) as server:
        torch.manual_seed(server.seed)  # which draws the batches
        train(model, server.loss, optimizer, batches, settings.local_epochs)
        metrics = MetricRecord(server.metrics())
    arrays = ArrayRecord(model.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate_model(msg: Message, context: Context) -> Message:
    """Test the model on this device's share of the test set."""
    model = model_for(msg, JoinedModel(DeviceHalf(), ServerHalf())).eval()
    _, batches = load_data(context)
    with session_for(msg, context, criterion) as server:
        metrics = test(lambda x: server.predict(model(x)), batches)
    content = RecordDict({"metrics": MetricRecord({**metrics})})
    return Message(content, reply_to=msg)

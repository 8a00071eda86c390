"""Coverage-guided fuzzing of coded models in devices' replies. In the repository's root, after ``pip install atheris``:

    python -m fuzz.fuzz_models -max_total_time=300

An input decides on changes of the coded model that a device trained: arrays of many
shapes and types, some without a dimension. The reply goes through `ModelCoder` and
`ReplyChecks`. An error that comes out of them, or that the server logs, is reported as a
crash, and so is an array of another shape or type than the half's. Other options are
libFuzzer's.
"""

from __future__ import annotations

from typing import Any

from fuzz.choices import Choices
from fuzz.fuzzing import fuzz, instrumented, watched_log
from fuzz.mutations import change_message, changed_bytes

with instrumented("flwr_splitfc.exchange", "flwr_splitfc.codec"):
    import numpy as np
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.supercore.task_identity import TaskIdentity
    from numpy.typing import NDArray

    from flwr_splitfc.codec.model_codec import ModelCodec
    from flwr_splitfc.exchange.protocol import split_pb2 as pb
    from flwr_splitfc.exchange.protocol.model_record import pack_model, packed_model
    from flwr_splitfc.exchange.server.grid.model_coder import ModelCoder
    from flwr_splitfc.exchange.server.grid.reply_checks import Reply, ReplyChecks

# what Flower sets in a process of its own, and messages ask for
TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1

CODEC = ModelCodec.of(4)
DRAW = np.random.default_rng(0)
ARRAYS: dict[str, NDArray[Any]] = {
    "kernel": DRAW.normal(size=(8, 4, 3, 3)).astype(np.float32),
    "half": DRAW.normal(size=(16, 16)).astype(np.float16),
    "double": DRAW.normal(size=(5, 20)),
    "bias": DRAW.normal(size=40).astype(np.float32),
    "one": np.ones((1, 1), np.float32),
    "empty": np.zeros((0, 5), np.float32),
    "mask": np.where(np.tri(8), 0, -np.inf).astype(np.float32),
    "bools": np.ones((4, 5), bool),
    # a learnable scale, BatchNorm's count, and the average of such counts
    "scale": np.array(1.0, np.float32),
    "count": np.array(7),
    "average": np.array(7.0),
}
HALF = ArrayRecord({name: Array(values) for name, values in ARRAYS.items()})


def trained_model() -> bytes:
    """What a device sends that does as agreed."""
    start = CODEC.decode_weights(CODEC.encode_weights(HALF))
    trained = ArrayRecord()
    for name, array in start.items():
        values = array.numpy()
        trained[name] = Array(np.asarray(values * 1.5, values.dtype))
    data = packed_model(pack_model(CODEC.encode_changes(trained, start)))
    assert data is not None
    return data


TRAINED = trained_model()


def changed_model(choices: Choices) -> bytes:
    model = pb.Model.FromString(TRAINED)
    change_coding(choices.of(model.arrays), choices)
    while choices.one_in(2):
        change_message(model, choices)
    data = model.SerializeToString()
    return changed_bytes(data, choices) if choices.one_in(4) else data


def change_coding(array: Any, choices: Choices) -> None:
    """As an encoder might that codes what this package's sends exactly."""
    array.coding = choices.of([*pb.Coding.values(), array.coding])
    # nothing at all stands for zeros
    array.data = choices.of([array.data, b"", changed_bytes(array.data, choices)])
    if choices.one_in(4):
        array.dtype = choices.of(["float64", "float16", "int64", choices.text()])


def answer(data: bytes) -> None:
    """One input."""
    asked = Message(RecordDict({"arrays": HALF}), 1000, "train")
    coder = ModelCoder(CODEC)
    coder.encode(asked, server_round=1)
    model = changed_model(Choices(data))
    array = Array(dtype="uint8", shape=(len(model),), stype="model/1", data=model)
    content = {
        "arrays": ArrayRecord({"model": array}),
        "metrics": MetricRecord({"num-examples": 8}),
    }
    reply = Message(RecordDict(content), reply_to=asked)
    reply.metadata.__dict__["_src_node_id"] = 1000
    with watched_log():
        decoded = coder.decode(reply, asked)
        (checked,) = ReplyChecks(HALF, "num-examples").checked([Reply(decoded, asked)])
    if checked.has_error():
        return
    for name, came in checked.content.array_records["arrays"].items():
        values, wanted = came.numpy(), ARRAYS[name]
        assert (values.shape, values.dtype) == (wanted.shape, wanted.dtype), name


if __name__ == "__main__":
    fuzz(answer)

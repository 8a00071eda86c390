"""A payload decodes to the same floats wherever it is decoded, and however it got there."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict

from flwr_splitfc.codec import codec_names, cut_codec
from flwr_splitfc.codec.model_arrays import decode_array
from tests import fixture
from tests.codec.cuts import affordable_cut
from tests.fixture import little_endian, raw

ROOT = Path(__file__).parents[2]
MATRICES, ARRAYS = fixture.matrix_vectors(), fixture.array_vectors()
LARGE = (256, 1024)
"""Rows and columns that are worth more than one thread."""

IN_ANOTHER_PROCESS = """
import sys, torch
from pathlib import Path
from tests.codec.test_bit_exact import digest
torch.set_num_threads(int(sys.argv[1]))
print(torch.get_num_threads(), digest(Path(sys.argv[2])))
"""


def digest(large: Path) -> str:
    """Of everything that decoding makes of the vectors, and of a large payload of each codec."""
    found = hashlib.sha256()
    for vector in MATRICES:
        found.update(raw(vector.decode(vector.array())))
    for vector in ARRAYS:
        found.update(little_endian(decode_array(vector.array())))
    for name in codec_names():
        cut = cut_codec(name)
        array = Array("float32", LARGE, cut.stype, (large / name).read_bytes())
        found.update(raw(cut.decode_features(array, expect=LARGE)[0]))
    return found.hexdigest()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of large payloads: other threads may encode to other bytes, so all decode the same ones."""
    directory = tmp_path_factory.mktemp("large")
    for name in codec_names():
        (directory / name).write_bytes(
            affordable_cut(name, *LARGE, 2).encode_features(torch.randn(LARGE))[0].data
        )
    return directory


@pytest.mark.parametrize("threads", [1, 3])
def test_another_process_with_other_threads(threads: int, large: Path) -> None:
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(threads), str(large)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONHASHSEED": str(threads),
    }
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(threads), digest(large)]


def inflated(message: Message) -> Message:
    """As through SuperLink: object by object, data in chunks."""
    objects = pytest.importorskip("flwr.supercore.inflatable.inflatable_object")
    tools = pytest.importorskip("flwr.supercore.inflatable.inflatable_utils")
    contents = {
        key: item.deflate()
        for key, item in objects.get_all_nested_objects(message).items()
    }
    back = tools.inflate_object_from_contents(message.object_id, contents)
    assert isinstance(back, Message)
    return back


def parsed(message: Message) -> Message:
    """As through the simulation engine's protobuf."""
    serde = pytest.importorskip("flwr.common.serde")
    proto = pytest.importorskip("flwr.proto.message_pb2")
    data = serde.message_to_proto(message).SerializeToString()
    back = serde.message_from_proto(proto.Message.FromString(data))
    assert isinstance(back, Message)
    return back


@pytest.fixture
def _in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower makes messages only inside a run."""
    identity = pytest.importorskip("flwr.supercore.task_identity").TaskIdentity
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(identity, name, 1)


def carried(
    arrays: dict[str, Array], carry: Callable[[Message], Message]
) -> dict[str, Array]:
    message = Message(RecordDict({"cut": ArrayRecord(arrays)}), 1, "train")
    return dict(carry(message).content.array_records["cut"])


@pytest.mark.usefixtures("_in_a_run")
@pytest.mark.parametrize("carry", [inflated, parsed])
def test_flower_carries_payloads(carry: Callable[[Message], Message]) -> None:
    vectors = [*MATRICES, *ARRAYS]
    arrays = {f"{vector.stype}-{vector.name}": vector.array() for vector in vectors}
    back = carried(arrays, carry)
    for vector in MATRICES:
        array = back[f"{vector.stype}-{vector.name}"]
        assert raw(vector.decode(array)) == vector.decoded
    for vector in ARRAYS:
        array = back[f"{vector.stype}-{vector.name}"]
        assert little_endian(decode_array(array)) == vector.decoded


@pytest.mark.usefixtures("_in_a_run")
@pytest.mark.parametrize("carry", [inflated, parsed])
@pytest.mark.parametrize("name", codec_names())
def test_both_ways_through_flower(
    name: str, carry: Callable[[Message], Message]
) -> None:
    torch.manual_seed(0)
    cut = affordable_cut(name, 64, 144, 1, 1)
    features, gradient = torch.randn(2, 64, 4, 6, 6)
    up, link = cut.encode_features(features)
    up_back = carried({"up": up}, carry)["up"]
    seen, server_link = cut.decode_features(up, expect=(64, 144))
    seen_back, server_link_back = cut.decode_features(up_back, expect=(64, 144))
    assert raw(seen) == raw(seen_back)
    down = cut.encode_gradient(gradient, server_link_back)
    assert down.data == cut.encode_gradient(gradient, server_link).data
    assert raw(cut.decode_gradient(down, link)) == raw(
        cut.decode_gradient(carried({"down": down}, carry)["down"], link)
    )

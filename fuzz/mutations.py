"""Changes of valid things: of bytes, of protobuf messages, and of what a checkpoint holds."""

import struct
from collections.abc import MutableSequence
from typing import Any

import torch
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from torch import Tensor

from fuzz.choices import Choices

# -- bytes -----------------------------------------------------------------------------


def changed_bytes(data: bytes, choices: Choices) -> bytes:
    """Bytes that differ in one place."""
    at = choices.below(len(data) + 1)
    count = choices.below(16) + 1
    before, after = data[:at], data[at:]
    match choices.below(6):
        case 0:
            return before
        case 1:
            return before + after[count:]
        case 2:
            return before + choices.bytes(count) + after
        case 3:
            return before + choices.bytes(count) + after[count:]
        case 4:
            return before + after[:count] + after
        case _:
            return before + _number_bytes(choices) + after[4:]


def _number_bytes(choices: Choices) -> bytes:
    if choices.one_in(2):
        # float32, which most payloads hold
        return struct.pack("<f", float_of(torch.float32, choices))
    return struct.pack("<I", choices.whole_number(32))


# -- protobuf messages -----------------------------------------------------------------


def change_message(message: Message, choices: Choices) -> None:
    """Change one field, here or in a message within, set or not."""
    if not message.DESCRIPTOR.fields:
        return  # Leave is such a message
    field = _some_field(message, choices)
    value = getattr(message, field.name)
    if isinstance(value, MutableSequence):
        _change_list(field, value, choices)
    elif field.message_type is None:
        setattr(message, field.name, _another(field, value, choices))
    elif choices.one_in(12):
        message.ClearField(field.name)
    else:
        value.SetInParent()
        change_message(value, choices)


def _some_field(message: Message, choices: Choices) -> FieldDescriptor:
    there = [field for field, _ in message.ListFields()]
    # what is there leads deeper
    if there and not choices.one_in(5):
        return choices.of(there)
    return choices.of(message.DESCRIPTOR.fields)


def _change_list(field: Any, values: MutableSequence[Any], choices: Choices) -> None:
    at = choices.below(len(values) + 1)
    action = choices.below(5)
    if field.message_type is not None:
        _change_messages(values, at, action, choices)
    elif action == 0 and at < len(values):
        del values[at]
    elif action == 1:
        values.extend(list(values) or [0])
    elif action == 2:
        values.append(_another(field, 0, choices))
    elif at < len(values):
        values[at] = _another(field, values[at], choices)


def _change_messages(values: Any, at: int, action: int, choices: Choices) -> None:
    if action == 0 and at < len(values):
        del values[at]
    elif action == 1 and at < len(values):
        values.add().CopyFrom(values[at])
    elif action == 2:
        change_message(values.add(), choices)
    elif at < len(values):
        change_message(values[at], choices)


def _another(field: FieldDescriptor, value: Any, choices: Choices) -> Any:
    """Another value of a field that holds no message."""
    match field.type:
        case FieldDescriptor.TYPE_BYTES:
            return changed_bytes(value, choices)
        case FieldDescriptor.TYPE_STRING:
            return choices.text()
        case FieldDescriptor.TYPE_DOUBLE:
            return choices.float()
        case FieldDescriptor.TYPE_ENUM:
            # one of few, or one that nobody knows
            return choices.whole_number(5)
        case FieldDescriptor.TYPE_UINT64:
            return _another_number(value, 64, choices)
        case _:
            return _another_number(value, 32, choices)


def _another_number(value: int, bits: int, choices: Choices) -> int:
    # the next one, or the one before: of frames, dimensions, rows
    if choices.one_in(3):
        return (value + choices.of([1, -1])) % 2**bits
    return choices.whole_number(bits)


# -- dicts, lists and tensors ----------------------------------------------------------


def changed_tree(tree: Any, choices: Choices) -> Any:
    """A copy that differs in one place; what is alike is shared."""
    if choices.one_in(16):
        return _anything(choices)
    if isinstance(tree, dict) and tree:
        return _changed_dict(tree, choices)
    if isinstance(tree, list | tuple) and tree:
        return _changed_list(tree, choices)
    if isinstance(tree, Tensor):
        return changed_tensor(tree, choices)
    if isinstance(tree, bytes):
        return changed_bytes(tree, choices)
    if isinstance(tree, str):
        return changed_text(tree, choices)
    return _anything(choices)


def _changed_dict(tree: dict[Any, Any], choices: Choices) -> dict[Any, Any]:
    key = choices.of(list(tree))
    changed = dict(tree)
    if choices.one_in(12):
        del changed[key]
    elif choices.one_in(12):
        changed[_another_key(choices)] = changed.pop(key)
    else:
        changed[key] = changed_tree(tree[key], choices)
    return changed


def _another_key(choices: Choices) -> Any:
    return choices.of([choices.text(), choices.whole_number(16), None])


def _changed_list(tree: list[Any] | tuple[Any, ...], choices: Choices) -> Any:
    at = choices.below(len(tree))
    changed = list(tree)
    if choices.one_in(8):
        del changed[at]
    elif choices.one_in(8):
        changed.insert(at, tree[at])
    else:
        changed[at] = changed_tree(tree[at], choices)
    return tuple(changed) if isinstance(tree, tuple) else changed


def changed_tensor(tensor: Tensor, choices: Choices) -> Tensor:
    """A tensor that differs in an entry, its shape or its dtype."""
    match choices.below(6):
        case 0 if tensor.numel():
            changed = tensor.clone()
            flat = changed.view(-1)
            flat[choices.below(len(flat))] = _entry(tensor, choices)
            return changed
        case 1:
            return torch.full_like(tensor, _entry(tensor, choices))
        case 2:
            return tensor.reshape(-1)
        case 3:
            return tensor.to(choices.of(DTYPES))
        case 4:
            return torch.zeros(choices.of(SHAPES), dtype=tensor.dtype)
        case _:
            return tensor.unsqueeze(0)


DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (7,), (4, 0), (1, 1, 1)]


def _entry(tensor: Tensor, choices: Choices) -> float | int:
    if tensor.is_floating_point():
        return float_of(tensor.dtype, choices)
    return choices.below(2)


def float_of(dtype: torch.dtype, choices: Choices) -> float:
    """A number of a dtype, infinite where the dtype has none so large."""
    return torch.tensor(choices.float(), dtype=torch.float64).to(dtype).item()


def changed_text(text: str, choices: Choices) -> str:
    if choices.one_in(4):
        return choices.text()
    return changed_bytes(text.encode(), choices).decode("utf-8", "replace")


def _anything(choices: Choices) -> Any:
    match choices.below(9):
        case 0:
            return None
        case 1:
            return choices.whole_number(64) - 2**31
        case 2:
            return choices.float()
        case 3:
            return choices.text()
        case 4:
            return []
        case 5:
            return {}
        case 6:
            return torch.full(choices.of(SHAPES), float_of(torch.float32, choices))
        case 7:
            return choices.bytes(8)
        case _:
            return [choices.float()]

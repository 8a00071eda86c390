"""The tensors of a state: sparse, quantised, and one entry that is shown as many."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor


def tensors_of(state: Any) -> Iterator[Tensor]:
    """Yield the tensors in lists, tuples and dicts, each part of them once."""
    seen: set[int] = set()
    waiting = [state]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, Mapping):
            waiting.extend(part.values())
        elif isinstance(part, list | tuple):
            waiting.extend(part)


def copied(state: Any) -> Any:
    """Return a copy of a state, in which each tensor has all its entries in memory.

    As `copy.deepcopy`, which keeps expanded tensors as they are, and knows no sparse
    layout but COO.
    """
    copies: dict[int, Any] = {}
    for tensor in tensors_of(state):
        if tensor.layout is torch.strided:
            if tensor.nbytes > stored_bytes(tensor):
                copies[id(tensor)] = tensor.contiguous()
        elif tensor.layout is not torch.sparse_coo:
            copies[id(tensor)] = tensor.clone()
    return deepcopy(state, copies)


def parts_of(tensor: Tensor) -> list[Tensor]:
    """Return the dense tensors that make up a tensor; the last has its entries."""
    if tensor.layout is torch.strided:
        return [tensor]
    if tensor.layout is torch.sparse_coo:
        # those of `indices()` and `values()` are there once it is coalesced
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]


def stored_bytes(tensor: Tensor) -> int:
    """Return how much memory a dense tensor is a view of."""
    return tensor.untyped_storage().nbytes()


def entries_of(tensor: Tensor) -> Tensor:
    """Return the entries that a tensor stores, on the CPU, as a type to compute with.

    torch has few functions for quantised ones and for floats of 8 bits.
    """
    entries = parts_of(tensor.detach().cpu())[-1]
    if entries.is_quantized or entries.element_size() == 1:
        return entries.dequantize()
    return entries

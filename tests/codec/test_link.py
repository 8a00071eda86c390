"""The way back."""

from __future__ import annotations

import torch

from flwr_splitfc.codec import Link


def test_expand_undoes_restrict() -> None:
    matrix = torch.randn(3, 6)
    link = Link(3, 6, torch.tensor([0, 2, 5]))
    expanded = link.expand(link.restrict(matrix))
    mask = torch.tensor([1.0, 0, 1, 0, 0, 1])
    assert torch.equal(expanded, matrix * mask)
    assert link.kept == 3


def test_no_columns_is_all_columns() -> None:
    matrix = torch.randn(3, 6)
    link = Link(3, 6)
    assert link.restrict(matrix) is matrix
    assert link.expand(matrix) is matrix
    assert link.kept == 6


def test_every_row_may_keep_its_own_entries() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    link = Link(2, 3, torch.tensor([[2, 0], [1, 2]]))
    assert link.restrict(matrix).tolist() == [[2, 0], [4, 5]]
    assert link.expand(link.restrict(matrix)).tolist() == [[0, 0, 2], [0, 4, 5]]


def test_no_column_kept() -> None:
    link = Link(2, 3, torch.tensor([], dtype=torch.int64))
    assert link.restrict(torch.ones(2, 3)).shape == (2, 0)
    assert link.expand(torch.ones(2, 0)).tolist() == [[0, 0, 0]] * 2

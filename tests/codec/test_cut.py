"""Features up, gradient down."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Array

from flwr_splitfc.codec import (
    BudgetError,
    CodedMatrix,
    CutCodec,
    Link,
    PayloadError,
    codec_names,
    cut_codec,
)
from tests.codec.cuts import affordable_cut

INPUTS: dict[str, Callable[[int, int], torch.Tensor]] = {
    "normal": lambda b, d: torch.randn(b, d),
    "constant columns": lambda b, d: torch.randn(d).repeat(b, 1),
    "zeros": lambda b, d: torch.zeros(b, d),
    "cauchy": lambda b, d: torch.empty(b, d).cauchy_(),
    "float16": lambda b, d: torch.randn(b, d).half(),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def step(
    cut: CutCodec, features: torch.Tensor, gradient: torch.Tensor, seed: int = 0
) -> tuple[Array, torch.Tensor, Array, torch.Tensor, Link]:
    up, link = cut.encode_features(features, generator=seeded(seed))
    seen, server_link = cut.decode_features(up, expect=(512, features[0].numel()))
    down = cut.encode_gradient(gradient, server_link)
    return up, seen, down, cut.decode_gradient(down, link), link


@pytest.mark.parametrize("name", codec_names())
def test_shapes_types_and_sizes(name: str) -> None:
    torch.manual_seed(0)
    cut = affordable_cut(name, 64, 288)
    features = torch.randn(64, 8, 6, 6)
    up, seen, down, gradient, _ = step(cut, features, torch.randn(64, 288))
    assert up.dtype == down.dtype == "float32"
    assert up.stype == down.stype == cut.stype
    assert tuple(up.shape) == (64, 8, 6, 6)
    assert tuple(down.shape) == (64, 288)
    assert seen.shape == gradient.shape == (64, 288)
    assert seen.dtype == gradient.dtype == torch.float32
    if cut.quantiser.budgeted:
        assert len(up.data) * 8 <= cut.uplink_bits * 64 * 288
        assert len(down.data) * 8 <= cut.downlink_bits * 64 * 288


def test_float32_is_the_identity() -> None:
    features, gradient = torch.randn(5, 7), torch.randn(5, 7)
    _, seen, _, back, _ = step(cut_codec("float32"), features, gradient)
    assert torch.equal(seen, features)
    assert torch.equal(back, gradient)


@pytest.mark.parametrize("rows", [1, 2, 7, 32, 256, 512])
@pytest.mark.parametrize("columns", [1, 2, 33, 1152])
def test_budget_is_kept_or_the_smallest_is_named(rows: int, columns: int) -> None:
    torch.manual_seed(rows + columns)
    for bits in (0.05, 0.2, 1.0, 4.0):
        for reduction in (1, 16):
            cut = cut_codec(
                "splitfc", uplink_bits=bits, downlink_bits=bits, reduction=reduction
            )
            for make in INPUTS.values():
                assert_budget(cut, make(rows, columns))


@pytest.mark.parametrize("bits", [0.05, 0.4])
@pytest.mark.parametrize("rows", [1, 256])
def test_budget_of_wide_features(bits: float, rows: int) -> None:
    torch.manual_seed(1)
    for reduction in (1, 16):
        cut = cut_codec(
            "splitfc", uplink_bits=bits, downlink_bits=bits, reduction=reduction
        )
        assert_budget(cut, torch.randn(rows, 8192))


def assert_budget(cut: CutCodec, features: torch.Tensor) -> None:
    rows, columns = features.shape
    try:
        cut.check_budget(rows, columns)
    except BudgetError as error:
        named = dict(re.findall(r"(\w+_bits)=\S+ .*?works is ([\d.]+)", str(error)))
        settings = {key: float(value) for key, value in named.items()}
        if "uplink_bits" in settings:
            with pytest.raises(BudgetError):
                cut.encode_features(features)
        if "downlink_bits" in settings:
            with pytest.raises(BudgetError):
                cut.encode_gradient(features, Link(rows, columns))
        cut = cut_codec(
            {
                **cut.config(),
                **{key.replace("_", "-"): value for key, value in settings.items()},
            }
        )
        cut.check_budget(rows, columns)
    up, _, down, _, _ = step(cut, features, torch.randn(rows, columns), seed=rows)
    assert len(up.data) * 8 <= rows * columns * cut.uplink_bits
    assert len(down.data) * 8 <= rows * columns * cut.downlink_bits


def test_smallest_bits_are_needed() -> None:
    cut = cut_codec("splitfc", reduction=16)
    up, down = cut.smallest_bits(64, 288)
    short = replace(cut, uplink_bits=up - 1e-3, downlink_bits=down)
    with pytest.raises(
        BudgetError,
        match=f"uplink_bits=.* is too small for 64 x 288; the smallest .* {up}",
    ):
        short.check_budget(64, 288)
    assert cut_codec("float32", uplink_bits=1e-9).smallest_bits(64, 288) == (0.0, 0.0)


@pytest.mark.parametrize("name", codec_names())
def test_a_mirrored_codec_is_that_of_swapped_budgets_but_for_their_names(
    name: str,
) -> None:
    up, down = 1.5, 3.0
    features, gradient = torch.randn(64, 288), torch.randn(64, 288)
    swapped = affordable_cut(name, 64, 288, down, up)
    mirrored = cut_codec(
        name, uplink_bits=swapped.downlink_bits, downlink_bits=swapped.uplink_bits
    ).mirror()
    for ours, theirs in zip(
        step(mirrored, features, gradient),
        step(swapped, features, gradient),
        strict=True,
    ):
        if isinstance(ours, Array):
            assert ours.data == theirs.data
    assert mirrored.smallest_bits(64, 288) == swapped.smallest_bits(64, 288)[::-1]
    assert mirrored.config() == mirrored.mirror().config()
    assert cut_codec(mirrored.config()).mirror() == mirrored


def test_a_mirrored_codec_names_the_budget_of_the_direction() -> None:
    cut = cut_codec("splitfc", reduction=16).mirror()
    up, down = cut.smallest_bits(64, 288)
    short = replace(cut, uplink_bits=up, downlink_bits=down - 1e-3)
    with pytest.raises(
        BudgetError,
        match=f"downlink_bits=.* is too small for 64 x 288; the smallest .* {down}",
    ):
        short.encode_features(torch.randn(64, 288))
    _, link = (
        cut_codec("splitfc", downlink_bits=down)
        .mirror()
        .encode_features(torch.randn(64, 288))
    )
    with pytest.raises(BudgetError, match=r"uplink_bits=0.0001 is too small"):
        cut_codec("splitfc", uplink_bits=1e-4).mirror().encode_gradient(
            torch.randn(64, 288), link
        )


def test_a_short_last_batch_goes_in_the_smallest_payload() -> None:
    cut = cut_codec("splitfc", uplink_bits=0.05, downlink_bits=0.05)
    features = torch.randn(2, 288)
    with pytest.raises(BudgetError):
        cut.encode_features(features, full_rows=2)
    up, link = cut.encode_features(features, full_rows=256)
    seen, server_link = cut.decode_features(up, expect=(256, 288))
    assert torch.equal(seen[0], seen[1])
    with pytest.raises(BudgetError):
        cut.encode_gradient(features, server_link)
    down = cut.encode_gradient(features, server_link, full_rows=256)
    assert cut.decode_gradient(down, link).shape == (2, 288)


def test_gradient_is_autograds_through_mask_and_scale() -> None:
    torch.manual_seed(2)
    cut, weight = cut_codec("dropout-only", reduction=4), torch.randn(40, 3)
    features = torch.randn(16, 40, requires_grad=True)
    up, link = cut.encode_features(features, generator=seeded())
    seen, server_link = cut.decode_features(up, expect=(16, 40))
    assert link.columns is not None
    assert link.scale is not None

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (x @ weight).square().sum()

    seen.requires_grad_()
    (at_server,) = torch.autograd.grad(loss(seen), seen)
    back = cut.decode_gradient(cut.encode_gradient(at_server, server_link), link)
    factor = torch.zeros(40).index_copy(0, link.columns, link.scale)
    (expected,) = torch.autograd.grad(loss(features * factor), features)
    assert torch.equal(seen, features * factor)
    assert torch.equal(back, expected)


def test_quantised_gradient_is_close_and_scaled() -> None:
    torch.manual_seed(3)
    cut = cut_codec("splitfc", uplink_bits=4, downlink_bits=4, reduction=4)
    features, gradient = torch.randn(128, 64), torch.randn(128, 64)
    _, seen, _, back, link = step(cut, features, gradient)
    expected = link.expand(link.restrict(gradient))
    torch.testing.assert_close(
        back, expected, atol=1e-3 * float(expected.abs().max()), rtol=0
    )
    factor = link.expand(torch.ones(128, link.kept))
    torch.testing.assert_close(seen, features * factor, atol=0.01, rtol=0.01)


def test_evaluation_sends_all_columns() -> None:
    features = torch.randn(9, 3, 4, 4)
    cut = cut_codec("splitfc", uplink_bits=0.001)
    array, link = cut.encode_features(features, training=False)
    assert array.stype == "float16/1"
    assert link.columns is None
    seen, _ = cut.decode_features(array, expect=(9, 48))
    assert torch.equal(seen, features.half().float().flatten(1))
    exact = cut_codec("splitfc", evaluation="float32")
    seen, _ = exact.decode_features(
        exact.encode_features(features, training=False)[0], expect=(9, 48)
    )
    assert torch.equal(seen, features.flatten(1))


@pytest.mark.parametrize("name", ["splitfc-rd", "float32", "float16"])
def test_evaluation_sends_float32_where_float16_would_distort(name: str) -> None:
    features = 1e5 * torch.randn(9, 48) + 5e5
    cut = cut_codec(name)
    array, _ = cut.encode_features(features, training=False)
    assert array.stype == "float32/1"
    seen, _ = cut.decode_features(array, expect=(9, 48))
    assert torch.equal(seen, features)


def test_same_seed_same_bytes() -> None:
    features, cut = torch.randn(32, 96), cut_codec("splitfc", uplink_bits=1)
    one, two, other = (
        cut.encode_features(features, generator=seeded(s))[0].data for s in (1, 1, 2)
    )
    assert one == two != other


@pytest.mark.parametrize("name", codec_names())
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_are_refused(name: str, bad: float) -> None:
    features = torch.randn(64, 288)
    features[3, 5] = bad
    cut = affordable_cut(name, 64, 288)
    with pytest.raises(ValueError, match="NaN or inf"):
        cut.encode_features(features)
    with pytest.raises(ValueError, match="NaN or inf"):
        cut.encode_features(features, training=False)
    with pytest.raises(ValueError, match="NaN or inf"):
        cut.encode_gradient(features, Link(64, 288))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), ()])
def test_empty_batches_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rows and columns"):
        cut_codec("splitfc").encode_features(torch.zeros(shape))


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"floating point .* got torch.int64"):
        cut_codec("float32").encode_features(torch.zeros(2, 2, dtype=torch.int64))


def with_field(array: Array, **changes: Any) -> Array:
    fields: dict[str, Any] = {
        key: getattr(array, key) for key in ("dtype", "shape", "stype", "data")
    }
    fields.update(changes)
    return Array(fields["dtype"], fields["shape"], fields["stype"], fields["data"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (65, 288)}, "65 x 288; at most 64 x 288"),
        ({"shape": (64, 289)}, "64 x 289"),
        ({"shape": (2**31, 2**31)}, "at most 64"),
        ({"shape": ()}, "not one of positive sizes"),
        ({"shape": (0, 288)}, "not one of positive sizes"),
        ({"shape": (-1, -288)}, "not one of positive sizes"),
        ({"stype": "splitfc/2"}, "stype is 'splitfc/2'; 'splitfc/1' or 'float16/1'"),
        ({"stype": "numpy.ndarray"}, "stype is"),
        ({"dtype": "object"}, "dtype is 'object'"),
        ({"data": b""}, "ends early"),
    ],
)
def test_arrays_that_lie_are_refused(changes: dict[str, object], message: str) -> None:
    cut = cut_codec("splitfc")
    array, _ = cut.encode_features(torch.randn(64, 288), generator=seeded())
    with pytest.raises(PayloadError, match=message):
        cut.decode_features(with_field(array, **changes), expect=(64, 288))


@pytest.mark.parametrize("name", ["float32", "splitfc", "splitfc-rd"])
def test_a_coded_matrix_is_read_as_the_array_is(name: str) -> None:
    cut = cut_codec(name)
    array, link = cut.encode_features(torch.randn(64, 288), generator=seeded())
    down = cut.encode_gradient(torch.randn(64, 288), link)
    coded = CodedMatrix(array.shape, array.stype, array.data)
    features, _ = cut.decode_features(array, expect=(64, 288))
    gradient = cut.decode_gradient(down, link)
    seen, _ = cut.decode_features(coded, expect=(64, 288))
    assert torch.equal(seen, features)
    coded = CodedMatrix(down.shape, down.stype, down.data)
    assert torch.equal(cut.decode_gradient(coded, link), gradient)


def test_gradients_of_another_step_are_refused() -> None:
    cut = cut_codec("splitfc")
    _, _, down, _, link = step(cut, torch.randn(64, 288), torch.randn(64, 288))
    with pytest.raises(PayloadError, match=r"63 x 288; 64 x 288 was wanted"):
        cut.decode_gradient(with_field(down, shape=(63, 288)), link)
    with pytest.raises(PayloadError, match="stype"):
        cut.decode_gradient(with_field(down, stype="float16/1"), link)
    with pytest.raises(
        ValueError, match="gradient is 63 x 288; the features were 64 x 288"
    ):
        cut.encode_gradient(torch.randn(63, 288), link)


@pytest.mark.parametrize("name", codec_names())
def test_damaged_payloads_are_refused_or_finite(name: str) -> None:
    torch.manual_seed(4)
    cut = affordable_cut(name, 8, 48, 3, 3)
    up, _, down, _, link = step(cut, torch.randn(8, 48), torch.randn(8, 48))

    def survives(array: Array, downlink: bool) -> bool:
        try:
            if downlink:
                decoded = cut.decode_gradient(array, link)
            else:
                decoded, _ = cut.decode_features(array, expect=(8, 48))
        except PayloadError:
            return False
        assert decoded.shape == (8, 48)
        assert bool(torch.isfinite(decoded).all())
        return True

    for array, downlink in ((up, False), (down, True)):
        assert survives(array, downlink)
        for size in range(0, len(array.data), 3):
            assert not survives(with_field(array, data=array.data[:size]), downlink)
        for bit in range(0, 8 * len(array.data), 1 + len(array.data) // 200):
            flipped = bytearray(array.data)
            flipped[bit // 8] ^= 1 << bit % 8
            survives(with_field(array, data=bytes(flipped)), downlink)
        for extra in (b"\0", bytes(4), bytes(12)):
            assert not survives(with_field(array, data=array.data + extra), downlink)


def test_pickles_are_not_read() -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("unpickled",)

    cut = cut_codec("splitfc")
    array, _ = cut.encode_features(torch.randn(64, 288), generator=seeded())
    for stype in (cut.stype, *cut.evaluation_stypes):
        with pytest.raises(PayloadError):
            cut.decode_features(
                with_field(array, data=pickle.dumps(Bomb()), stype=stype),
                expect=(64, 288),
            )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", codec_names())
def test_cuda_features_and_gradients(name: str) -> None:
    torch.manual_seed(5)
    cut = affordable_cut(name, 64, 288, 2, 2)
    features = torch.randn(64, 8, 6, 6, device="cuda")
    up, link = cut.encode_features(features, generator=seeded())
    seen, server_link = cut.decode_features(up, expect=(64, 288))
    assert seen.device.type == "cpu"
    down = cut.encode_gradient(torch.randn(64, 288, device="cuda"), server_link)
    assert cut.decode_gradient(down, link).device.type == "cuda"


def test_evaluation_by_the_codec_keeps_its_own_budget_and_drops_nothing() -> None:
    cut = cut_codec("splitfc", reduction=4, evaluation="codec", evaluation_bits=0.8)
    features = torch.rand(64, 200, generator=torch.Generator().manual_seed(0))
    array, link = cut.encode_features(features, training=False)
    seen, _ = cut.decode_features(array, expect=(64, 200))
    assert cut.evaluation_stypes == (array.stype,) == (cut.stype,)
    assert len(array.data) <= 64 * 200 * 0.8 / 8
    assert link.kept == 200
    assert (seen != 0).any(0).all()
    again, _ = cut.encode_features(features, training=False)
    assert again.data == array.data


def test_evaluation_by_the_codec_names_the_smallest_bits() -> None:
    cut = cut_codec("quant-only", evaluation="codec", evaluation_bits=0.001)
    with pytest.raises(
        BudgetError,
        match=r"evaluation_bits=0.001 is too small for 8 x 100; the smallest",
    ):
        cut.encode_features(torch.rand(8, 100), training=False)
    least = cut.smallest_bits(8, 100)[0]
    enough = cut_codec(
        "quant-only",
        evaluation="codec",
        evaluation_bits=least,
        uplink_bits=1,
        downlink_bits=1,
    )
    enough.check_budget(8, 100)

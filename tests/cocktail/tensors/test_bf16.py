"""Sums without torch: the same bits as torch's."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from cocktail.errors import NonFiniteError
from cocktail.methods.linear import accumulate
from cocktail.plan import plan as plan_module
from cocktail.plan.plan import Plan, build_plan
from cocktail.recipe.recipe import make_recipe
from cocktail.tensors import bf16
from cocktail.tensors.bf16 import (
    PIECE,
    add_weighed,
    in_fp64,
    narrow,
    require_finite,
    rounded,
    widen,
)
from cocktail.tensors.dtypes import Bytes, as_bytes, as_tensor, torch_dtype
from tests.cocktail.checkpoints import Save, streamed, weights


@pytest.fixture(autouse=True)
def torch_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocktail.mix.stream._has_torch", lambda: False)


FINITE_BF16 = np.array([b for b in range(1 << 16) if b & 0x7F80 != 0x7F80], np.uint16)


@pytest.mark.parametrize("numel", [5, PIECE, 2 * PIECE + 3])
@pytest.mark.parametrize("code", ["F32", "BF16", "F16"])
def test_the_size_of_a_piece_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, code: str, numel: int
) -> None:
    dtype = torch_dtype(code)
    raws = [as_bytes(torch.randn(numel).mul(10.0**-i).to(dtype)) for i in range(3)]

    def summed(piece: int) -> Bytes:
        monkeypatch.setattr(bf16, "PIECE", piece)
        total, term = np.empty((2, numel), np.float32)
        for number, raw in enumerate(raws):
            add_weighed(raw, code, 0.3 - number, term, total, first=number == 0)
        return rounded(total, code, term, np.empty(4 * numel, np.uint8), "w").copy()

    assert np.array_equal(summed(PIECE), summed(numel))
    assert np.array_equal(summed(PIECE), summed(1 + numel // 7))


def test_every_fp16_goes_through_as_in_torch() -> None:
    finite = np.array([h for h in range(1 << 16) if h & 0x7C00 != 0x7C00], np.uint16)
    halves = torch.from_numpy(finite.view(np.float16))
    total, term = np.empty((2, len(finite)), np.float32)
    add_weighed(finite.view(np.uint8), "F16", 0.37, term, total, first=True)
    expected = halves.float() * np.float32(0.37)
    assert np.array_equal(total.view(np.uint32), expected.numpy().view(np.uint32))
    found = rounded(total, "F16", term, np.empty(2 * len(finite), np.uint8), "w")
    assert np.array_equal(found, as_bytes(expected.half()))


def test_much_fp16_goes_through_torch_and_gives_the_same_bytes(
    save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [weights(i, torch.float16) for i in range(2)]
    models = [save(f"m{i}", state) for i, state in enumerate(states)]
    plan = build_plan(make_recipe(models, (0.3, 0.7)))
    assert plan.is_plain_sum
    without, _ = streamed(plan)
    monkeypatch.setattr(plan_module, "HALVES_WITHOUT_TORCH", 0)
    assert not plan.is_plain_sum
    for name, mixed in streamed(plan)[0].items():
        assert torch.equal(mixed.view(torch.int16), without[name].view(torch.int16)), name


def test_every_bf16_is_widened_as_torch_does() -> None:
    raw = FINITE_BF16.view(np.uint8)
    found = widen(raw, np.empty(len(FINITE_BF16), np.float32))
    expected = as_tensor(raw, "BF16").float().numpy()
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("code", ["BF16", "F16", "F32", "F64"])
def test_every_floating_type_is_read_in_fp64(code: str) -> None:
    values = torch.randn(9, dtype=torch.float64).to(torch_dtype(code))
    assert np.array_equal(in_fp64(as_bytes(values), code), values.double().numpy())


def test_fp32_is_rounded_as_torch_does() -> None:
    """On both sides of every tie, in the middle and at the ends, of both signs."""
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    bits = ((FINITE_BF16.astype(np.uint32) << 16)[:, None] | low).reshape(-1)
    block = bits[np.abs(bits.view(np.float32)) <= torch.finfo(torch.bfloat16).max]
    block = block.view(np.float32).copy()
    found = narrow(block, np.empty_like(block), np.empty(2 * len(block) + 8, np.uint8))
    assert torch.equal(
        as_tensor(found, "BF16").view(torch.int16),
        torch.from_numpy(block).bfloat16().view(torch.int16),
    )


@pytest.mark.parametrize(
    "dtypes", [("F32", "F32"), ("BF16", "BF16"), ("BF16", "F32"), ("F16", "F16"), ("F16", "BF16")]
)
@pytest.mark.parametrize("written", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("numbers", [(0.3, 0.7), (-0.25, 1.25), (1.0, 0.0)])
def test_equals_the_sum_of_torch(
    save: Save, dtypes: tuple[str, str], written: str, numbers: tuple[float, float]
) -> None:
    states = [weights(i, torch_dtype(code)) for i, code in enumerate(dtypes)]
    models = [save(f"m{i}", state) for i, state in enumerate(states)]
    plan = build_plan(make_recipe(models, numbers, dtype=str(torch_dtype(written))))
    assert all(tensor.is_plain_sum for tensor in plan.tensors)
    found, _ = streamed(plan, block=7)
    for name, mixed in found.items():
        total, term = (torch.empty(states[0][name].numel()) for _ in range(2))
        accumulate([state[name].reshape(-1) for state in states], numbers, out=total, term=term)
        expected = total.to(torch_dtype(written))
        assert np.array_equal(as_bytes(mixed.reshape(-1)), as_bytes(expected)), name


@pytest.mark.parametrize(
    ("bits", "code", "refused"),
    [
        (0x7F7F7FFF, "BF16", False),  # rounds to the largest bf16
        (0x7F7F8000, "BF16", True),
        (0xFF7F8000, "BF16", True),
        (0x7F7FFFFF, "F32", False),
        (0x7F800000, "F32", True),
        (0xFF800000, "BF16", True),
        (0x7FC00000, "F32", True),
        (0x477FEFFF, "F16", False),  # rounds to the largest fp16
        (0xC77FF000, "F16", True),
        (0x7F800001, "BF16", True),  # a NaN whose upper half alone would be infinity
    ],
)
def test_what_is_not_finite_after_rounding_is_refused(bits: int, code: str, refused: bool) -> None:
    block = np.array([0.5, 0.0, 1.0], np.float32)
    block.view(np.uint32)[1] = bits
    in_torch = torch.from_numpy(block).to(torch_dtype(code))
    assert bool(in_torch.isfinite().all()) is not refused
    if not refused:
        require_finite(block, code, "w")
        return
    with pytest.raises(
        NonFiniteError, match=r"^w (holds|exceeds (3\.38953e\+38|65504), the largest)"
    ):
        require_finite(block, code, "w")


def test_an_overflow_is_an_error_and_no_warning(save: Save) -> None:
    models = [save(f"m{i}", {"w": torch.full((3,), 3e38)}) for i in range(2)]
    plan = build_plan(make_recipe(models, (1.5, -0.5)))
    with warnings.catch_warnings(), pytest.raises(NonFiniteError, match=r"^w holds inf"):
        warnings.simplefilter("error")
        streamed(plan, threads=1)


def test_other_types_are_left_to_torch(save: Save) -> None:
    states = [weights(i, torch.float64) for i in range(2)]
    plan: Plan = build_plan(make_recipe([save(f"m{i}", s) for i, s in enumerate(states)], (1, 0)))
    assert not any(tensor.is_plain_sum for tensor in plan.tensors)
    assert all(torch.equal(t, states[0][name]) for name, t in streamed(plan)[0].items())


def test_integers_are_copied_beside_sums(save: Save) -> None:
    states = [weights(i) | {"position_ids": torch.arange(5)} for i in range(2)]
    plan = build_plan(make_recipe([save(f"m{i}", s) for i, s in enumerate(states)], (0.5, 0.5)))
    assert all(tensor.is_plain_sum for tensor in plan.tensors)
    assert torch.equal(streamed(plan, block=2)[0]["position_ids"], torch.arange(5))

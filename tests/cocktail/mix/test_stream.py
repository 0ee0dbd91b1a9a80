"""The engine: what comes out is the weighted sum, bit for bit, however it is cut up."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Barrier, current_thread
from typing import Any

import pytest
import torch

from cocktail.errors import CheckpointError, NonFiniteError
from cocktail.mix.stream import stream
from cocktail.pipeline import checked_plan, mix_to_folder
from cocktail.plan.plan import Plan, build_plan
from cocktail.recipe.recipe import make_recipe
from tests.cocktail.checkpoints import Save, load, streamed, weights


@pytest.fixture(autouse=True, params=["NumPy", "torch"])
def summed_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are made by NumPy where torch has not been imported, as it always has been here."""
    monkeypatch.setattr("cocktail.mix.stream._has_torch", lambda: request.param == "torch")


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def mix(
    models: tuple[Path, ...], numbers: tuple[float, ...], output: Path, **options: Any
) -> dict[str, torch.Tensor]:
    size = options.pop("max_shard_size", "5GB")
    recipe = make_recipe(models, numbers, **options)
    mix_to_folder(checked_plan(recipe, output, max_shard_size=size), output, progress=False)
    return load(output)


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and torch.equal(
            a[name].reshape(-1).view(torch.uint8), b[name].reshape(-1).view(torch.uint8)
        )
        for name in a
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_hot_is_the_ingredient_bit_for_bit(
    save: Save, tmp_path: Path, dtype: torch.dtype
) -> None:
    first, second = weights(0, dtype), weights(1, dtype)
    first["encoder.layer.0.output.LayerNorm.weight"][0] = -0.0
    a, b = save("a", first), save("b", second)
    assert same_bits(mix((a, b), (1, 0), tmp_path / "x"), first)
    assert same_bits(mix((a, b), (0, 1), tmp_path / "y"), second)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numbers", [(0.5, 0.5), (0.25, 0.25, 0.5), (2.0, -1.0)])
def test_equal_ingredients_change_nothing(
    save: Save, tmp_path: Path, dtype: torch.dtype, numbers: tuple[float, ...]
) -> None:
    model = save("a", weights(0, dtype))
    assert same_bits(mix((model,) * len(numbers), numbers, tmp_path / "x"), weights(0, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_sum_in_memory(save: Save, tmp_path: Path, dtype: torch.dtype) -> None:
    numbers = (0.3, 0.45, 0.25)
    ingredients = [weights(seed, dtype) for seed in range(3)]
    models = tuple(save(f"m{i}", tensors) for i, tensors in enumerate(ingredients))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = {}
    for name in ingredients[0]:
        total = ingredients[0][name].to(wide) * numbers[0]
        for tensors, number in zip(ingredients[1:], numbers[1:], strict=True):
            total = total + tensors[name].to(wide) * number
        expected[name] = total.to(dtype)
    assert same_bits(mix(models, numbers, tmp_path / "x"), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_whose_weights_are_all_0_is_zero(save: Save, dtype: torch.dtype) -> None:
    models = [save(f"m{i}", weights(i, dtype)) for i in range(2)]
    weight = [{"filter": "output", "value": 0}, {"value": 0.5}]
    parameters = {"normalize": False, "weight": weight}
    mixed, _ = streamed(build_plan(make_recipe(models, None, parameters=parameters)), threads=1)
    for name, tensor in mixed.items():
        assert bool(tensor.any()) is ("output" not in name), name


def test_mixed_dtypes_are_summed_in_fp32(save: Save, tmp_path: Path) -> None:
    a, b = weights(0, torch.bfloat16), weights(1)
    mixed = mix((save("a", a), save("b", b)), (0.3, 0.7), tmp_path / "x")
    assert same_bits(mixed, {name: a[name].float() * 0.3 + b[name] * 0.7 for name in b})
    rounded = mix((tmp_path / "a", tmp_path / "b"), (0.3, 0.7), tmp_path / "y", dtype="bfloat16")
    assert same_bits(rounded, {name: tensor.bfloat16() for name, tensor in mixed.items()})


def test_shards_in_or_out_change_nothing(save: Save, tmp_path: Path) -> None:
    a, b = save("a", weights(0)), save("b", weights(1))
    whole = mix((a, b), (0.3, 0.7), tmp_path / "whole")
    parts = mix((a, b), (0.3, 0.7), tmp_path / "parts", max_shard_size=100)
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) == 4
    assert same_bits(whole, parts)
    # Shards of a one-hot mix hold ingredient b; as an ingredient they stand for it.
    mix((a, b), (0, 1), tmp_path / "b-shards", max_shard_size=100)
    assert same_bits(whole, mix((a, tmp_path / "b-shards"), (0.3, 0.7), tmp_path / "again"))


def test_pickled_ingredients_change_nothing(save: Save, tmp_path: Path) -> None:
    a, b = save("a", weights(0)), save("b", weights(1))
    whole = mix((a, b), (0.3, 0.7), tmp_path / "x")
    turned = weights(1)
    name = "encoder.layer.0.output.dense.weight"
    turned[name] = turned[name].t().contiguous().t()  # the same values, laid out by columns
    torch.save(turned, b / "pytorch_model.bin")
    (b / "model.safetensors").unlink()
    assert same_bits(whole, mix((a, b), (0.3, 0.7), tmp_path / "y"))


def test_threads_and_blocks_change_nothing(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [{"w": torch.randn(1013, generator=generator).bfloat16()} for _ in range(2)]
    models = [save(f"m{i}", tensor) for i, tensor in enumerate(tensors)]
    monkeypatch.setattr("cocktail.mix.stream.SEGMENT", 128)
    results = []
    for threads, block in ((1, 7), (1, 128), (3, 64), (4, 1 << 18)):
        plan = build_plan(make_recipe(models, (0.3, 0.7)))
        mixed, digests = streamed(plan, threads=threads, block=block)
        results.append((mixed["w"], digests))
    for out, digests in results[1:]:
        assert torch.equal(out, results[0][0])
        assert digests == results[0][1]


def test_torch_keeps_its_threads(pair: tuple[Path, Path]) -> None:
    before = torch.get_num_threads()
    stream(build_plan(make_recipe(pair, (0.5, 0.5))), lambda *_: None, threads=2)
    assert torch.get_num_threads() == before


def test_small_tensors_are_mixed_by_one_thread_and_large_ones_by_several(
    save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that share small tensors wait for the interpreter more than they work."""
    monkeypatch.setattr("cocktail.mix.stream.default_threads", lambda: 2)

    def plan(size: int) -> Plan:
        parts = {f"part{i}": torch.ones(size) for i in range(8)}
        return build_plan(make_recipe([save(f"{size}a", parts), save(f"{size}b", parts)], (1, 0)))

    names: set[str] = set()
    stream(plan(1 << 10), lambda *_: names.add(current_thread().name))
    assert len(names) == 1
    both = Barrier(2, timeout=60)  # nobody passes alone
    stream(plan(1 << 17), lambda *_: both.wait())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("numbers", [(0.5, 0.5), (0.0, 1.0)])
def test_a_result_that_is_not_finite_names_the_tensor(
    save: Save, tmp_path: Path, value: float, numbers: tuple[float, float]
) -> None:
    broken = weights(1)
    broken["encoder.layer.0.output.dense.weight"][3, 2] = value
    with pytest.raises(NonFiniteError, match=r"encoder\.layer\.0\.output\.dense\.weight holds"):
        mix((save("a", weights(0)), save("b", broken)), numbers, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_value_too_large_for_the_dtype_is_refused(save: Save, tmp_path: Path) -> None:
    large = weights(1)
    large["encoder.layer.0.scale"] = torch.tensor(2e5)
    models = (save("a", weights(0)), save("b", large))
    with pytest.raises(NonFiniteError, match="exceeds 65504"):
        mix(models, (0.5, 0.5), tmp_path / "out", dtype="float16")
    large_but_finite = mix(models, (0.5, 0.5), tmp_path / "out")
    assert large_but_finite["encoder.layer.0.scale"] > 65504


def test_a_file_cut_off_while_it_is_read(pair: tuple[Path, Path], tmp_path: Path) -> None:
    plan = checked_plan(make_recipe(pair, (0.5, 0.5)), tmp_path / "out")
    file = pair[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="cut off while being read"):
        mix_to_folder(plan, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_side_tensors_are_mixed(save: Save, tmp_path: Path) -> None:
    models = []
    for seed in range(2):
        folder = save(f"m{seed}", weights(seed))
        torch.save({"weight": torch.full((1, 4), float(seed))}, folder / "colbert_linear.pt")
        models.append(folder)
    mix(tuple(models), (0.25, 0.75), tmp_path / "out")
    state = torch.load(tmp_path / "out" / "colbert_linear.pt", weights_only=True)
    assert torch.equal(state["weight"], torch.full((1, 4), 0.75))


def test_reads_that_stop_early_are_continued(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call reads at most 2,147,479,552 bytes, whatever was asked for; here, five."""
    expected = mix(pair, (0.3, 0.7), tmp_path / "x")
    preadv = os.preadv

    def short(descriptor: int, buffers: list[memoryview], position: int) -> int:
        return preadv(descriptor, [buffers[0][:5]], position)

    monkeypatch.setattr(os, "preadv", short)
    assert same_bits(mix(pair, (0.3, 0.7), tmp_path / "y"), expected)

"""What holds for every merge method, whatever the tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from cocktail.errors import RecipeError
from cocktail.methods.method import Method
from cocktail.methods.random_words import RandomWords
from cocktail.methods.registry import METHODS, method_named

SHAPES = [(13, 8), (3, 700), (9,), (1,), (), (0,), (0, 4), (4, 0), (5, 3, 2)]
DROPPING = ["dare_linear", "dare_ties", "della", "della_linear"]
# Methods that read examples have tests of their own.
ALL = [method for method in METHODS.values() if method.statistic is None and method.module]
"""Not the weighted average, which the engine makes by itself, nor what weighs by examples."""
NAMES = {"ids": lambda method: method.name}
BASED = [method for method in ALL if method.base != "ingredient"]


def draw(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def counts(method: Method) -> Iterator[int]:
    fewest, most = method.models
    return (count for count in (1, 2, 4) if fewest <= count <= (most or count))


def options_for(method: Method, count: int, **given: Any) -> dict[str, Any]:
    """Numbers for what has no default, and half of all elements dropped."""
    names = {option.name for option in method.options}
    chosen = {option.name: 0.3 for option in method.options if option.default is None}
    chosen |= {"density": (0.5,) * count} if "density" in names else {}
    return chosen | {name: value for name, value in given.items() if name in names}


def merge(
    method: Method,
    models: list[torch.Tensor],
    base: torch.Tensor | None,
    weights: list[float] | None = None,
    seed: int = 5,
    first: int = 0,
    **given: Any,
) -> torch.Tensor:
    """Run a method on copies; by default with equal weights that sum to one."""
    return method.merge(
        [model.clone() for model in models],
        None if base is None or method.base == "ingredient" else base.clone(),
        weights or [1 / len(models)] * len(models),
        generator=RandomWords(seed, first),
        options=options_for(method, len(models), **given),
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", ALL, **NAMES)
def test_results_are_finite_and_of_the_same_shape(method: Method, shape: tuple[int, ...]) -> None:
    for count in counts(method):
        models = [draw(shape, seed) for seed in range(count)]
        for inputs in (models, models[:1] * count, [torch.zeros(shape)] * count):
            for base in (draw(shape, 9), torch.zeros(shape), models[0]):
                mixed = merge(method, inputs, base)
                assert mixed.shape == shape
                assert mixed.dtype == torch.float32
                assert mixed.isfinite().all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", BASED, **NAMES)
def test_models_equal_to_the_base_change_nothing(method: Method, shape: tuple[int, ...]) -> None:
    base = draw(shape, 1)
    for count in counts(method):
        mixed = merge(method, [base] * count, base)
        torch.testing.assert_close(mixed, base, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["nuslerp", "multislerp", "karcher"])
def test_the_average_of_equal_models_is_the_model(name: str) -> None:
    model = draw((40, 30), 1)
    for base in (None, draw((40, 30), 2)):
        mixed = merge(METHODS[name], [model, model], base, [0.3, 0.7])
        torch.testing.assert_close(mixed, model, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ALL, **NAMES)
def test_the_order_of_the_models_does_not_matter(method: Method) -> None:
    if method.name in DROPPING or method.models == (1, 1):
        pytest.skip("draws for one model after the other, or has one model")
    models = [draw((30, 20), seed) for seed in range(3)][: method.models[1]]
    weights = [0.5, 0.3, 0.4][: len(models)]
    base = draw((30, 20), 8)
    found = [
        merge(method, models[::step], base, weights[::step], density=(0.5,) * len(models))
        for step in (1, -1)
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ALL, **NAMES)
def test_the_number_of_threads_changes_no_bit(method: Method) -> None:
    count = max(counts(method))
    models = [draw((300, 401), seed) for seed in range(count)]
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(merge(method, models, draw((300, 401), 9)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("method", [m for m in ALL if m.elementwise], **NAMES)
def test_the_size_of_blocks_changes_no_bit_of_elementwise_methods(method: Method) -> None:
    size = 150_001
    count = max(counts(method))
    models = [draw((size,), seed) for seed in range(count)]
    base = draw((size,), 9)
    whole = merge(method, models, base)
    for block in (7919, 65_537):
        parts = [
            merge(
                method, [model[start : start + block] for model in models],
                base[start : start + block], first=start,
            )
            for start in range(0, size, block)
        ]  # fmt: skip
        assert torch.equal(torch.cat(parts), whole)


def test_task_arithmetic_is_linear_in_the_weights() -> None:
    models = [draw((20, 9), seed) for seed in range(2)]
    base = draw((20, 9), 9)

    def at(*weights: float) -> torch.Tensor:
        return merge(METHODS["task_arithmetic"], models, base, list(weights), normalize=False)

    torch.testing.assert_close(at(0.5, -0.25), at(0, 0) + 0.5 * (at(1, 0) - at(0, 0))
                               - 0.25 * (at(0, 1) - at(0, 0)), rtol=1e-5, atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("name", ["ties", "breadcrumbs", "breadcrumbs_ties", *DROPPING])
def test_with_all_kept_and_one_sign_it_is_task_arithmetic(name: str) -> None:
    base = draw((40, 30), 1)
    models = [base + draw((40, 30), seed).abs() for seed in (2, 3, 4)]
    weights = [0.5, 0.3, 0.4]
    settings: dict[str, Any] = {"normalize": False, "lambda": 1.0}
    mixed = merge(METHODS[name], models, base, weights, density=(1.0,) * 3, **settings)
    plain = merge(METHODS["task_arithmetic"], models, base, weights, **settings)
    torch.testing.assert_close(mixed, plain, rtol=1e-6, atol=1e-6)


def test_consensus_of_nobody_is_task_arithmetic() -> None:
    base, *models = (draw((40, 30), seed) for seed in range(4))
    mixed = merge(METHODS["consensus"], models, base, k=0)
    plain = merge(METHODS["task_arithmetic"], models, base, [1.0, 1.0, 1.0])
    torch.testing.assert_close(mixed, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", [m for m in BASED if m.name in DROPPING], **NAMES)
def test_a_seed_gives_the_same_bytes_again(method: Method) -> None:
    base, *models = (draw((300, 300), seed) for seed in range(3))
    first, again, other = (merge(method, models, base, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
@pytest.mark.parametrize("density", [0.2, 0.7])
def test_the_share_that_is_kept_and_its_mean(name: str, density: float) -> None:
    shape = (400, 500)
    count = shape[0] * shape[1]
    model = draw(shape, 1).abs() + 0.5
    mixed = merge(METHODS[name], [model], torch.zeros(shape), density=(density,), epsilon=(0.1,))
    kept = float((mixed != 0).float().mean())
    # Five standard deviations of the share of so many drawn elements.
    assert abs(kept - density) < 5 * (density * (1 - density) / count) ** 0.5
    if name == "dare_linear":
        torch.testing.assert_close(mixed[mixed != 0], model[mixed != 0] / density)
        spread = float(mixed.std()) / count**0.5
        assert abs(float(mixed.mean() - model.mean())) < 5 * spread
    else:
        # The sum of magnitudes is kept exactly.
        assert float(mixed.double().sum()) == pytest.approx(float(model.double().sum()), rel=1e-5)


def test_della_keeps_large_differences_more_often() -> None:
    rows, columns, density, epsilon = 4000, 11, 0.5, 0.3
    model = draw((rows, columns), 1)
    mixed = merge(METHODS["della_linear"], [model], torch.zeros(rows, columns),
                  density=(density,), epsilon=(epsilon,), rescale=False)  # fmt: skip
    order = model.abs().argsort(dim=1)
    kept = (mixed != 0).float().gather(1, order).mean(dim=0)
    expected = torch.linspace(density - epsilon, density + epsilon, columns)
    assert float((kept - expected).abs().max()) < 5 * (0.25 / rows) ** 0.5


def test_a_range_of_probabilities_that_leaves_zero_to_one_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"density is 0.1 and epsilon 0.15"):
        merge(METHODS["della"], [draw((3, 3), 1)], draw((3, 3), 2), density=(0.1,))


def test_weights_without_a_sum_are_refused() -> None:
    models = [draw((3, 3), seed) for seed in range(2)]
    with pytest.raises(RecipeError, match="the weights sum to 0 "):
        merge(METHODS["multislerp"], models, None, [1.0, -1.0])


@pytest.mark.parametrize("method", METHODS.values(), **NAMES)
def test_every_method_is_documented(method: Method) -> None:
    text = method.documentation
    assert method.summary.endswith(".")
    assert len(method.summary) < 100
    assert method.paper in text or method.paper == "https://www.arcee.ai"
    assert all(option.help.endswith(".") for option in method.options)


def test_an_unknown_method_names_the_nearest() -> None:
    assert method_named("ties") is METHODS["ties"]
    with pytest.raises(RecipeError, match=r"'tie' is not a merge method - did you mean ties\?"):
        method_named("tie")
    with pytest.raises(RecipeError, match="there are linear, slerp"):
        method_named("qqq")

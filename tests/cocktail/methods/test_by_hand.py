"""Small cases of the methods, worked out by hand from their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from cocktail.methods.registry import METHODS
from cocktail.methods.spectral import _orthonormalise
from tests.cocktail.methods.test_properties import draw


def merge(
    name: str, models: list[Any], base: Any = None, weights: tuple[float, ...] = (), **options: Any
) -> torch.Tensor:
    tensors = [torch.as_tensor(model, dtype=torch.float32).clone() for model in models]
    origin = None if base is None else torch.as_tensor(base, dtype=torch.float32).clone()
    numbers = weights or [1.0] * len(models)
    return METHODS[name].merge(tensors, origin, numbers, options=options)


def same(found: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float32))


def test_task_arithmetic() -> None:
    options = {"lambda": 0.5}
    same(merge("task_arithmetic", [[2, 1], [1, 4]], [1, 1], (2, 1), **options), [2, 2.5])
    options["normalize"] = True
    same(merge("task_arithmetic", [[2, 1], [1, 4]], [1, 1], (2, 1), **options),
         [1 + 1 / 3, 1 + 0.5])  # fmt: skip


def test_slerp_ends_and_middle() -> None:
    base, model = draw((6, 5), 1), draw((6, 5), 2)
    assert torch.equal(merge("slerp", [model], base, t=0.0), base)
    assert torch.equal(merge("slerp", [model], base, t=1.0), model)
    same(merge("slerp", [[0, 1]], [1, 0], t=0.5), [math.sqrt(0.5)] * 2)
    # Parallel ones are interpolated along the line.
    same(merge("slerp", [[3, 3]], [1, 1], t=0.25), [1.5, 1.5])


def test_nuslerp() -> None:
    third = [math.cos(math.pi / 6), math.sin(math.pi / 6)]
    same(merge("nuslerp", [[1, 0], [0, 1]], None, (2, 1)), third)
    same(merge("nuslerp", [[2, 1], [1, 2]], [1, 1], (2, 1)), [1 + third[0], 1 + third[1]])
    models = [[[1, 0], [2, 0]], [[0, 1], [2, 0]]]
    rows = merge("nuslerp", models, None, (2, 1), nuslerp_flatten=False)
    same(rows, [third, [2, 0]])
    columns = merge("nuslerp", [torch.tensor(m).T.contiguous() for m in models], None, (2, 1),
                    nuslerp_flatten=False, nuslerp_row_wise=True)  # fmt: skip
    same(columns, rows.T)


def test_directions_and_lengths_are_averaged_apart() -> None:
    half = math.sqrt(0.5)
    same(merge("multislerp", [[3, 0], [0, 1]]), [2 * half] * 2)
    same(merge("karcher", [[3, 0], [0, 1]]), [2 * half] * 2)
    # Opposite ones have no mean direction.
    same(merge("multislerp", [[1, 0], [-1, 0], [0, 0]]), [0, 0])
    same(merge("karcher", [[0, 0], [0, 0]]), [0, 0])


def test_karcher_solves_its_equation() -> None:
    models = [draw((50,), seed) for seed in range(4)]
    mean = merge("karcher", models, max_iter=100, tol=1e-9).double()
    mean /= mean.norm()
    pull = torch.zeros(50, dtype=torch.float64)
    for model in models:
        unit = model.double() / model.double().norm()
        angle = torch.arccos(unit @ mean)
        pull += angle / torch.sin(angle) * (unit - torch.cos(angle) * mean)
    assert float(pull.norm()) < 1e-5


def test_ties() -> None:
    # Trimmed to two of four each: [4, 0, 0, -3] and [2, 0, 3, 0]; all signs elected.
    models = [[5, 1.5, 1, -2], [3, 1, 4, 2]]
    options: dict[str, Any] = {"density": (0.5, 0.5)}
    same(merge("ties", models, [1, 1, 1, 1], **options), [1 + 3, 1, 1 + 3, 1 - 3])
    # Untrimmed, the last is -3 and 1: minus wins, and its only voter counts.
    same(merge("ties", models, [1, 1, 1, 1]), [1 + 3, 1.5, 4, -2])
    same(merge("ties", models, [1, 1, 1, 1], normalize=False), [1 + 6, 1.5, 4, -2])
    same(merge("ties", [[1], [-1]], [0]), [1])


def test_of_equal_magnitudes_the_first_stay() -> None:
    options = {"density": (0.5,)}
    same(merge("ties", [[1, -1, 1, -1, 1, 1]], [0] * 6, **options), [1, -1, 1, 0, 0, 0])


def test_breadcrumbs() -> None:
    model = [[9, -4, 1, 3, -2, 5, 6, -7, 8, 10]]
    options: dict[str, Any] = {"density": (0.5,), "gamma": (0.2,)}
    kept = [0, -4, 0, 0, 0, 5, 6, -7, 8, 0]
    same(merge("breadcrumbs", model, [0] * 10, **options), kept)
    options["rescale"] = True
    found = merge("breadcrumbs", model, [0] * 10, **options)
    same(found, [value * 55 / 30 for value in kept])


def test_model_stock() -> None:
    base = draw((8, 8), 1)
    change, other = draw((8, 8), 2), draw((8, 8), 3)
    other -= (other * change).sum() / (change * change).sum() * change
    # At right angles there is nothing to agree on; alike there is everything.
    torch.testing.assert_close(
        merge("model_stock", [base + change, base + other], base), base, rtol=0, atol=1e-5
    )
    same(merge("model_stock", [base + change, base + change], base), base + change)
    # At 60 degrees t = 2 / 3.
    models = [[1, 0, 5], [0.5, math.sqrt(0.75), 5]]
    same(merge("model_stock", models, [0, 0, 5]), [0.5, math.sqrt(0.75) / 3, 5])


def test_sce() -> None:
    # Energies 10 / 4 and 20 / 4; the third element is of two minds and the second of more energy.
    models = [[1, 0, 3, 0], [2, 0, -4, 0]]
    same(merge("sce", models, [0] * 4), [(1 + 2 * 2) / 3, 0, -4, 0])
    # The variances are 0.25, 0, 12.25, 0: one of the two that vary stays.
    same(merge("sce", models, [0] * 4, select_topk=0.5), [0, 0, -4, 0])


def test_nearswap() -> None:
    same(merge("nearswap", [[1.5, 4, 1]], [1, 2, 1], t=0.5), [1.5, 2.5, 1])


def test_arcee_fusion() -> None:
    # One row, so that all elements have its divergence; the quartiles of |delta| are 1, 2 and 3,
    # and 2 + 1.5 (3 - 1) = 5 is the least that is taken over.
    change = torch.tensor([0.0, 1.0, -2.0, 3.0, 5.0])
    base = torch.tensor([0.5, 0.25, 1.0, -1.0, 0.0])
    same(merge("arcee_fusion", [base + change], base), base + torch.tensor([0, 0, 0, 0, 5.0]))


def test_ram() -> None:
    models = [[1, 3, 0, 5], [0, 1, 0, 1]]
    same(merge("ram", models, [0] * 4), [1, 2, 0, 3])
    # The first shares two and has one alone: 1 + 0.5 min(1.5, 2).
    same(merge("ramplus_tl", models, [0] * 4, r=0.5, alpha=1.5), [1.75, 2, 0, 3])
    same(merge("ramplus_tl", models, [0] * 4, r=0.5, alpha=4.0), [2, 2, 0, 3])


def test_consensus() -> None:
    # 4 + 3 serves both, 4 + 0.5 only the first, of 1 - 1 + 0 both but nothing is left.
    models = [[4, 4, 1], [3, 0.5, -1]]
    options: dict[str, Any] = {"tall_lambda": 0.5, "lambda": 0.5}
    same(merge("consensus", models, [0, 0, 0], **options), [3.5, 0, 0])
    same(merge("consensus", models, [0, 0, 0], k=1, **options), [3.5, 2.25, 0])


def test_iso_c_makes_the_spectrum_flat() -> None:
    base, *models = (draw((12, 7), seed) for seed in range(4))
    change = (merge("iso_c", models, base) - base).double()
    total = sum(model.double() - base.double() for model in models)
    wanted = torch.linalg.svdvals(total).mean()
    torch.testing.assert_close(torch.linalg.svdvals(change), wanted.expand(7), rtol=1e-5, atol=1e-5)
    # U V^T is the orthogonal factor of the polar decomposition: U V^T times a symmetric matrix.
    symmetric = change.T @ total
    torch.testing.assert_close(symmetric, symmetric.T, rtol=1e-4, atol=1e-4)


def test_iso_c_adds_no_direction_that_no_model_has() -> None:
    left, right = draw((12, 2), 1), draw((2, 7), 2)
    change = merge("iso_c", [left @ right], torch.zeros(12, 7))
    assert int(torch.linalg.matrix_rank(change, rtol=1e-4)) == 2


def test_tsv_m() -> None:
    base = draw((12, 6), 1)
    # One model keeps all its directions and need not be made orthogonal.
    model = base + draw((12, 6), 2)
    torch.testing.assert_close(merge("tsv_m", [model], base), model, rtol=1e-4, atol=1e-5)
    # Changes that share no direction and fit are added up.
    changes = torch.zeros(2, 12, 6)
    changes[0, 0, 0], changes[0, 1, 1], changes[1, 5, 3], changes[1, 6, 4] = 3.0, 1.0, 2.0, 0.5
    found = merge("tsv_m", [base + change for change in changes], base)
    torch.testing.assert_close(found, base + changes.sum(dim=0), rtol=1e-4, atol=1e-5)


def test_tsv_m_makes_directions_orthogonal() -> None:
    models = [draw((9, 8), seed) for seed in (1, 2)]
    values = torch.cat([torch.linalg.svdvals(model)[:4] for model in models]).sort(descending=True)
    found = torch.linalg.svdvals(merge("tsv_m", models, torch.zeros(9, 8)))
    torch.testing.assert_close(found, values.values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (7, 1), (1, 7)])
@pytest.mark.parametrize("changed", [0, 1])
def test_tsv_m_takes_nothing_from_a_model_that_is_the_base(shape, changed) -> None:
    base, change = draw(shape, 1), draw(shape, 2)
    models = [base, base]
    models[changed] = base + change
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    kept = max(1, min(shape) // 2)
    wanted = base + (left[:, :kept] * values[:kept]) @ right[:kept]
    torch.testing.assert_close(merge("tsv_m", models, base), wanted, rtol=1e-4, atol=1e-5)


def test_singular_vectors_are_found_where_the_fast_way_fails(monkeypatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    base, *models = (draw((12, 7), seed) for seed in range(3))
    wanted = [merge(name, models, base) for name in ("iso_c", "tsv_m")]
    monkeypatch.setattr(torch.linalg, "svd", fail)
    for name, tensor in zip(("iso_c", "tsv_m"), wanted, strict=True):
        torch.testing.assert_close(merge(name, models, base), tensor, rtol=1e-4, atol=1e-5)


def test_tsv_m_of_two_equal_models() -> None:
    # A size at which dividing and conquering fails on the right vectors, which come twice.
    base = torch.zeros(1500, 512)
    model = draw((1500, 512), 0)
    found = merge("tsv_m", [model, model.clone()], base)
    left, values, right = torch.linalg.svd(model, full_matrices=False)
    wanted = (left[:, :256] * values[:256]) @ right[:256]
    # U' = [U U] / sqrt(2) and V' likewise, so that the two add up to one of them.
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["iso_c", "tsv_m"])
@pytest.mark.parametrize(("count", "shape"), [(2, (12, 7)), (1, (5, 5)), (4, (3, 9)), (3, (1, 4))])
def test_a_matrix_that_lies_down_is_merged_like_one_that_stands(name, count, shape) -> None:
    base, *models = (draw(shape, seed) for seed in range(count + 1))
    lying = merge(name, [model.T for model in models], base.T)
    torch.testing.assert_close(lying.T, merge(name, models, base), rtol=1e-4, atol=1e-5)


def test_a_matrix_is_made_orthonormal_in_place() -> None:
    rows = draw((5, 40), 1)
    given = rows.clone()
    square = _orthonormalise(rows)
    torch.testing.assert_close(square @ rows, given)
    torch.testing.assert_close(rows @ rows.T, torch.eye(5))


@pytest.mark.parametrize("name", ["iso_c", "tsv_m"])
def test_what_is_no_matrix_is_averaged(name: str) -> None:
    options = {"lambda": 2.0}
    same(merge(name, [[1, 2], [3, 2]], [1, 1], **options), [1 + 2, 1 + 2])

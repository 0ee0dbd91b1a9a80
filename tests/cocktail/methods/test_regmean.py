"""RegMean of one layer, whose statistics are given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cocktail.methods.registry import METHODS
from cocktail.methods.regmean import FLOOR
from cocktail.tensors.headers import read_header
from cocktail.tensors.reading import ROWS, StoredMatrix, TensorReader


@pytest.mark.parametrize("width", [6, ROWS + 5])
def test_it_is_least_squares_on_the_layers_inputs(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(6 * width, width, generator=generator) for _ in range(2)]
    layers = [torch.randn(ROWS + 3, width, generator=generator) for _ in range(2)]
    found = METHODS["regmean"].merge(
        [layer.clone() for layer in layers], None, [1.0, 1.0],
        options={"alpha": 1.0}, statistics=[x.T @ x for x in inputs],
    )  # fmt: skip
    # The floor is as if each layer had seen every unit vector, made as long as its root, too.
    floor = FLOOR * sum(float((x.T @ x).trace()) for x in inputs) / 2
    seen = [torch.cat([x.double(), floor**0.5 * torch.eye(width)]) for x in inputs]
    outputs = torch.cat([x @ w.double().T for x, w in zip(seen, layers, strict=True)])
    expected = torch.linalg.lstsq(torch.cat(seen), outputs).solution.T
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    same = METHODS["regmean"].merge(
        [layer.clone() for layer in layers], None, [1.0, 3.0],
        statistics=[inputs[0].T @ inputs[0]] * 2,
    )  # fmt: skip
    torch.testing.assert_close(same, 0.25 * layers[0] + 0.75 * layers[1], rtol=1e-5, atol=1e-6)


def test_inputs_that_are_all_zero_average_the_layer() -> None:
    layers = [torch.full((2, 3), 1.0), torch.full((2, 3), 4.0)]
    zeros = [torch.zeros(3, 3)] * 2
    found = METHODS["regmean"].merge(layers, None, [1.0, 2.0], statistics=zeros)
    torch.testing.assert_close(found, torch.full((2, 3), 3.0))
    one_says_nothing = [torch.zeros(3, 3), torch.eye(3)]
    found = METHODS["regmean"].merge(layers, None, [1.0, 0.0], statistics=one_says_nothing)
    assert torch.equal(found, layers[0])


def test_a_gram_matrix_is_read_some_rows_at_a_time(tmp_path: Path) -> None:
    matrix = torch.arange(35.0).view(7, 5)
    save_file({"matrix": matrix}, tmp_path / "file.safetensors")
    info = read_header(tmp_path / "file.safetensors")[0]["matrix"]
    with TensorReader() as reader:
        parts = [part.clone() for part in StoredMatrix(reader, info).split(3)]
    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat(parts), matrix)

"""Every deterministic method gives mergekit's result; the random ones its mean and density.

Needs an interpreter that has mergekit 0.1.5 installed, named by ``MERGEKIT_PYTHON``.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cocktail.methods.random_words import RandomWords
from cocktail.methods.registry import METHODS

PEER = os.environ.get("MERGEKIT_PYTHON")
TOLERANCE = 1e-6
_PEER_SCRIPT = """
import json, sys
import torch
from mergekit.merge_methods import merge_tensors
from safetensors.torch import load_file, save_file
source, cases, target = sys.argv[1:]
tensors = load_file(source)
torch.manual_seed(0)
results = {}
for key, case in json.load(open(cases)).items():
    for shape in case["shapes"]:
        inputs = [tensors[f"{shape}.{name}"] for name in case["inputs"]]
        results[f"{key}.{shape}"] = merge_tensors(
            inputs, case["method"], parameters=case["parameters"],
            base_index=case["base_index"]).clone().contiguous()
save_file(results, target)
"""
_SHAPES = {"matrix": (96, 130), "vector": (211,), "cube": (6, 10, 7), "single": (1,)}
_BIG = {"big": (512, 600)}


@dataclass(frozen=True)
class Case:
    """One call of a method."""

    method: str
    models: int = 3
    base: bool = True
    weights: tuple[float, ...] = (0.3, 0.5, 0.4)
    options: dict[str, Any] = field(default_factory=dict)
    shapes: tuple[str, ...] = tuple(_SHAPES)

    @property
    def key(self) -> str:
        changed = ",".join(f"{name}={value}" for name, value in self.options.items())
        weights = ",".join(map(str, self.weights[: self.models]))
        return f"{self.method}({changed}) of {self.models} [{weights}] {'on base' * self.base}"

    def for_mergekit(self) -> dict[str, Any]:
        parameters = dict(self.options)
        if METHODS[self.method].weighted:
            parameters["weight"] = self.weights[: self.models]
        names = [f"model{i}" for i in range(self.models)]
        return {
            "method": self.method,
            "inputs": ["base", *names] if self.base else names,
            "base_index": 0 if self.base else None,
            "parameters": parameters,
            "shapes": self.shapes,
        }

    def ours(self, tensors: dict[str, torch.Tensor], shape: str) -> torch.Tensor:
        return METHODS[self.method].merge(
            [tensors[f"{shape}.model{i}"].clone() for i in range(self.models)],
            tensors[f"{shape}.base"].clone() if self.base else None,
            self.weights[: self.models],
            generator=RandomWords(3),
            options=self.options,
        )


NEGATIVE = (0.9, -0.4, 0.7)
THIRDS = (0.4, 0.3, 0.55)
DETERMINISTIC = [
    *(Case("slerp", 1, options={"t": t}) for t in (0.0, 0.3, 1.0)),
    *(Case("nuslerp", 2, base) for base in (True, False)),
    Case("nuslerp", 2, weights=(0.5, -0.5)),
    Case("nuslerp", 2, options={"nuslerp_flatten": False}, shapes=("matrix", "vector", "cube")),
    Case("nuslerp", 2, False, options={"nuslerp_flatten": False, "nuslerp_row_wise": True},
         shapes=("matrix", "vector", "cube")),
    *(Case("multislerp", 3, base) for base in (True, False)),
    Case("multislerp", options={"normalize_weights": False}),
    Case("multislerp", 1),
    *(Case("karcher", n, False) for n in (1, 2, 4)),
    Case("karcher", 3, False, options={"max_iter": 1}),
    Case("task_arithmetic"),
    Case("task_arithmetic", weights=NEGATIVE, options={"normalize": True, "lambda": 0.7}),
    *(Case(name, options={"density": list(THIRDS), **rescale})
      for name in ("ties", "breadcrumbs", "breadcrumbs_ties")
      for rescale in ({}, {"rescale": True})),
    *(Case(name, weights=NEGATIVE, options={"density": list(THIRDS), "normalize": n, "lambda": 1.3})
      for name in ("ties", "breadcrumbs", "breadcrumbs_ties") for n in (True, False)),
    Case("ties", 1, options={"density": [0.2]}),
    Case("ties", options={"density": [0.0, 0.5, 1.0]}),
    Case("breadcrumbs", options={"density": [0.95, 0.2, 0.5], "gamma": [0.1, 0.0, 0.3]}),
    *(Case(name) for name in ("dare_linear", "dare_ties", "della", "della_linear")),
    *(Case("model_stock", n, options={"filter_wise": f})
      for n in (2, 3, 4) for f in (True, False)),
    *(Case("sce", n, options={"select_topk": t}) for n in (1, 3) for t in (0.0, 0.29, 1.0)),
    *(Case("nearswap", 1, options={"t": t}) for t in (0.0, 1e-3, 0.1)),
    Case("arcee_fusion", 1, shapes=("matrix", "vector", "cube", "big")),
    *(Case("ram", n, options={"epsilon": e}) for n in (1, 3) for e in (1e-5, 0.1)),
    *(Case("ramplus_tl", n) for n in (1, 3)),
    Case("ramplus_tl", options={"r": 0.5, "alpha": 3.0, "epsilon": 0.1}),
]  # fmt: skip
RANDOM = [
    *(Case(name, options={"density": list(THIRDS)}, shapes=("big",))
      for name in ("dare_linear", "dare_ties", "della", "della_linear")),
    Case("dare_linear", 1, weights=(1.0,), options={"density": [0.3]}, shapes=("big",)),
    Case("della_linear", 1, weights=(1.0,), options={"density": [0.3]}, shapes=("big",)),
    Case("della_linear", 1, weights=(1.0,),
         options={"density": [0.3], "epsilon": [0.25], "rescale": False}, shapes=("big",)),
]  # fmt: skip

pytestmark = pytest.mark.skipif(PEER is None, reason="MERGEKIT_PYTHON names no interpreter")


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """A base and four models of each shape; a fifth of the elements of each model is the base's."""
    generator = torch.Generator().manual_seed(11)
    found = {}
    for shape, size in (_SHAPES | _BIG).items():
        base = torch.randn(size, generator=generator)
        found[f"{shape}.base"] = base
        for i in range(4):
            change = torch.randn(size, generator=generator) * 0.3
            change *= torch.rand(size, generator=generator) > 0.2
            found[f"{shape}.model{i}"] = base + change
    return found


@pytest.fixture(scope="module")
def theirs(
    tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    """What mergekit makes of every case."""
    return merged_by_mergekit(tensors, DETERMINISTIC + RANDOM, tmp_path_factory.mktemp("mergekit"))


def merged_by_mergekit(
    tensors: dict[str, torch.Tensor], cases: Sequence[Case], folder: Path
) -> dict[str, torch.Tensor]:
    """Results by the case's key and the shape's name, from tensors by the shape's and the model's.

    Args:
        folder: for what passes between the processes.
    """
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "inputs.safetensors")
    calls = {case.key: case.for_mergekit() for case in cases}
    assert len(calls) == len(cases)
    (folder / "cases.json").write_text(json.dumps(calls))
    peer = str(Path(str(PEER)).absolute())  # resolved, it would leave its environment
    run = subprocess.run(
        [peer, "-c", _PEER_SCRIPT, "inputs.safetensors", "cases.json", "out.safetensors"],
        cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    return load_file(folder / "out.safetensors")


def test_every_method_of_mergekit_is_compared() -> None:
    own = {"iso_c", "tsv_m", "consensus", "fisher", "regmean"}
    whole_models = {"linear"}  # the engine's own sum, compared in test_mergekit_models.py
    assert {case.method for case in DETERMINISTIC} == set(METHODS) - own - whole_models


@pytest.mark.parametrize("case", DETERMINISTIC, ids=lambda case: case.key)
def test_the_result_is_mergekits(case: Case, tensors: dict, theirs: dict) -> None:
    for shape in case.shapes:
        expected = theirs[f"{case.key}.{shape}"]
        found = case.ours(tensors, shape)
        assert found.shape == expected.shape
        error = float((found - expected).abs().max())
        assert error <= TOLERANCE * float(expected.abs().max()), shape


@pytest.mark.parametrize("case", RANDOM, ids=lambda case: case.key)
def test_mean_and_density_are_mergekits(case: Case, tensors: dict, theirs: dict) -> None:
    base = tensors["big.base"]
    deltas = [tensors[f"big.model{i}"] - base for i in range(case.models)]
    changes = [case.ours(tensors, "big") - base, theirs[f"{case.key}.big"] - base]
    count = base.numel()
    kept = [float((change != 0).float().mean()) for change in changes]
    # Five standard deviations of a difference of two shares.
    assert abs(kept[0] - kept[1]) < 5 * (0.5 / count) ** 0.5
    weights = zip(case.weights, deltas, strict=False)
    whole = sum(weight * delta for weight, delta in weights)
    along = [float((change * whole).mean()) for change in changes]
    spread = max(float((change * whole).std()) for change in changes)
    assert abs(along[0] - along[1]) < 5 * spread * (2 / count) ** 0.5
    if case.models == 1:
        # The share that is kept grows with the magnitude as theirs does.
        order = deltas[0].abs().flatten().argsort()
        parts = [(change != 0).flatten()[order].float() for change in changes]
        for mine, other in zip(*(part.chunk(10) for part in parts), strict=True):
            assert abs(float(mine.mean() - other.mean())) < 5 * (0.5 / len(mine)) ** 0.5

"""Whole models merged from the command line equal mergekit's merge of their tensors.

mergekit's own command line takes no encoder: its merge function gets their tensors one by one.
Needs an interpreter that has mergekit 0.1.5 installed, named by ``MERGEKIT_PYTHON``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, PreTrainedModel, RobertaConfig, RobertaModel

from cocktail.cli.main import main
from tests.cocktail.methods.test_mergekit import PEER, TOLERANCE, Case, merged_by_mergekit

SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "vocab_size": 50, "max_position_embeddings": 40,
}  # fmt: skip
KINDS = {"bert": (BertModel, BertConfig), "roberta": (RobertaModel, RobertaConfig)}
SHARES = (0.3, 0.7)
HALF = {"density": [0.5, 0.5]}
CASES = [
    Case("linear", 2, False, SHARES),
    Case("slerp", 1, options={"t": 0.3}),
    Case("nuslerp", 2, False, SHARES),
    Case("multislerp", 2, False, SHARES),
    Case("karcher", 2, False),
    Case("task_arithmetic", 2, weights=SHARES),
    *(Case(name, 2, weights=SHARES, options=HALF) for name in ("ties", "breadcrumbs")),
    Case("breadcrumbs_ties", 2, weights=SHARES, options=HALF),
    Case("model_stock", 2),
    Case("sce", 2, options={"select_topk": 0.5}),
    Case("nearswap", 1, options={"t": 0.01}),
    Case("arcee_fusion", 1),
    Case("ram", 2, options={"epsilon": 0.01}),
    Case("ramplus_tl", 2, options={"epsilon": 0.01}),
]

pytestmark = pytest.mark.skipif(PEER is None, reason="MERGEKIT_PYTHON names no interpreter")


@pytest.fixture(scope="module", params=list(KINDS))
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and two models."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    model_class, config_class = KINDS[request.param]
    for seed, name in enumerate(("base", "model0", "model1")):
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class(config_class(**SIZES))
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def theirs(models: Path) -> dict[str, torch.Tensor]:
    """What mergekit makes of every tensor, by the case's key and the tensor's name."""
    tensors = {
        f"{name}.{path.name}": tensor
        for path in models.iterdir()
        for name, tensor in load_file(path / "model.safetensors").items()
    }
    names = tuple(name.removesuffix(".base") for name in tensors if name.endswith(".base"))
    cases = [replace(case, shapes=names) for case in CASES]
    return merged_by_mergekit(tensors, cases, models.parent / f"{models.name}-theirs")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)
def test_a_merged_encoder_is_mergekits(case: Case, models: Path, theirs: dict, tmp_path) -> None:
    arguments = [str(models / f"model{i}") for i in range(case.models)]
    arguments += ["--base", str(models / "base")] if case.base else []
    if "weight" in case.for_mergekit()["parameters"]:
        arguments += ["--weights", *map(str, case.weights[: case.models])]
    for name, value in case.options.items():
        arguments += ["--parameter", f"{name}={value[0] if isinstance(value, list) else value}"]
    made = CliRunner().invoke(
        main, ["mix", *arguments, "--method", case.method, "--output", str(tmp_path / "out")]
    )
    assert made.exit_code == 0, made.output
    ours = load_file(tmp_path / "out" / "model.safetensors")
    expected = {name: theirs[f"{case.key}.{name}"] for name in ours}
    assert len(theirs) == len(ours) * len(CASES)
    for name, tensor in expected.items():
        error = float((ours[name] - tensor).abs().max())
        assert error <= TOLERANCE * float(tensor.abs().max()), name

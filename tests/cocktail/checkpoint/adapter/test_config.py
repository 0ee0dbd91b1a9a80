"""Adapters that are refused, by name and in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification

from cocktail.checkpoint.resolve import resolve
from cocktail.errors import CheckpointError
from tests.cocktail.checkpoint.adapter.conftest import Train, gpt2, reranker


def edit(folder: str, **changes: Any) -> None:
    path = Path(folder, "adapter_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "adapter of type 'IA3' - only LORA"),
        ({"peft_type": "PREFIX_TUNING"}, "'PREFIX_TUNING'"),
        ({"peft_type": "LOHA"}, "'LOHA'"),
        ({"use_qalora": True}, "uses use_qalora"),
        ({"layer_replication": [[0, 1]]}, "uses layer_replication"),
        ({"kasa_config": {"a": 1}, "use_new": 1}, "uses kasa_config, use_new"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa_niter_4"),
        ({"base_model_name_or_path": None}, r"names no base_model_name_or_path .* BASE\+"),
        ({"base_model_name_or_path": "/nowhere"}, "base of .* cannot be opened: /nowhere"),
        ({"base_model_name_or_path": "no-org/x"}, "no-org/x@main: no such folder here"),
        ({"r": 8}, r"pooler.dense: A \[4, 32\] and B \[32, 4\] for rank 8"),
        ({"r": 0}, "a rank is 0"),
        ({"r": "many"}, "cannot be understood"),
        ({"r": float("inf")}, "cannot be understood"),
        ({"lora_alpha": float("inf")}, "an alpha is not finite"),
        ({"rank_pattern": {"(": 1}}, "cannot be understood"),
        ({"use_dora": True}, "pooler.dense: holds A, B where A, B, magnitude_vector belong"),
    ],
)
def test_refused_by_its_config(train: Train, changes: dict[str, Any], message: str) -> None:
    trained = train("adapter", revision="main")
    edit(trained.adapter, **changes)
    with pytest.raises(CheckpointError, match=message) as error:
        resolve(trained.adapter)
    assert "\n" not in str(error.value)


QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


def pop(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return tensors.pop(f"{QUERY}.{name}")


def move(tensors: dict[str, torch.Tensor], name: str) -> None:
    for matrix in ("lora_A", "lora_B"):
        tensors[f"base_model.model.{name}.{matrix}.weight"] = pop(tensors, f"{matrix}.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: pop(t, "lora_B.weight"), "query: holds A where A, B belong"),
        (lambda t: move(t, "bert.extra"), r"changes bert\.extra\.weight, which .* lacks"),
        (lambda t: t.update({f"{QUERY}.lora_E": torch.ones(4)}), r"holds bert\..*lora_E"),
        (lambda t: t.update({"base_model.model.new.bias": torch.ones(4)}), r"changes new\.bias"),
        (
            lambda t: t.update({f"{QUERY}.lora_A.weight": torch.ones(4, 31)}),
            r"does not fit .* \(bert.*query: A \[4, 31\] and B \[32, 4\] for \[32, 32\]\)",
        ),
        (
            lambda t: t.update({f"{QUERY}.base_layer.bias": torch.ones(31)}),
            r"query\.bias \[31\] for \[32\]",
        ),
        (lambda t: t.clear(), "holds no tensor"),
    ],
)
def test_refused_by_its_tensors(
    train: Train, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    trained = train("adapter", target_modules=["query"])
    file = Path(trained.adapter, "adapter_model.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=message) as error:
        resolve(trained.adapter)
    assert "\n" not in str(error.value)


def test_refused_by_its_base(train: Train, tmp_path: Path) -> None:
    trained = train("adapter")
    with pytest.raises(CheckpointError, match="is an adapter itself"):
        resolve(f"{trained.adapter}+{trained.adapter}")
    with pytest.raises(CheckpointError, match=r"a PEFT adapter must follow the \+"):
        resolve(f"{trained.base}+{trained.base}")
    gpt2().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(CheckpointError, match=r"changes bert\..*, which .*gpt2 lacks"):
        resolve(f"{tmp_path / 'gpt2'}+{trained.adapter}")
    path = Path(trained.base, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"b": 4}}))
    with pytest.raises(CheckpointError, match="is quantised"):
        resolve(trained.adapter)
    Path(trained.adapter, "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has none of adapter_model\.safetensors"):
        resolve(trained.adapter)


def test_a_real_adapter_of_another_type_is_refused(tmp_path: Path) -> None:
    reranker().save_pretrained(tmp_path / "base")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    config = IA3Config(target_modules=["key"], feedforward_modules=[])
    get_peft_model(model, config).save_pretrained(tmp_path / "ia3")
    with pytest.raises(CheckpointError, match="adapter of type 'IA3'"):
        resolve(tmp_path / "ia3")


def test_its_own_output_embedding_under_a_tied_base_is_refused(train: Train) -> None:
    trained = train("adapter", gpt2, target_modules=["c_attn"])
    file = Path(trained.adapter, "adapter_model.safetensors")
    head = {"base_model.model.lm_head.weight": torch.ones(24, 32)}
    save_file(load_file(file) | head, file)
    edit(trained.adapter, modules_to_save=["lm_head"])
    with pytest.raises(CheckpointError, match=r"changes only lm_head\.weight, but .* ties"):
        resolve(trained.adapter)


@pytest.mark.parametrize("tying", [True, False])
def test_a_change_of_the_output_where_the_base_ties_it(train: Train, tying: bool) -> None:
    trained = train("adapter", gpt2, target_modules=["c_attn"])
    file = Path(trained.adapter, "adapter_model.safetensors")
    tensors = {
        "base_model.model.lm_head.lora_A.weight": torch.ones(4, 32),
        "base_model.model.lm_head.lora_B.weight": torch.ones(24, 4),
        "base_model.model.lm_head.base_layer.weight": torch.ones(24, 32),
    }
    save_file(load_file(file) | tensors, file)
    edit(trained.adapter, ensure_weight_tying=tying)
    message = r"changes lm_head\.weight, which \S+ ties to its input embedding"
    with pytest.raises(CheckpointError, match=message):
        resolve(trained.adapter)

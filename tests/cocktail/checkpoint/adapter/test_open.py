"""Adapters where whole models are taken: commands, search, the trainer's output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import BertConfig, BertModel

from cocktail import search_weights
from cocktail.checkpoint.model import MAIN
from cocktail.checkpoint.resolve import resolve
from cocktail.cli.main import main
from reranker_ft.cli.main import main as train_main
from reranker_ft.model.load import load_cross_encoder
from tests.cocktail.checkpoint.adapter.conftest import Train, as_reranker, encoder, mix
from tests.cocktail.tiny import SIZES, ranked, tokenizer, write_jsonl


def test_inspect_and_diff(train: Train) -> None:
    trained = train("adapter", encoder, load_base=as_reranker, task_type="SEQ_CLS")
    run = CliRunner().invoke(main, ["inspect", trained.adapter, "--json"])
    assert run.exit_code == 0, run.output
    shown = json.loads(run.output)
    assert shown["kind"] == "reranker"
    assert shown["folder"] == f"{trained.base}, {trained.adapter}"
    assert shown["files"] == ["adapter_model.safetensors", "model.safetensors"]
    merged = resolve(trained.merged).parts[MAIN].tensors
    assert shown["parameters"] == sum(info.numel for info in merged.values())
    for pair in ([trained.base, trained.adapter], [trained.base, trained.merged]):
        run = CliRunner().invoke(main, ["diff", *pair, "--json"])
        assert run.exit_code == 0, run.output
        found = json.loads(run.output)
        moved = {t["name"]: t["distance"] for t in found["tensors"] if t["distance"] > 0}
        assert any(name.endswith("query.weight") for name in moved)
        assert not any("embeddings" in name for name in moved)
    run = CliRunner().invoke(main, ["diff", trained.adapter, trained.merged, "--json"])
    assert json.loads(run.output)["distance"] < 1e-6


def test_how_the_base_was_held_in_training_does_not_count(train: Train, tmp_path: Path) -> None:
    trained = train("adapter")
    config = json.loads((Path(trained.base) / "config.json").read_text())
    held = {**config, "quantization_config": {"quant_method": "bitsandbytes"}}  # QLoRA
    (Path(trained.adapter) / "config.json").write_text(json.dumps(held))
    mix([trained.adapter, trained.base], [0.5, 0.5], mixed := tmp_path / "mixed")
    assert "quantization_config" not in json.loads((mixed / "config.json").read_text())


def test_search_over_a_base_and_its_adapter(train: Train) -> None:
    trained = train("adapter")
    rows = ranked(8, negatives=3)
    options: dict[str, Any] = {"progress": False, "device": "cpu"}
    found = search_weights([trained.base, trained.adapter], "reranker", rows, **options)
    merged = search_weights([trained.base, trained.merged], "reranker", rows, **options)
    assert len(found.points) == len(merged.points)
    for one, other in zip(found.points, merged.points, strict=True):
        assert one.name == other.name
        assert one.weights == pytest.approx(other.weights, abs=1e-2)
        assert one.loss.mean.mean == pytest.approx(other.loss.mean.mean, abs=1e-2)


def test_a_lora_reranker_of_the_trainer(tmp_path: Path) -> None:
    """Trained from an encoder without head, mixed with a second one, and loaded for scoring."""
    torch.manual_seed(1)
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path / "base")
    tokenizer("bert").save_pretrained(tmp_path / "base")
    data = write_jsonl(tmp_path / "train.jsonl", ranked(8, negatives=3))
    for seed in (1, 2):
        arguments: list[Any] = [
            *("train", "--model_name_or_path", tmp_path / "base", "--train_data", data),
            *("--output_dir", tmp_path / f"lora{seed}", "--use_lora", "--lora_rank", 2),
            *("--num_train_epochs", 1, "--seed", seed, "--train_group_size", 2),
        ]
        run = CliRunner().invoke(train_main, [str(argument) for argument in arguments])
        assert run.exit_code == 0, run.output
    adapters = [str(tmp_path / f"lora{seed}") for seed in (1, 2)]
    found = mix(adapters, [0.5, 0.5], tmp_path / "x")
    merged = [load_cross_encoder(adapter)[0].state_dict() for adapter in adapters]
    for name, tensor in found.items():
        expected = 0.5 * merged[0][name] + 0.5 * merged[1][name]
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-6)
    assert load_cross_encoder(tmp_path / "x")[0].config.num_labels == 1

"""Stacks of a transformer, pooling and dense layers against sentence-transformers itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

import cocktail
from cocktail.checkpoint.inspect import inspect
from cocktail.checkpoint.resolve import resolve
from reranker_ft import Reranker
from reranker_ft.errors import ModelError
from reranker_ft.run import main
from tests.reranker_ft.conftest import make_tokenizer, refusals, small, toy_rows

PAIRS = [("who is the bird", "the red bird"), ("river", "a river in the north of the garden")]


def save_encoder(folder: Path) -> None:
    """Write a small transformer without a head, and its tokenizer."""
    tokenizer = make_tokenizer("bert")
    torch.manual_seed(0)
    body = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.3,
        )
    )
    body.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_stack(folder: Path, pooling: str) -> Any:
    """Write a cross-encoder of modules, and return it as sentence-transformers has it."""
    pytest.importorskip("sentence_transformers.cross_encoder.modules")
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    save_encoder(folder / "body")
    modules = [
        Transformer(str(folder / "body")),
        Pooling(32, pooling_mode=pooling),
        Dense(32, 16),
        Dense(16, 1, activation_function=None, module_output_name="scores"),
    ]
    theirs = CrossEncoder(modules=modules, device="cpu", activation_fn=torch.nn.Identity())
    theirs.save_pretrained(str(folder / "stack"))
    return theirs


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "lasttoken"])
def test_stacks_score_as_sentence_transformers(tmp_path: Path, pooling: str) -> None:
    theirs = make_stack(tmp_path, pooling)
    expected = theirs.predict(PAIRS).tolist()
    ours = Reranker(tmp_path / "stack", devices="cpu").compute_score(PAIRS)
    assert ours == pytest.approx(expected, abs=1e-5)

    assert inspect(resolve(str(tmp_path / "stack")))["kind"] == "reranker"
    both = [str(tmp_path / "stack")] * 2
    cocktail.mix_models(both, "reranker", [0.5, 0.5], output_path=tmp_path / "mixed")
    assert "pipeline_tag: text-ranking" in (tmp_path / "mixed" / "README.md").read_text()
    mixed = Reranker(tmp_path / "mixed", devices="cpu").compute_score(PAIRS)
    assert mixed == pytest.approx(expected, abs=1e-5)


def test_a_stack_is_trained_in_its_own_layout(
    tmp_path: Path, write_jsonl: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    make_stack(tmp_path, "mean")
    stack, out, data = tmp_path / "stack", tmp_path / "out", write_jsonl(toy_rows(8))
    flags = ("--max_steps", "2", "--learning_rate", "1e-2", "--use_cpu", "True")
    assert main(small(stack, data, out, *flags)) == 0
    from sentence_transformers import CrossEncoder

    before = Reranker(stack, devices="cpu").compute_score(PAIRS)
    after = Reranker(out, devices="cpu").compute_score(PAIRS)
    assert after != pytest.approx(before, abs=1e-3)
    theirs = CrossEncoder(str(out), device="cpu", activation_fn=torch.nn.Identity())
    assert after == pytest.approx(theirs.predict(PAIRS).tolist(), abs=1e-5)
    for file in ("modules.json", "1_Pooling/config.json", "3_Dense/config.json"):
        assert json.loads((out / file).read_text()) == json.loads((stack / file).read_text())

    assert main(small(stack, data, tmp_path / "lora", *flags, "--use_lora", "True")) == 2
    assert "is a stack of modules" in refusals(capsys)[0]


def test_a_scored_stack_is_saved_as_it_was(tmp_path: Path) -> None:
    make_stack(tmp_path, "cls")
    reranker = Reranker(tmp_path / "stack", devices="cpu")
    reranker.save(tmp_path / "saved")
    again = Reranker(tmp_path / "saved", devices="cpu").compute_score(PAIRS)
    assert again == pytest.approx(reranker.compute_score(PAIRS), abs=1e-6)


@pytest.mark.parametrize("said", [{}, {"model_type": "SentenceTransformer"}])
def test_an_embedding_models_folder_gets_a_fresh_head(
    tmp_path: Path, write_jsonl: Any, said: dict[str, str]
) -> None:
    folder = tmp_path / "embedder"
    save_encoder(folder)
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(
            [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        )
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(said))
    with pytest.raises(ModelError, match="random weights"):
        Reranker(folder, devices="cpu")
    flags = ("--max_steps", "1", "--use_cpu", "True")
    assert main(small(folder, write_jsonl(toy_rows(8)), tmp_path / "out", *flags)) == 0
    assert len(Reranker(tmp_path / "out", devices="cpu").compute_score(PAIRS)) == 2

"""Stacks of a transformer, pooling and dense layers against sentence-transformers itself."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

import cocktail
from cocktail.checkpoint.inspect import inspect
from cocktail.checkpoint.resolve import resolve
from reranker_ft import Reranker
from tests.reranker_ft.conftest import make_tokenizer

PAIRS = [("who is the bird", "the red bird"), ("river", "a river in the north of the garden")]


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "lasttoken"])
def test_stacks_score_as_sentence_transformers(tmp_path: Path, pooling: str) -> None:
    pytest.importorskip("sentence_transformers.cross_encoder.modules")
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

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
    body.save_pretrained(tmp_path / "body")
    tokenizer.save_pretrained(tmp_path / "body")
    modules = [
        Transformer(str(tmp_path / "body")),
        Pooling(32, pooling_mode=pooling),
        Dense(32, 16),
        Dense(16, 1, activation_function=None, module_output_name="scores"),
    ]
    theirs = CrossEncoder(modules=modules, device="cpu", activation_fn=torch.nn.Identity())
    theirs.save_pretrained(str(tmp_path / "stack"))
    expected = theirs.predict(PAIRS).tolist()
    ours = Reranker(tmp_path / "stack", devices="cpu").compute_score(PAIRS)
    assert ours == pytest.approx(expected, abs=1e-5)

    assert inspect(resolve(str(tmp_path / "stack")))["kind"] == "reranker"
    both = [str(tmp_path / "stack")] * 2
    cocktail.mix_models(both, "reranker", [0.5, 0.5], output_path=tmp_path / "mixed")
    assert "pipeline_tag: text-ranking" in (tmp_path / "mixed" / "README.md").read_text()
    mixed = Reranker(tmp_path / "mixed", devices="cpu").compute_score(PAIRS)
    assert mixed == pytest.approx(expected, abs=1e-5)

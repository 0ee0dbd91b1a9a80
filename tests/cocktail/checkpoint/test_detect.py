"""The kind of a checkpoint, from config, modules and name."""

import json
from pathlib import Path

import pytest

import cocktail
from cocktail.checkpoint.detect import kind_of, scoring
from cocktail.checkpoint.inspect import inspect
from cocktail.checkpoint.resolve import resolve
from cocktail.errors import CocktailError
from tests.language_models import make_language_model

LOGIT_SCORE = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
POOLING = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"


def write_modules(folder: Path, kind: str, config: dict[str, object]) -> None:
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Module", "type": kind},
    ]
    (folder / "1_Module").mkdir()
    (folder / "1_Module" / "config.json").write_text(json.dumps(config))
    (folder / "modules.json").write_text(json.dumps(modules))


def test_a_language_model_is_a_decoder_until_something_says_more(tmp_path: Path) -> None:
    make_language_model(tmp_path / "lm", "llama")
    checkpoint = resolve(str(tmp_path / "lm"))
    plain, asked = kind_of(checkpoint), kind_of(checkpoint, "reranker")
    assert plain is not None and plain.name == "decoder"
    assert asked is not None and asked.name == "reranker"
    assert asked.auto_class == "AutoModelForCausalLM"
    assert scoring(checkpoint) is None


def test_logit_score_makes_a_reranker_and_pooling_an_encoder(tmp_path: Path) -> None:
    make_language_model(tmp_path / "stack", "qwen3")
    write_modules(tmp_path / "stack", LOGIT_SCORE, {"true_token_id": 9, "false_token_id": 7})
    found = inspect(resolve(str(tmp_path / "stack")))
    assert found["kind"] == "reranker"
    assert found["scoring"] == {
        "by": "modules",
        "yes_token_id": 9,
        "no_token_id": 7,
        "prompt": None,
    }
    make_language_model(tmp_path / "encoder", "qwen3")
    write_modules(tmp_path / "encoder", POOLING, {"pooling_mode": "lasttoken"})
    assert inspect(resolve(str(tmp_path / "encoder")))["kind"] == "encoder"


def test_a_published_name_makes_a_reranker(tmp_path: Path) -> None:
    make_language_model(tmp_path / "Qwen3-Reranker-0.6B", "qwen3")
    found = inspect(resolve(str(tmp_path / "Qwen3-Reranker-0.6B")))
    assert found["kind"] == "reranker" and found["scoring"]["prompt"] == "qwen3-reranker"


def test_the_reranker_goes_before_a_plain_language_model(tmp_path: Path) -> None:
    make_language_model(tmp_path / "lm", "qwen3")
    make_language_model(tmp_path / "Qwen3-Reranker-0.6B", "qwen3", seed=1)
    models = [str(tmp_path / "lm"), str(tmp_path / "Qwen3-Reranker-0.6B")]
    with pytest.raises(CocktailError, match=r"name .*Qwen3-Reranker-0.6B first"):
        cocktail.mix_models(models, "reranker", [0.5, 0.5], output_path=tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()

"""Rerankers in other forms: the same scores, what is refused, and what stays when it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file

from cocktail.checkpoint.resolve import resolve
from cocktail.cli.main import main
from cocktail.errors import CheckpointError, OutputError
from cocktail.write.convert import SEQUENCE_CLASSIFICATION, convert
from tests.language_models import PAIRS, make_language_model, make_tokenizer
from tests.reranker_ft.conftest import make_tokenizer as make_encoder_tokenizer

RECORD = {"prompt": None, "yes_token_id": 5, "no_token_id": None, "layer": None}


def test_capped_logits_are_refused(tmp_path: Path) -> None:
    make_language_model(tmp_path / "lm", "llama", final_logit_softcapping=30.0)
    with pytest.raises(CheckpointError, match="final_logit_softcapping is 30"):
        convert(
            resolve(str(tmp_path / "lm")), tmp_path / "out", SEQUENCE_CLASSIFICATION, record=RECORD
        )
    assert [path.name for path in tmp_path.iterdir()] == ["lm"]


def test_what_stands_at_the_output_stays(tmp_path: Path) -> None:
    make_language_model(tmp_path / "lm", "llama")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError):
        convert(
            resolve(str(tmp_path / "lm")), tmp_path / "out", SEQUENCE_CLASSIFICATION, record=RECORD
        )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_plain_language_model_is_refused_in_one_line(tmp_path: Path) -> None:
    make_language_model(tmp_path / "lm", "llama")
    command = ["convert", str(tmp_path / "lm"), "--to", "sequence-classification"]
    result = CliRunner().invoke(main, [*command, "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "nothing with it says how it reranks" in result.output
    assert not (tmp_path / "out").exists()


SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "initializer_range": 0.2, "num_labels": 1, "pad_token_id": 0,
}  # fmt: skip
CLASSIFIERS = ["Bert", "Roberta", "XLMRoberta", "Electra", "DistilBert", "Llama", "Qwen3", "Gemma"]


def make_classifier(folder: Path, family: str, **options: Any) -> Path:
    decodes = family in ("Llama", "Qwen3", "Gemma")
    tokenizer = make_tokenizer() if decodes else make_encoder_tokenizer("bert")
    sizes = dict(SIZES)
    if family == "DistilBert":
        sizes |= {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    sizes |= {"head_dim": 8, "num_key_value_heads": 2} if decodes else {}
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        **{**sizes, "vocab_size": len(tokenizer), **options}
    )
    model = getattr(transformers, f"{family}ForSequenceClassification")(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def converted(model: Path, form: str, output: Path) -> dict[str, Any]:
    command = ["convert", str(model), "--to", form, "-o", str(output), "--json"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_a_classifier_becomes_a_stack_and_back(tmp_path: Path, family: str) -> None:
    first = make_classifier(tmp_path / "first", family)
    found = converted(first, "module-stack", tmp_path / "stack")
    assert found["largest_difference"] < 1e-5
    assert len({round(score, 4) for score in found["before"]}) == len(found["before"])
    again = converted(tmp_path / "stack", "sequence-classification", tmp_path / "again")
    assert again["after"] == pytest.approx(found["before"], abs=1e-5)
    one, other = (load_file(path / "model.safetensors") for path in (first, tmp_path / "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_stack_scores_in_sentence_transformers_as_the_classifier(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers.cross_encoder.modules")
    from sentence_transformers import CrossEncoder

    for family in ("XLMRoberta", "Qwen3"):
        first = make_classifier(tmp_path / family, family)
        converted(first, "module-stack", tmp_path / f"{family}-stack")
        raw = {"device": "cpu", "activation_fn": torch.nn.Identity()}
        expected = CrossEncoder(str(first), **raw).predict(PAIRS)
        found = CrossEncoder(str(tmp_path / f"{family}-stack"), **raw).predict(PAIRS)
        assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_language_model_becomes_a_stack_and_that_a_classifier(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers.cross_encoder.modules")
    from sentence_transformers import CrossEncoder

    folder = tmp_path / "Qwen3-Reranker-0.6B"
    make_language_model(folder, "qwen3")
    found = converted(folder, "module-stack", tmp_path / "stack")
    assert found["largest_difference"] < 1e-5
    theirs = CrossEncoder(str(tmp_path / "stack"), device="cpu").predict(
        [("what is a panda?", "The giant panda is a bear that lives in China.")]
    )
    assert theirs.tolist() == pytest.approx(found["before"][:1], abs=1e-5)
    head = converted(tmp_path / "stack", "sequence-classification", tmp_path / "classifier")
    assert head["after"] == pytest.approx(found["before"], abs=1e-5)
    assert not (tmp_path / "classifier" / "modules.json").exists()


def test_what_would_score_otherwise_is_refused(tmp_path: Path) -> None:
    several = make_classifier(tmp_path / "several", "Bert", num_labels=3)
    one = make_classifier(tmp_path / "one", "Bert")
    converted(one, "module-stack", tmp_path / "stack")
    pooling = tmp_path / "stack" / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace("cls", "mean"))
    refused = [
        (several, "module-stack", "3"),
        (one, "sequence-classification", "is a sequence-classification by now"),
        (tmp_path / "stack", "module-stack", "is a module-stack by now"),
        (tmp_path / "stack", "sequence-classification", "pools by mean"),
    ]
    for model, form, reason in refused:
        command = ["convert", str(model), "--to", form, "-o", str(tmp_path / "out")]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 1
        assert reason in result.output
        assert len(result.output.strip().splitlines()) == 1
        assert not (tmp_path / "out").exists()

"""Going on from a checkpoint: from a whole one, and with the model that it was saved of."""

import json
import shutil

import pytest
from transformers import BertConfig, BertForSequenceClassification

from reranker_ft.errors import ArgumentError
from reranker_ft.run import main
from reranker_ft.train.resume import checkpoint_to_resume
from tests.reranker_ft.conftest import make_tokenizer, refusals, small, toy_rows

SAVING = ["--save_strategy", "steps", "--save_steps", 1, "--max_steps", 3]
AGAIN = ["--resume_from_checkpoint", "True", "--max_steps", 4]


@pytest.fixture
def data(write_jsonl):
    return write_jsonl(toy_rows(8))


@pytest.fixture
def stopped(model_folders, data, tmp_path):
    """An output folder with checkpoints 1 to 3."""
    output = tmp_path / "out"
    assert main(small(model_folders("bert"), data, output, *SAVING)) == 0
    return output


def without_state(checkpoint):
    (checkpoint / "trainer_state.json").unlink()


def half_a_state(checkpoint):
    state = checkpoint / "trainer_state.json"
    state.write_text(state.read_text()[:50])


def half_the_weights(checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def without_weights(checkpoint):
    (checkpoint / "model.safetensors").unlink()


@pytest.mark.parametrize("harm", [without_state, half_a_state, half_the_weights, without_weights])
def test_the_last_whole_checkpoint_is_taken(harm, model_folders, data, stopped, caplog, capsys):
    harm(stopped / "checkpoint-3")
    assert main(small(model_folders("bert"), data, stopped, *SAVING, *AGAIN)) == 0
    assert caplog.text.count("Left out checkpoint-3 (") == 1
    assert "going on from checkpoint-2." in caplog.text
    harm(stopped / "checkpoint-4")
    named = [*AGAIN, "--resume_from_checkpoint", stopped / "checkpoint-4"]
    assert main(small(model_folders("bert"), data, stopped, *named)) == 2
    (line,) = refusals(capsys)
    assert "checkpoint-4 is not a checkpoint (it" in line


def test_without_a_whole_checkpoint_all_are_named(tmp_path):
    for number in (9, 10):
        (tmp_path / f"checkpoint-{number}").mkdir()
    with pytest.raises(ArgumentError, match=r"whole checkpoint: checkpoint-10 \(it has no trai"):
        checkpoint_to_resume("True", tmp_path)


def test_a_checkpoint_that_torch_cannot_read_is_one_line(model_folders, data, stopped, capsys):
    optimizer = stopped / "checkpoint-3" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:200])
    assert main(small(model_folders("bert"), data, stopped, *AGAIN)) == 2
    (line,) = refusals(capsys)
    assert "cannot go on from" in line


def deeper(folder):
    tokenizer = make_tokenizer("bert")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, num_labels=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "more", "found"),
    [
        ("roberta", [], "its model_type is bert and the model's is roberta"),
        ("deeper", [], "its num_hidden_layers is 2 and the model's is 3"),
        ("bert", ["--use_lora"], "it holds a whole model and adapters"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    model_folders, data, stopped, tmp_path, capsys, kind, more, found
):
    model = deeper(tmp_path / "deeper") if kind == "deeper" else model_folders(kind)
    assert main(small(model, data, stopped, *AGAIN, *more)) == 2
    (line,) = refusals(capsys)
    assert f"checkpoint-3 does not fit the model: {found}" in line


def test_a_checkpoint_without_a_config_is_known_by_its_tensors(
    model_folders, data, stopped, tmp_path, capsys
):
    (stopped / "checkpoint-3" / "config.json").unlink()
    for model in (model_folders("roberta"), deeper(tmp_path / "deeper")):
        assert main(small(model, data, stopped, *AGAIN)) == 2
        assert "does not fit the model: " in capsys.readouterr().err


def test_adapters_of_another_rank_are_refused(model_folders, data, tmp_path, capsys):
    lora = ["--use_lora", "--lora_rank", 2]
    arguments = small(model_folders("bert"), data, tmp_path / "out", *SAVING, *lora)
    assert main(arguments) == 0
    shutil.rmtree(tmp_path / "out" / "checkpoint-3")
    assert main([*arguments, *map(str, AGAIN)]) == 0
    assert main([*arguments, *map(str, AGAIN), "--lora_rank", "3"]) == 2
    assert "is (2, 32) and the model's is (3, 32)" in capsys.readouterr().err
    config = tmp_path / "out" / "checkpoint-4" / "adapter_config.json"
    assert json.loads(config.read_text())["r"] == 2

"""The model that training starts from."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from cocktail import mix_models
from reranker_ft.errors import ModelError
from reranker_ft.model.load import load_cross_encoder
from reranker_ft.run import main
from reranker_ft.train.start import RAW_SCORES
from tests.reranker_ft.conftest import make_model, make_tokenizer, toy_rows


def small(model, data, output, *more):
    return [
        *("--model_name_or_path", str(model), "--train_data", str(data), "--output_dir"),
        *(str(output), "--train_group_size", "4", "--max_len", "48", "--num_train_epochs", "1"),
        *("--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "True"),
        *map(str, more),
    ]


@pytest.fixture
def data(write_jsonl):
    return write_jsonl(toy_rows(8))


def test_a_fresh_head_is_announced_and_a_trained_one_kept(tmp_path, model_folders, data, caplog):
    encoder = tmp_path / "encoder"
    make_model("roberta").roberta.save_pretrained(encoder)
    make_tokenizer("roberta").save_pretrained(encoder)
    assert isinstance(AutoModel.from_pretrained(encoder), torch.nn.Module)
    assert main(small(encoder, data, tmp_path / "fresh")) == 0
    assert caplog.text.count("has no reranking head: classifier.dense.bias") == 1
    caplog.clear()
    assert main(small(model_folders("roberta"), data, tmp_path / "kept", "--learning_rate", 0)) == 0
    assert "no reranking head" not in caplog.text
    before = load_file(model_folders("roberta") / "model.safetensors")
    for name, tensor in load_file(tmp_path / "kept" / "model.safetensors").items():
        assert torch.equal(tensor, before[name])


def test_a_classifier_and_the_model_itself_are_refused(model_folders, data, tmp_path, capsys):
    classifier = tmp_path / "classifier"
    make_model("bert", num_labels=3).save_pretrained(classifier)
    make_tokenizer("bert").save_pretrained(classifier)
    assert main(small(classifier, data, tmp_path / "out")) == 1
    assert "is a classifier of 3 labels" in capsys.readouterr().err
    model = model_folders("bert")
    assert main(small(model, data, model, "--overwrite_output_dir")) == 2
    assert "is the model itself" in capsys.readouterr().err


def test_lora_keeps_what_started_from_random_weights(data, tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = make_tokenizer("bert")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    model = tmp_path / "encoder"
    BertForMaskedLM(config).save_pretrained(model)  # without a pooler, without a head
    tokenizer.save_pretrained(model)
    lora = ["--use_lora", "--lora_rank", 2, "--learning_rate", 5e-2]
    assert main(small(model, data, tmp_path / "adapter", *lora)) == 0
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in adapter if "pooler" in name} == {"pooler"}
    assert main(small(model, data, tmp_path / "whole", *lora, "--save_merged_lora_model")) == 0
    # The adapter on its base is the merged model, in a mix too.
    half = mix_models([tmp_path / "adapter", tmp_path / "whole"], "reranker", [0.5, 0.5])
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    for name, tensor in half.state_dict().items():
        if name in expected:
            torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5)
    settings = json.loads((tmp_path / "adapter" / "config.json").read_text())
    assert settings["sentence_transformers"]["activation_fn"] == RAW_SCORES


def test_a_model_smaller_than_its_tokenizer_is_refused(data, tmp_path, capsys):
    tokenizer = make_tokenizer("bert")
    rows = make_model("bert").config.vocab_size
    make_model("bert").save_pretrained(tmp_path / "model")
    tokenizer.add_tokens(["zzz"])
    tokenizer.save_pretrained(tmp_path / "model")
    assert main(small(tmp_path / "model", data, tmp_path / "out")) == 1
    found = f"has embeddings of {rows} tokens and its tokenizer makes {rows + 1}"
    assert found in capsys.readouterr().err
    with pytest.raises(ModelError, match=found):
        load_cross_encoder(tmp_path / "model")

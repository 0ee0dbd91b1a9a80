"""The model that training starts from."""

import json

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from cocktail import mix_models
from reranker_ft.errors import ModelError
from reranker_ft.model.load import load_cross_encoder
from reranker_ft.run import main
from reranker_ft.score.reranker import Reranker
from reranker_ft.train.start import RAW_SCORES
from tests.reranker_ft.conftest import (
    make_byte_tokenizer,
    make_decoder,
    make_model,
    make_tokenizer,
    save,
    small,
    toy_rows,
)


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


def test_a_fresh_decoder_scores_alike_everywhere_and_separates_its_pairs(tmp_path, data):
    tokenizer = make_byte_tokenizer(pad=None)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    folder = save(tmp_path / "m", make_decoder(head=False), tokenizer)
    output = tmp_path / "out"
    assert main(small(folder, data, output, "--eval_data", data, "--max_steps", 2)) == 0
    pairs = [("what is red?", "blue"), ("what is", " red?blue"), ("what is red?b", "lue")]
    ours = Reranker(output, devices="cpu").compute_score(pairs)
    assert len(set(ours)) == 3
    theirs = CrossEncoder(str(output), device="cpu").predict(pairs)
    assert theirs == pytest.approx(ours, abs=1e-5)
    loaded = AutoTokenizer.from_pretrained(output)
    assert loaded.decode(loaded("red", "blue")["input_ids"]) == "red\nblue"


@pytest.mark.parametrize("named", [[], ["--sep_token", " => "]])
def test_a_trained_decoder_keeps_its_pairs_unless_a_separator_is_named(tmp_path, data, named):
    folder = save(tmp_path / "m", make_decoder(), make_byte_tokenizer())
    assert main(small(folder, data, tmp_path / "out", "--max_steps", 1, *named)) == 0
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = loaded.decode(loaded("red", "blue")["input_ids"])
    assert text == f"red{' => ' if named else ''}blue"


@pytest.mark.parametrize("lora", [True, False])
def test_training_goes_on_from_an_adapter(tmp_path, data, lora):
    from peft import LoraConfig, get_peft_model

    base = save(tmp_path / "base", make_decoder(), make_byte_tokenizer())
    config = LoraConfig(
        r=3, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS", init_lora_weights=False
    )
    model = AutoModelForSequenceClassification.from_pretrained(base)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    flags = ["--max_steps", 1, *(["--use_lora"] if lora else [])]
    still, moved = tmp_path / "still", tmp_path / "moved"
    assert main(small(tmp_path / "adapter", data, still, *flags, "--learning_rate", 0)) == 0
    assert main(small(tmp_path / "adapter", data, moved, *flags, "--learning_rate", 0.01)) == 0
    pairs = [("red", "blue"), ("what is a king", "the king of the north")]
    before, kept, after = (
        Reranker(place, devices="cpu").compute_score(pairs)
        for place in (tmp_path / "adapter", still, moved)
    )
    assert kept == pytest.approx(before, abs=1e-5)
    assert after != pytest.approx(before, abs=1e-4)
    assert (moved / "model.safetensors").is_file() is not lora
    if lora:
        adapter = json.loads((moved / "adapter_config.json").read_text())
        assert (adapter["r"], adapter["base_model_name_or_path"]) == (3, str(base))

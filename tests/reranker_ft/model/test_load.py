"""Cross-encoders that load, and what is refused instead."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
)

from reranker_ft.errors import ModelError
from reranker_ft.model.load import load_tokenizer
from reranker_ft.score.reranker import Reranker
from tests.reranker_ft.conftest import (
    make_byte_tokenizer,
    make_decoder,
    make_model,
    make_tokenizer,
    save,
    toy_rows,
)

PAIRS = [(row["query"], text) for row in toy_rows(7) for text in row["pos"] + row["neg"]]


def test_a_checkpoint_without_its_head_is_refused(model_folders, tmp_path):
    Reranker(model_folders(), devices="cpu").save(tmp_path / "headless")
    weights = tmp_path / "headless" / "model.safetensors"
    tensors = load_file(weights)
    save_file(
        {name: t for name, t in tensors.items() if not name.startswith("classifier")},
        weights,
        metadata={"format": "pt"},
    )
    with pytest.raises(ModelError, match=r"lacks 2 of \d+ parameters \(classifier.bias"):
        Reranker(tmp_path / "headless", devices="cpu")


def test_what_is_no_reranker_is_refused_in_one_line(tmp_path):
    make_model(num_labels=3).save_pretrained(tmp_path / "three")
    make_tokenizer("bert").save_pretrained(tmp_path / "three")
    with pytest.raises(ModelError, match="gives 3 scores"):
        Reranker(tmp_path / "three", devices="cpu")
    for absent, reason in (
        (tmp_path / "absent", "no such folder here, and no model of the Hub is named so"),
        ("no-such/model", "no such folder here, nothing in the Hub's cache, and no connection"),
    ):
        with pytest.raises(ModelError, match=f"{absent} does not load .{reason}") as refused:
            Reranker(absent, devices="cpu")
        assert "\n" not in str(refused.value)


def test_a_broken_file_is_refused_in_one_line(model_folders, tmp_path):
    Reranker(model_folders(), devices="cpu").save(tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="broken does not load") as refused:
        Reranker(tmp_path / "broken", devices="cpu")
    assert "\n" not in str(refused.value)


def test_a_lora_adapter_is_loaded_onto_its_base(tmp_path):
    from peft import LoraConfig, TaskType, get_peft_model

    base = tmp_path / "base"
    make_model().save_pretrained(base)
    make_tokenizer("bert").save_pretrained(base)
    adapted = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(base),
        LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query", "value"]),
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    make_tokenizer("bert").save_pretrained(tmp_path / "adapter")
    adapted.eval()
    encoded = make_tokenizer("bert")("what is red", "the red apple", return_tensors="pt")
    with torch.no_grad():
        expected = adapted(**encoded).logits.item()
    got = Reranker(tmp_path / "adapter", devices="cpu").compute_score(
        ["what is red", "the red apple"]
    )
    assert got == pytest.approx([expected], abs=1e-5)
    assert got != Reranker(base, devices="cpu").compute_score(["what is red", "the red apple"])


def test_an_adapter_without_a_tokenizer_takes_that_of_its_base(tmp_path):
    from peft import LoraConfig, get_peft_model

    base = save(tmp_path / "base", make_decoder(), make_byte_tokenizer(pad=None))
    config = LoraConfig(
        r=2, target_modules=["q_proj"], task_type="SEQ_CLS", init_lora_weights=False
    )
    adapted = get_peft_model(AutoModelForSequenceClassification.from_pretrained(base), config)
    adapted.save_pretrained(tmp_path / "adapter")
    assert not list((tmp_path / "adapter").glob("tokenizer*"))
    encoded = make_byte_tokenizer()("red", "blue", return_tensors="pt")
    with torch.no_grad():
        expected = adapted.eval()(**encoded).logits.item()
    reranker = Reranker(tmp_path / "adapter", devices="cpu")
    assert reranker.compute_score([("red", "blue"), ("a", "longer pair")])[0] == pytest.approx(
        expected, abs=1e-5
    )
    assert load_tokenizer(str(tmp_path / "adapter")).eos_token == "</s>"

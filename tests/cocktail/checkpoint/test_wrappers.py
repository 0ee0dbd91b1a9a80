"""What wraps a whole model is taken off its tensors' names; what belongs to its class stays."""

from __future__ import annotations

import pytest
import torch

from cocktail.checkpoint.resolve import resolve
from cocktail.checkpoint.wrappers import unwrapped
from tests.cocktail.checkpoints import Save, weights

BERT = {"model_type": "bert", "architectures": ["BertForSequenceClassification"],
        "num_hidden_layers": 1}  # fmt: skip
NAMES = [
    "bert.embeddings.word_embeddings.weight",
    "bert.encoder.layer.0.output.dense.weight",
    "classifier.weight",
]


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("_orig_mod.", "_orig_mod."),
        ("module.", "module."),
        ("module.module.", "module.module."),
        ("module._orig_mod.", "_orig_mod., module."),
        ("_forward_module.", "_forward_module."),
        ("hf_model.", "hf_model."),
        ("model.", "model."),
        ("net.backbone.", "net.backbone."),
        ("bert.", "bert."),
        ("", ""),
    ],
)
def test_before_every_name(before: str, said: str) -> None:
    found, wrapper = unwrapped([before + name for name in NAMES], BERT)
    assert list(found.values()) == NAMES
    assert wrapper == said


def test_around_modules_inside() -> None:
    names = ["bert._fsdp_wrapped_module.encoder.layer.0._checkpoint_wrapped_module.output.weight"]
    found, wrapper = unwrapped([*names, "classifier.weight"], BERT)
    assert next(iter(found.values())) == "bert.encoder.layer.0.output.weight"
    assert wrapper == "_checkpoint_wrapped_module., _fsdp_wrapped_module."


def test_a_class_of_custom_code_keeps_its_names() -> None:
    names = ["ranker.layers.0.a", "ranker.layers.1.a"]
    assert unwrapped(names, {"model_type": "own", "auto_map": {}})[1] == ""


def test_a_note_says_so(save: Save) -> None:
    state = {f"module.{name}": tensor for name, tensor in weights(0).items()}
    checkpoint = resolve(save("a", state))
    assert dict(checkpoint).keys() == weights(0).keys()
    assert "module. was removed" in checkpoint.notes[0]


def test_placeholders_of_zero3_are_refused(save: Save) -> None:
    from cocktail.errors import CheckpointError

    state = weights(0) | {"encoder.layer.0.output.dense.weight": torch.empty(0)}
    with pytest.raises(CheckpointError, match=r"1 of 4 tensors are empty .*ZeRO-3"):
        resolve(save("a", state))

"""Every class that a config can name has a kind; a config that names none asks for one."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from cocktail.checkpoint.kinds import KINDS, detect_kind


@pytest.mark.parametrize(
    ("architecture", "config", "kind"),
    [
        ("LlavaForConditionalGeneration", {"vision_config": {}}, "vision-language"),
        ("Qwen2VLForConditionalGeneration", {"vision_config": {}}, "vision-language"),
        ("T5ForConditionalGeneration", {"is_encoder_decoder": True}, "encoder-decoder"),
        ("BertForTokenClassification", {}, "token-classification"),
        ("RobertaForQuestionAnswering", {}, "question-answering"),
        ("DistilBertForQuestionAnswering", {}, "question-answering"),
        ("ViTForImageClassification", {}, "other"),
        ("Wav2Vec2ForCTC", {}, "other"),
        ("BertForMultipleChoice", {}, "other"),
        ("CLIPModel", {}, "encoder"),
        ("", {}, None),
    ],
)
def test_kinds(architecture: str, config: dict[str, Any], kind: str | None) -> None:
    found = detect_kind({"architectures": [architecture], **config}, has_modules=False)
    assert (found.name if found else None) == kind


def test_their_auto_classes_are_those_of_transformers() -> None:
    named = [kind.auto_class for kind in KINDS.values() if kind.auto_class]
    assert all(hasattr(transformers, name) for name in named)
    assert [kind.name for kind in KINDS.values() if not kind.auto_class] == ["other"]

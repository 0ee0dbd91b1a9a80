"""The kinds of model: which Auto class loads each, and how its config shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cocktail.errors import PlanError


@dataclass(frozen=True)
class Kind:
    """One value of ``model_type``.

    Attributes:
        name: ``reranker``, ``encoder``, ``decoder``, ``encoder-decoder``, ``vision-language``,
            ``token-classification``, ``question-answering`` or ``other``.
        auto_class: the transformers class that loads it; empty for ``other``, which is loaded by
            the class that its config names.
        architectures: how the class names in ``config.json`` end.
        heads: how the names of the head's tensors may begin; without any, the head would start
            from random weights. Empty where there is no head to check.
        pipeline_tag: the task that the Hub files it under.
        ties_embeddings: whether its output embedding may be tied to its input embedding.
    """

    name: str
    auto_class: str
    architectures: tuple[str, ...]
    heads: tuple[str, ...]
    pipeline_tag: str
    ties_embeddings: bool = False

    @property
    def ranks(self) -> bool:
        """Whether its examples are queries with passages; otherwise they are texts to generate."""
        return self.name in ("reranker", "encoder")

    @property
    def is_searched(self) -> bool:
        """Whether models of this kind can be measured on examples."""
        return self.name in _SEARCHED


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "reranker",
            "AutoModelForSequenceClassification",
            ("ForSequenceClassification",),
            ("classifier", "score", "logits_proj", "classification_head"),
            "text-ranking",
        ),
        Kind(
            "encoder",
            "AutoModel",
            ("Model", "ForMaskedLM", "ForPreTraining", "EncoderModel"),
            (),
            "sentence-similarity",
        ),
        Kind(
            "decoder",
            "AutoModelForCausalLM",
            ("ForCausalLM", "LMHeadModel"),
            ("lm_head", "embed_out"),
            "text-generation",
            ties_embeddings=True,
        ),
        Kind(
            "encoder-decoder",
            "AutoModelForSeq2SeqLM",
            ("ForConditionalGeneration", "ForSeq2SeqLM", "MTModel"),
            ("lm_head",),
            "text-generation",
            ties_embeddings=True,
        ),
        Kind(
            "vision-language",
            "AutoModelForImageTextToText",
            ("ForConditionalGeneration",),
            ("lm_head",),
            "image-text-to-text",
            ties_embeddings=True,
        ),
        Kind(
            "token-classification",
            "AutoModelForTokenClassification",
            ("ForTokenClassification",),
            ("classifier", "score"),
            "token-classification",
        ),
        Kind(
            "question-answering",
            "AutoModelForQuestionAnswering",
            ("ForQuestionAnswering", "ForQuestionAnsweringSimple"),
            ("qa_outputs",),
            "question-answering",
        ),
        Kind("other", "", ("",), (), "other"),
    )
}
_SEARCHED = ("reranker", "encoder", "decoder", "encoder-decoder")


LANGUAGE_RERANKER = replace(
    KINDS["reranker"],
    auto_class="AutoModelForCausalLM",
    architectures=KINDS["decoder"].architectures,
    heads=KINDS["decoder"].heads,
    ties_embeddings=True,
)
"""A reranker that is a language model: it scores a pair by the logits of its answer to a prompt."""


STACK_RERANKER = replace(
    KINDS["reranker"],
    auto_class="AutoModel",
    architectures=KINDS["encoder"].architectures,
    heads=(),
)
"""A reranker of sentence-transformers' modules: its head is a part of its own."""


def kind_named(name: str) -> Kind:
    """Look up a kind by its name.

    Raises:
        PlanError: there is no such kind.
    """
    if name not in KINDS:
        raise PlanError(
            [f"model_type is {name!r} - it must be one of {', '.join(KINDS)} - choose one of these"]
        )
    return KINDS[name]


def detect_kind(config: Mapping[str, Any], *, has_modules: bool) -> Kind | None:
    """Read the kind from a ``config.json``.

    Args:
        has_modules: whether the folder is a sentence-transformers model, whose pooling turns any
            transformer into an encoder.

    Returns:
        ``None`` where the config names no architecture.
    """
    name = architecture(config)
    if name.endswith(KINDS["reranker"].architectures):
        return KINDS["reranker"]
    if has_modules:
        return KINDS["encoder"]
    if not name:
        return None
    if name.endswith("ForConditionalGeneration"):
        sees = "vision_config" in config
        return KINDS[
            "vision-language" if sees else _WRITING[bool(config.get("is_encoder_decoder"))]
        ]
    # The encoder comes late: GPT2LMHeadModel and MarianMTModel end in Model too.
    known = [kind for kind in KINDS.values() if kind.name not in ("encoder", "vision-language")]
    for kind in (*known[:-1], KINDS["encoder"]):
        if name.endswith(kind.architectures):
            return kind
    return KINDS["other"]


# The kind of a class called ForConditionalGeneration, by its config's is_encoder_decoder.
_WRITING = {True: "encoder-decoder", False: "other"}


def kind_problem(kind: Kind, config: Mapping[str, Any], reference: str) -> str | None:
    """Why a checkpoint with this config is not of this kind, or ``None`` if it is."""
    name = architecture(config)
    if not name or name.endswith(kind.architectures) or kind.name == "encoder":
        loses_head = kind.name == "encoder" and name.endswith(KINDS["reranker"].architectures)
        if not loses_head:
            return None
    return (
        f"{reference} is a {name} - model_type {kind.name!r} loads "
        f"{' or '.join('*' + end for end in kind.architectures)}, anything else would lose its "
        "head or get a random one - name the right model_type, or leave it out"
    )


def architecture(config: Mapping[str, Any]) -> str:
    """The first class that a ``config.json`` names, or an empty string."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""

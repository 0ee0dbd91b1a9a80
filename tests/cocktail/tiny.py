"""Tiny ingredients of every kind, their tokenizers and examples, made in the test process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS = [
    *("red", "green", "blue", "white", "black", "apple", "river", "stone", "bridge", "garden"),
    *("bird", "horse", "king", "city", "north", "south", "east", "west", "water", "fire"),
]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
SIZES = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.3,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
BERT = {**SIZES, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
FAMILIES: dict[str, tuple[str, Callable[[], PreTrainedModel]]] = {
    "bert-reranker": (
        "reranker",
        lambda: BertForSequenceClassification(BertConfig(**BERT, num_labels=1)),
    ),
    "roberta-reranker": (
        "reranker",
        lambda: RobertaForSequenceClassification(RobertaConfig(**BERT, num_labels=1)),
    ),
    "bert-encoder": ("encoder", lambda: BertModel(BertConfig(**BERT))),
    "llama": (
        "decoder",
        lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
    ),
    "tied-llama": (
        "decoder",
        lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    ),
    "t5": (
        "encoder-decoder",
        lambda: T5ForConditionalGeneration(
            T5Config(
                vocab_size=SIZES["vocab_size"], d_model=32, num_layers=2, num_heads=2, d_ff=48,
                d_kv=8, dropout_rate=0.0, decoder_start_token_id=1, pad_token_id=1, eos_token_id=2,
            )
        ),
    ),
}  # fmt: skip


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Words to ids; Llama's has no padding token."""
    words = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *WORDS])}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    single, pair = {
        "bert": ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1"),
        "roberta": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
        "t5": ("$A </s>", "$A </s> $B </s>"),
    }.get(family.split("-")[0], ("<s> $A", "<s> $A $B"))
    words.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    inputs = ["input_ids", "attention_mask"]
    if family.startswith("bert"):
        inputs.append("token_type_ids")
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token=None if "llama" in family else "<pad>",
        model_input_names=inputs,
        model_max_length=400,
    )


def save_model(model: PreTrainedModel, family: str, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer(family).save_pretrained(folder)
    return str(folder)


def moved(model: PreTrainedModel, seed: int, size: float) -> PreTrainedModel:
    """The same model in place, every matrix moved by normal noise of a share of its own spread."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += size * parameter.std() * noise
    return model


def ingredients(family: str, folder: Path, count: int = 3, size: float = 0.3) -> list[str]:
    """A base and models near it."""
    paths = []
    for i in range(count):
        torch.manual_seed(1)
        model = FAMILIES[family][1]().eval()
        paths.append(save_model(moved(model, i, size if i else 0), family, folder / f"m{i}"))
    return paths


def ranked(count: int, negatives: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """The positive begins with the query's words; lengths differ."""
    generator = torch.Generator().manual_seed(seed)

    def words(number: int) -> list[str]:
        picks = torch.randint(len(WORDS), (number,), generator=generator)
        return [WORDS[i] for i in picks]

    rows = []
    for i in range(count):
        query = words(2)
        rows.append(
            {
                "query": " ".join(query),
                "pos": [" ".join(query + words(i % 3))],
                "neg": [" ".join(words(2 + (i + k) % 4)) for k in range(negatives)],
            }
        )
    return rows


def written(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The output repeats the input backwards; lengths differ."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        picks = torch.randint(len(WORDS), (2 + i % 4,), generator=generator)
        words = [WORDS[k] for k in picks]
        rows.append({"input": " ".join(words), "output": " ".join(reversed(words))})
    return rows


def examples(family: str, count: int = 6) -> list[dict[str, Any]]:
    return ranked(count) if FAMILIES[family][0] in ("reranker", "encoder") else written(count)


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path

"""Tiny language models of the classes that rerankers are published in, with a BPE tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CLASSES = {
    "gemma": (GemmaConfig, GemmaForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
TEXT = (
    "yes no Yes No 0 1 query passage document instruct the red bird flies over a river, who is it? "
    "Given a query A and a passage B, determine whether the passage contains an answer. "
)
# How Qwen's tokenizers split texts before they merge: "?\n" becomes one piece.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PAIRS = [
    ("who is the bird?", "the red bird"),
    ("river", "A river flows over the hill, and nobody knows where it goes.\nIt is long."),
    ("what is 10?", "yes"),
    ("über 漢字?", "漢字 and émigré texts are of several bytes a character"),
]


def make_tokenizer(start: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; with ``start`` it begins every text with ``<bos>``."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<bos>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [TEXT + "what?\nwho?\n"] * 20,
        trainers.BpeTrainer(
            vocab_size=500,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=special,
            show_progress=False,
        ),
    )
    if start:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 3)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        **({"bos_token": "<bos>"} if start else {}),
    )


def make_language_model(
    folder: Path,
    kind: str,
    *,
    layers: int = 2,
    seed: int = 0,
    tied: bool = True,
    start: bool = False,
    **config: Any,
) -> tuple[torch.nn.Module, PreTrainedTokenizerFast]:
    """Write a small language model and its tokenizer into a folder, and return them."""
    tokenizer = make_tokenizer(start)
    config_class, model_class = CLASSES[kind]
    heads = {} if kind == "qwen2" else {"head_dim": 8}
    torch.manual_seed(seed)
    model = model_class(
        config_class(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=tied,
            initializer_range=0.2,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            **heads,
            **config,
        )
    ).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer

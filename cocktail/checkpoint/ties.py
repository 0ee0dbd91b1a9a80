"""Which tensors a model's config and class say are copies of others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cocktail.checkpoint.architecture import default_ties

INPUT_EMBEDDINGS = (
    "embed_tokens.weight", "wte.weight", "word_embeddings.weight", "shared.weight",
    "embed_in.weight",
)  # fmt: skip
"""How the names of input embeddings end; ``OUTPUT_EMBEDDINGS`` may be tied to them."""


OUTPUT_EMBEDDINGS = ("lm_head.weight", "embed_out.weight")


# What else transformers' ``_tied_weights_keys`` name: the heads of masked language models, and the
# encoder's and decoder's copies of one embedding.
_OUTPUT_EMBEDDING = re.compile(
    r"(^|\.)(lm_head|embed_out|decoder|vocab_projector|generator_lm_head)\.weight$"
)


_EMBEDDING = re.compile(r"(^|\.)(\w*embed\w*|wte|shared)\.weight$")


_OUTPUT_BIAS = re.compile(r"(?P<head>(.+\.)?(predictions|lm_head))\.decoder\.bias")


_SHARED_COPY = re.compile(r"(.+\.)?(encoder|decoder)\.embed_tokens\.weight")


_ALWAYS_SHARED = ("t5", "mt5", "umt5", "longt5", "switch_transformers")


def is_tied(config: Mapping[str, Any]) -> bool | None:
    """Whether the output embedding is the input embedding.

    Returns:
        ``None`` if the config does not say and its class is not known.
    """
    value = config.get("tie_word_embeddings")
    return default_ties(config) if value is None else bool(value)


def is_copy(name: str, other: str, config: Mapping[str, Any]) -> bool:
    """Whether a model with this config ties ``name`` to ``other``.

    A loader fills ``name`` from ``other`` where only that is stored. This goes by names, for
    classes that cannot be asked; see :class:`cocktail.checkpoint.architecture.Architecture`.
    """
    if name == other:
        return False
    tied = is_tied(config)
    ties = tied or (tied is None and "auto_map" not in config)  # custom code may do either
    if _SHARED_COPY.fullmatch(name):
        shares = ties or config.get("model_type") in _ALWAYS_SHARED
        return shares and other.endswith("shared.weight")
    if not ties:
        return False
    bias = _OUTPUT_BIAS.fullmatch(name)
    if bias is not None:
        return other == f"{bias['head']}.bias"
    return bool(_OUTPUT_EMBEDDING.search(name)) and bool(_EMBEDDING.search(other))


def is_quantised(config: Mapping[str, Any]) -> bool:
    return bool(config.get("quantization_config"))

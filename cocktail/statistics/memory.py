"""What it takes to run a model on examples, before it runs: from headers and the examples' file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cocktail.checkpoint import MAIN
from cocktail.search.options import SearchOptions

if TYPE_CHECKING:
    from cocktail.plan import Plan

MODELLING_BYTES = 140_000_000  # transformers loaded, measured; the rest is computed
BYTES_A_TOKEN = 3  # of text: four in English, three in Chinese
GRAMS_AT_ONCE = 2 << 30
"""Bytes of Gram matrices that are held: enough for 24 layers of width 1024. A model whose matrices
take more runs on the examples several times."""


def measuring_bytes(plan: Plan) -> int:
    """Estimated bytes of memory, beyond the runtime, that measuring one model takes.

    The model in fp32, what is measured of it (of Gram matrices, those that are held) and what a
    forward needs; for ``fisher`` gradients too: of the largest tensor while it is added, and of
    all where an example is run in several batches.
    """
    statistic = plan.recipe.method.statistic
    if statistic is None:
        return 0
    measured = plan.statistics_bytes
    gradients = 0
    if statistic == "gram":
        largest = max(4 * tensor.statistic_numel for tensor in plan.tensors)
        measured = min(measured, max(GRAMS_AT_ONCE, largest))
    else:
        gradients = 4 * max(tensor.numel for tensor in plan.tensors)
        gradients += 4 * plan.parameters * _is_ranked(plan)
    activations = 4 * _tokens(plan) * floats_a_token(plan)
    return MODELLING_BYTES + 4 * plan.parameters + measured + gradients + activations


def floats_a_token(plan: Plan) -> int:
    """Activations of one token: about the inputs and outputs of the widest matrix, or of all and a
    quarter more, for norms, where a backward comes after the forward; and three times the logits.
    """
    config = plan.donor.config
    tables = {config.get("vocab_size"), config.get("max_position_embeddings")}
    widths = [
        sum(tensor.shape)
        for tensor in plan.tensors
        if tensor.part == MAIN and len(tensor.shape) == 2 and tensor.shape[0] not in tables
    ]
    by_gradients = plan.recipe.method.statistic == "fisher"
    floats = sum(widths) * 5 // 4 if by_gradients else max(widths, default=0)
    logits = 0 if _is_ranked(plan) else int(config.get("vocab_size") or 0)
    return floats + 3 * logits


def _tokens(plan: Plan) -> int:
    """Tokens of the largest forward, as far as the examples' longest line tells: pairs and texts
    that are ranked run many at a time, a text that is written by itself."""
    from cocktail.kinds.task import CPU_TOKENS  # noqa: PLC0415 - loads scipy

    positions = plan.donor.config.get("max_position_embeddings")
    limit = min(SearchOptions().max_input_length, positions or SearchOptions().max_input_length)
    try:
        with Path(plan.recipe.data or "").open("rb") as lines:
            longest = max(map(len, lines), default=0)
    except OSError:  # named where examples are read
        longest = 0
    tokens = min(limit, longest // BYTES_A_TOKEN)
    return max(CPU_TOKENS, tokens) if _is_ranked(plan) else tokens


def _is_ranked(plan: Plan) -> bool:
    return plan.kind.name in ("reranker", "encoder")

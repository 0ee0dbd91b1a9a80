"""What it takes to run a model on examples, before it runs: from headers and the examples' file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cocktail.checkpoint.whole import MAIN
from cocktail.search.options import SearchOptions

if TYPE_CHECKING:
    from cocktail.plan.plan import Plan

MODELLING_BYTES = 140_000_000  # transformers loaded, measured; the rest is computed
BYTES_A_TOKEN = 3  # where no tokenizer.json tells: four in English, three in Chinese
GRAMS_AT_ONCE = 2 << 30
"""Bytes of Gram matrices that are held: enough for 24 layers of width 1024. A model whose matrices
take more runs on the examples several times."""


def measuring_bytes(plan: Plan) -> int:
    """Estimated bytes of memory, beyond the runtime, that measuring one model takes.

    The model in fp32, what is measured of it (of Gram matrices, those that are held) and what a
    forward needs; for ``fisher`` gradients too: two of the largest tensor, as a tied embedding has
    before they are added, and those of all where an example is run in several batches.
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
        gradients = 2 * 4 * max(tensor.numel for tensor in plan.tensors)
        gradients += 4 * plan.parameters * plan.kind.ranks
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
    logits = 0 if plan.kind.ranks else int(config.get("vocab_size") or 0)
    return floats + 3 * logits


def _tokens(plan: Plan) -> int:
    """Tokens of the largest forward, as far as the examples' longest line tells: pairs and texts
    that are ranked run many at a time, a text that is written by itself."""
    from cocktail.measure.tasks.task import BACKWARD_SHARE, CPU_TOKENS  # noqa: PLC0415 - loads scipy

    positions = plan.donor.config.get("max_position_embeddings")
    limit = min(SearchOptions().max_input_length, positions or SearchOptions().max_input_length)
    try:
        with Path(plan.recipe.data or "").open("rb") as lines:
            longest = max(lines, key=len, default=b"")
    except OSError:  # named where examples are read
        longest = b""
    tokens = min(limit, _count(longest, plan.donor.main_folder / "tokenizer.json"))
    batch = CPU_TOKENS // (BACKWARD_SHARE if plan.recipe.method.statistic == "fisher" else 1)
    return max(batch, tokens) if plan.kind.ranks else tokens


def _count(text: bytes, tokenizer: Path) -> int:
    """Tokens of a text, without what it takes to load the tokenizer with its model."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - few plans have examples

    try:
        return len(Tokenizer.from_file(str(tokenizer)).encode(text.decode("utf-8", "replace")).ids)
    except Exception:  # all that this library raises
        return len(text) // BYTES_A_TOKEN

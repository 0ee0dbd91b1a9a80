"""Estimate from headers the memory that a mix takes, and that measuring models before it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cocktail.checkpoint.model import MAIN
from cocktail.measure.options import MeasureOptions
from cocktail.tensors.reading import BLOCK

if TYPE_CHECKING:
    from cocktail.plan.plan import Plan

RUNTIME_BYTES = 260_000_000  # an interpreter with torch loaded, measured; the rest is computed
BARE_RUNTIME_BYTES = 40_000_000  # one without
MODELLING_BYTES = 140_000_000  # transformers loaded, measured; the rest is computed
GRAMS_AT_ONCE = 2 << 30
"""Bytes of Gram matrices to hold at a time: enough for 24 layers of width 1024. A model whose
matrices take more runs on the examples several times."""


def peak_memory(plan: Plan, threads: int) -> int:
    """Estimate the peak of anonymous memory in bytes.

    That is the runtime, each thread's blocks, side tensors, and what a method needs to make the
    largest tensor whole; or what measuring a model on examples takes before that, if it is more.
    """
    side = sum(file.nbytes for file in plan.files if not file.is_safetensors)
    deltas = {s.info.delta for t in plan.tensors for s in t.active if s.info.delta is not None}
    side += sum(info.nbytes for delta in deltas for info in delta.stored)  # held while mixing
    side += threads * max((delta.workspace for delta in deltas), default=0)
    whole = max((p.whole_numel for p in plan.pieces if p.is_whole), default=0)
    sources = (len(p.active) + len(p.sources) * p.is_measured for p in plan.pieces if p.merge)
    mixing = threads * (4 + max(sources, default=0)) * plan.block_bytes(BLOCK)
    mixing += side + whole * 4
    runtime = BARE_RUNTIME_BYTES if plan.is_plain_sum else RUNTIME_BYTES
    return runtime + max(mixing, measuring_bytes(plan))


def measuring_bytes(plan: Plan) -> int:
    """Estimate the bytes, beyond the runtime, that measuring one model takes.

    They are the model in fp32, its statistics (of Gram matrices, those held at a time), and what a
    forward needs. ``fisher`` also needs gradients: two of the largest tensor, as for a tied
    embedding before they are added, and those of all tensors if an example takes several batches.
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
    """The activations of one token, in floats.

    About the inputs and outputs of the widest matrix or, where a backward follows the forward, of
    all matrices and a quarter more for norms; plus three times the logits.
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
    """The tokens of the largest forward: rankings run many texts at a time, while a text to
    generate runs alone and is assumed to be as long as it may be."""
    from cocktail.measure.tasks.task import BACKWARD_SHARE, CPU_TOKENS  # noqa: PLC0415 - loads scipy

    if plan.kind.ranks:
        return CPU_TOKENS // (BACKWARD_SHARE if plan.recipe.method.statistic == "fisher" else 1)
    longest = MeasureOptions().max_input_length
    return min(longest, plan.donor.config.get("max_position_embeddings") or longest)

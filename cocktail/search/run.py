"""The calls that users make: search weights, and mix with what was found."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from cocktail.api import checked_plan, mix_models
from cocktail.system.heap import trim_heap
from cocktail.measure.tasks.examples import ExampleData
from cocktail.write.place import output_folder
from cocktail.plan.plan import DEFAULT_SHARD_BYTES, Plan
from cocktail.recipe.recipe import make_recipe
from cocktail.measure.mixture import Mixture, Weights, simplex_vertex
from cocktail.search.objective import MixObjective
from cocktail.search.options import (
    DEFAULT_BUDGET,
    ComputeDtype,
    RetainMeasure,
    SearchOptions,
    Strategy,
    base_index,
)
from cocktail.measure.bench import Bench, prepare, search_plan
from cocktail.measure.processes import Processes
from cocktail.search.result import SearchResult
from cocktail.search.search import Search, softmax_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def search_weights(
    model_names_or_paths: Sequence[str | Path],
    model_type: str | None,
    example_data: ExampleData,
    *,
    strategy: Strategy = "auto",
    temperature: float = 5.0,
    batch_size: int = 2,
    max_input_length: int = 2048,
    neg_number: int | None = None,
    pooling: str | None = None,
    retain_data: ExampleData | None = None,
    max_drop: float = 0.0,
    retain_by: RetainMeasure = "loss",
    base: str | Path | int | None = None,
    budget: float = DEFAULT_BUDGET,
    seed: int = 0,
    head: str = "error",
    trust_remote_code: bool = False,
    device: str | None = None,
    compute_dtype: ComputeDtype = "float32",
    threads: int | None = None,
    progress: bool = True,
    processes: Processes | None = None,
) -> SearchResult:
    """Find mixing weights from a few examples, measured on the mixed model and cross-validated.

    One model is in memory at a time; the ingredients are streamed into it.

    Args:
        model_names_or_paths: K local folders or Hub ids; the tokenizer comes from the first.
        model_type: ``reranker``, ``encoder``, ``decoder`` or ``encoder-decoder``; ``None`` reads
            it from the config.
        example_data: a JSONL file or a list of dictionaries: ``{"query", "pos", "neg"}`` for
            rerankers and encoders, ``{"input", "output"}`` for the others.
        strategy: ``auto`` (``ensemble``, polished by ``gradient``, then a choice that keeps what
            the ingredients are worth by themselves where the examples cannot tell, and equal
            weights where they may as well be labelled at random), or one of ``lm-cocktail``,
            ``ensemble``, ``gradient``, ``greedy``, ``sweep``, ``blackbox``, which is then taken as
            asked.
        temperature: of the rule softmax(-loss / T).
        batch_size: consecutive examples that this rule averages at a time.
        max_input_length: tokens of a text, as far as the model has positions.
        neg_number: negatives to draw of each example; all by default.
        pooling: of an encoder: ``cls``, ``mean``, ``max``, ``lasttoken``; its own by default, and
            ``cls`` where it has none.
        retain_data: examples of what must not be lost; traces the frontier.
        max_drop: how much worse than the base the mix may be on them.
        retain_by: compare the ``loss`` there, or the ranking ``metric`` (NDCG@10).
        base: which ingredient is the base, by reference or index; the first by default.
        budget: forward equivalents (passes over the examples; a backward is two); the frontier
            comes on top.
        seed: of drawn negatives, folds and bootstrap; the same seed gives the same result, in
            whatever order the examples stand.
        head: for a head that only one ingredient has, as in :func:`cocktail.mix_models`.
        trust_remote_code: run code that comes with the first model, to build it.
        device: ``cpu``, ``cuda``...; the accelerator where there is one.
        compute_dtype: of that model, ``float32`` or ``bfloat16``: half the memory, for losses that
            are known to fewer digits.
        threads: that read the ingredients.
        progress: show evaluations and the best loss so far on stderr.
        processes: of a group that is joined already; ``torchrun``'s own by default.

    Returns:
        Weights in the order given, the candidates, the verdict, the frontier and the cost.

    Raises:
        CocktailError: the ingredients do not mix, the examples cannot be used, or a loss is not
            finite.
    """
    names = tuple(map(str, model_names_or_paths))
    options = SearchOptions(
        strategy, temperature, batch_size, max_input_length, neg_number, pooling, max_drop,
        retain_by, base_index(base, names), budget, seed, compute_dtype,
    )  # fmt: skip
    options.check(len(names), retains=retain_data is not None)
    bench = prepare(
        search_plan(names, model_type, head=head, dtype=compute_dtype), example_data, retain_data,
        options, trust_remote_code=trust_remote_code, device=device, threads=threads,
        processes=processes,
    )  # fmt: skip
    return _searched(bench, options, progress=progress)


def mix_models_with_data(
    model_names_or_paths: Sequence[str | Path],
    model_type: str,
    example_data: ExampleData,
    temperature: float = 5.0,
    batch_size: int = 2,
    max_input_length: int = 2048,
    neg_number: int = 7,
    output_path: str | Path | None = None,
    *,
    strategy: Strategy = "lm-cocktail",
    pooling: str | None = None,
    seed: int = 0,
    device: str | None = None,
    compute_dtype: ComputeDtype = "float32",
    head: str = "error",
    trust_remote_code: bool = False,
    threads: int | None = None,
    progress: bool = True,
    retain_data: ExampleData | None = None,
    max_drop: float = 0.0,
    retain_by: RetainMeasure = "loss",
    base: str | Path | int | None = None,
    budget: float = DEFAULT_BUDGET,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    sync: bool = True,
) -> PreTrainedModel:
    """Mix models by weights that a few examples give; LM_Cocktail's call gives its weights.

    LM-Cocktail, https://arxiv.org/abs/2311.13534, equation 2: softmax(-loss / T) of the single
    models' losses. Rerankers and encoder-decoders, which LM_Cocktail leaves out, follow the same
    rule with the mean loss over the examples. The weights are logged at level INFO, and written to
    ``cocktail.json`` with the model.

    Args:
        example_data, temperature, batch_size, max_input_length, strategy, ...: as in
            :func:`search_weights`.
        neg_number: negatives to draw of each example; decoders and encoder-decoders have none.
        output_path: also write the mix there, an encoder's with ``pooling`` if it has none.
        dtype, max_shard_size, overwrite, sync: of the mix, as in :func:`cocktail.mix_models`.

    Returns:
        The mixed model in eval mode, on the CPU.

    Raises:
        CocktailError: as :func:`search_weights` and :func:`cocktail.mix_models`; what can be is
            refused before the search.
        KeyboardInterrupt: no model is made of a search that was not finished.
    """
    names = tuple(map(str, model_names_or_paths))
    written_pooling = None if output_path is None else pooling
    recipe = make_recipe(
        names, [1 / len(names)] * len(names), model_type=model_type, dtype=dtype, head=head,
        pooling=written_pooling,
    )  # fmt: skip
    output = None if output_path is None else output_folder(output_path)
    plan = checked_plan(recipe, output, max_shard_size=max_shard_size, overwrite=overwrite)
    options = SearchOptions(
        strategy, temperature, batch_size, max_input_length,
        neg_number if plan.kind.ranks else None, pooling, max_drop, retain_by,
        base_index(base, names), budget, seed, compute_dtype,
    )  # fmt: skip
    options.check(len(names), retains=retain_data is not None)
    weights = _found_weights(
        search_plan(names, model_type, head=head, dtype=compute_dtype), example_data, retain_data,
        options, progress=progress, device=device, trust_remote_code=trust_remote_code,
        threads=threads,
    )  # fmt: skip
    logger.info("mixing weights: %s", dict(zip(names, weights, strict=True)))
    trim_heap()
    return mix_models(
        names, model_type, weights, output, dtype=dtype, max_shard_size=max_shard_size,
        overwrite=overwrite, trust_remote_code=trust_remote_code, progress=progress, head=head,
        pooling=written_pooling, sync=sync, threads=threads,
    )  # fmt: skip


def _found_weights(
    plan: Plan,
    data: ExampleData,
    retain_data: ExampleData | None,
    options: SearchOptions,
    *,
    progress: bool,
    **resources: Any,
) -> list[float]:
    """What the strategy gives; the model that it was measured in is let go of."""
    bench = prepare(plan, data, retain_data, options, **resources)
    if options.strategy == "lm-cocktail" and retain_data is None:
        return list(map(float, _softmax_alone(bench, options)))
    result = _searched(bench, options, progress=progress)
    if result.interrupted:
        raise KeyboardInterrupt
    return list(result.weights)


def _softmax_alone(bench: Bench, options: SearchOptions) -> Weights:
    """One forward for each ingredient and nothing else."""
    count = len(bench.mixture.names)
    objective = MixObjective(bench.mixture, bench.task)
    vertices = [simplex_vertex(i, count) for i in range(count)]
    for vertex in vertices:
        objective.measure(vertex)  # refuses what is not finite
    rows = [objective.rows(vertex) for vertex in vertices]
    return softmax_weights(bench, rows, options, bench.given_order)


def _searched(bench: Bench, options: SearchOptions, *, progress: bool) -> SearchResult:
    shown = progress and bench.mixture.processes.is_first
    with _evaluations(bench.mixture, shown=shown) as observe:
        return Search(bench, options, observe).run()


@contextmanager
def _evaluations(
    mixture: Mixture, *, shown: bool
) -> Iterator[Callable[[Weights, float], None] | None]:
    """A bar of the mixes that are run, with the best loss so far.

    Yields:
        A function of the weights and the loss of a mix that was measured.
    """
    if not shown:
        yield None
        return
    best = float("inf")
    with tqdm(desc="searching", unit=" mixes", mininterval=0, file=sys.stderr, leave=False) as bar:

        def observe(weights: Weights, loss: float) -> None:
            nonlocal best
            if loss < best:
                best = loss
                shares = " ".join(f"{weight:.2f}" for weight in weights)
                bar.set_postfix_str(f"best loss {loss:.4f} at {shares}")

        mixture.ran = bar.update
        yield observe

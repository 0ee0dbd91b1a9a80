"""Search mixing weights: from references and examples to a result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cocktail.errors import RecipeError
from cocktail.measure.bench import Bench, prepare
from cocktail.measure.mixture import Weights
from cocktail.measure.processes import Processes
from cocktail.measure.refillable import search_plan
from cocktail.measure.tasks.examples import ExampleData, RetainedData
from cocktail.measure.unlabelled import TextData
from cocktail.plan.plan import Plan
from cocktail.search.curve import STEPS
from cocktail.search.options import SearchOptions, base_index
from cocktail.search.result import SearchResult
from cocktail.search.search import Search
from cocktail.system.progress import progress_bar


def search_weights(
    model_names_or_paths: Sequence[str | Path],
    model_type: str | None,
    example_data: ExampleData,
    *,
    retain_data: RetainedData | None = None,
    retain_text: TextData | None = None,
    base: str | Path | int | None = None,
    head: str = "error",
    trust_remote_code: bool = False,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
    processes: Processes | None = None,
    **options: Any,
) -> SearchResult:
    """Find mixing weights from a few examples: measure mixes along the curve, and choose one.

    Only one model is in memory; the ingredients are streamed into it.

    Args:
        model_names_or_paths: K local folders or Hub ids; the tokenizer comes from the first.
        model_type: ``reranker``, ``encoder``, ``decoder`` or ``encoder-decoder``; ``None`` reads
            it from the config.
        example_data: a JSONL file or a list of dictionaries: ``{"query", "pos", "neg"}`` for
            rerankers and encoders, ``{"input", "output"}`` for the others.
        retain_data: examples of what must not be lost; or, for rerankers and encoders, a reranking
            or retrieval task of mteb, by name or as an object, of which 100 queries are drawn.
        retain_text: the same without labels: general passages and questions, in a file (one passage
            per line, or JSONL with ``text`` or ``query``) or a list; the base is the teacher.
        base: which ingredient is the base, by reference or index; the first by default.
        head: for a head that only one ingredient has, as in :func:`cocktail.mix_models`.
        trust_remote_code: run code that comes with the first model, to build it.
        device: ``cpu``, ``cuda``...; the accelerator if there is one.
        threads: how many threads read the ingredients.
        progress: show evaluations and the best loss so far on stderr.
        processes: a group that has already been joined; ``torchrun``'s own by default.
        options: the fields of :class:`SearchOptions`, such as ``strategy="gradient"`` and
            ``max_drop=0.02``.

    Returns:
        The weights in the order given, the curve, the verdict and the cost.

    Raises:
        CocktailError: the ingredients do not mix, the examples cannot be used, or a loss is not
            finite.
    """
    names = tuple(map(str, model_names_or_paths))
    asked = SearchOptions(**options, base=base_index(base, names))
    asked.check(labelled=retain_data is not None, unlabelled=retain_text is not None)
    plan = search_plan(names, model_type, head=head, dtype=asked.model_dtype)
    bench = search_bench(
        plan, example_data, retain_data, asked, retain_text=retain_text,
        trust_remote_code=trust_remote_code, device=device, threads=threads, processes=processes,
        progress=progress,
    )  # fmt: skip
    return searched(bench, asked, progress=progress)


def search_bench(
    plan: Plan,
    data: ExampleData,
    retain_data: RetainedData | None,
    options: SearchOptions,
    **resources: Any,
) -> Bench:
    """What a search measures with; ``resources`` are those of :func:`prepare`.

    Raises:
        CocktailError: as :func:`prepare`, or ``retain_by`` is not for this kind of model.
    """
    if not plan.kind.ranks and options.retain_by == "metric":
        raise RecipeError(
            f"retain_by is metric for a {plan.kind.name} - it has only a loss, as NDCG needs "
            "rankings - use loss (--retain-by loss)"
        )
    return prepare(plan, data, retain_data, options, **resources)


def searched(bench: Bench, options: SearchOptions, *, progress: bool) -> SearchResult:
    """Search with a prepared bench, showing a bar of the mixes that are run."""
    shown = progress and bench.mixture.processes.is_first
    with _evaluations(bench, options, shown=shown) as observe:
        return Search(bench, options, observe).run()


@contextmanager
def _evaluations(
    bench: Bench, options: SearchOptions, *, shown: bool
) -> Iterator[Callable[[Weights, float], None] | None]:
    """A bar of the mixes that are run, with the best loss so far.

    Yields:
        A function to call with the weights and the loss of each measured mix.
    """
    if not shown:
        yield None
        return
    best = float("inf")
    sides = 1 if bench.retain is None else 2
    # The steps of the gradient are not known beforehand.
    total = None if options.strategy == "gradient" else sides * points_to_measure(bench)
    with progress_bar(
        total=total, desc="searching", unit=" mixes", mininterval=0, shown=True
    ) as bar:

        def observe(weights: Weights, loss: float) -> None:
            nonlocal best
            if loss < best:
                best = loss
                shares = " ".join(f"{weight:.2f}" for weight in weights)
                bar.set_postfix_str(f"best loss {loss:.4f} at {shares}")

        bench.mixture.ran = bar.update
        yield observe


def points_to_measure(bench: Bench) -> int:
    """How many mixes a search runs, as a rule: the ingredients, two averages, and the curve."""
    count = len(bench.mixture.names)
    # Of two models, both ends and the middle of the curve are among those.
    return count + 2 + STEPS - (2 if count == 2 else 0)

"""The public functions that mix, with given weights or with weights found from a few examples."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cocktail.errors import RecipeError
from cocktail.measure.in_memory import ModelInMemory
from cocktail.measure.refillable import search_plan
from cocktail.measure.tasks.examples import ExampleData, RetainedData, source_name
from cocktail.measure.unlabelled import TextData
from cocktail.mix.stream import stream
from cocktail.pipeline import check_threads, checked_plan, measured_plan, mix_to_folder
from cocktail.plan.plan import DEFAULT_SHARD_BYTES, Plan
from cocktail.recipe.recipe import PoolingMode, make_recipe
from cocktail.search.options import SearchOptions, Strategy, base_index
from cocktail.system.heap import trim_heap
from cocktail.system.progress import byte_progress
from cocktail.write.card import Figure
from cocktail.write.place import output_folder
from cocktail.write.push import check_push, push

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from cocktail.measure.bench import Bench
    from cocktail.measure.mixture import Weights

logger = logging.getLogger(__name__)


def mix_models(
    model_names_or_paths: Sequence[str | Path],
    model_type: str,
    weights: Sequence[float] | None = None,
    output_path: str | Path | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: bool = True,
    normalize: bool = False,
    head: str = "error",
    pooling: str | None = None,
    sync: bool = True,
    threads: int | None = None,
    merge_method: str = "linear",
    base_model: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    seed: int = 0,
    data: str | Path | None = None,
    accept_config: Sequence[str] = (),
    push_to_hub: str | None = None,
) -> PreTrainedModel:
    """Mix the weights of models of one architecture; by default theta = sum_i w_i theta_i.

    LM-Cocktail, https://arxiv.org/abs/2311.13534, section 3.

    Args:
        model_names_or_paths: K local folders or Hub ids ``org/name[@revision]``; config, tokenizer
            and other companions come from the first.
        model_type: ``reranker``, ``encoder``, ``decoder`` or ``encoder-decoder``.
        weights: K numbers that sum to 1 within 1e-3; other methods may differ or take none.
        output_path: also write the mix there, as a folder that transformers loads.
        dtype: the mix's dtype; by default each tensor keeps its own, the widest if models differ.
        max_shard_size: the most bytes of one output file, as a number or as text such as ``"5GB"``.
        overwrite: replace an existing model at ``output_path``.
        trust_remote_code: run code that comes with the first model, to build it.
        progress: show a bar on stderr.
        normalize: divide the weights by their sum first.
        head: for a head that only some ingredients have: ``error`` refuses it, ``copy`` takes it
            from its only owner, ``mix`` averages it over its owners, ``drop`` leaves it out.
        pooling: write a sentence-transformers folder with this pooling if the first model is not
            one.
        sync: flush the output to disk before it takes its name.
        threads: how many threads to mix with; the result does not depend on it.
        merge_method: how the weights are combined; ``docs/methods.md`` explains each.
        base_model: what the models were fine-tuned from, for methods that need it.
        parameters: the method's parameters, such as ``{"density": 0.3}``.
        seed: for methods that draw at random.
        data: JSONL file of examples, for methods that weigh the models by them.
        accept_config: keys of ``config.json`` in which the models may differ.
        push_to_hub: ``org/name`` of a repository on the Hub that gets what is written.

    Returns:
        The mixed model in eval mode, on the CPU.

    Raises:
        PlanError: the ingredients, the weights or the output path cannot be used; it gives every
            reason.
        CocktailError: reading, mixing or writing failed; nothing is left behind.
    """
    check_threads(threads)
    recipe = make_recipe(
        model_names_or_paths, weights, model_type=model_type, dtype=dtype, head=head,
        pooling=pooling, normalize=normalize, merge_method=merge_method, base_model=base_model,
        parameters=parameters, seed=seed, data=data, accept_config=accept_config,
    )  # fmt: skip
    output = None if output_path is None else output_folder(output_path)
    plan = checked_plan(recipe, output, max_shard_size=max_shard_size, overwrite=overwrite)
    _check_push(push_to_hub, output)
    return _mixed(
        plan, output, sync=sync, threads=threads, progress=progress,
        trust_remote_code=trust_remote_code, push_to_hub=push_to_hub,
    )  # fmt: skip


def _check_push(repository: str | None, output: Path | None) -> None:
    if repository is None:
        return
    if output is None:
        raise RecipeError(
            "push_to_hub is given without output_path - what is written is pushed - add it"
        )
    check_push(repository)


def _mixed(
    plan: Plan,
    output: Path | None,
    *,
    sync: bool,
    threads: int | None,
    progress: bool,
    trust_remote_code: bool,
    push_to_hub: str | None,
    figures: Sequence[Figure] = (),
) -> PreTrainedModel:
    """The mix of a plan, which is also written and pushed where there is an output.

    Args:
        figures: what was measured on it, for its card.
    """
    memory = ModelInMemory(plan, trust_remote_code=trust_remote_code)
    if output is not None:
        report = mix_to_folder(
            plan, output, sync=sync, threads=threads, progress=progress, memory=memory,
            trust_remote_code=trust_remote_code, figures=figures,
        )  # fmt: skip
        if push_to_hub is not None:
            push(output, push_to_hub)
        return report.model
    with (
        measured_plan(
            plan, None, trust_remote_code=trust_remote_code, threads=threads, progress=progress
        ) as ready,
        byte_progress(plan.output_bytes, "mixing", shown=progress) as advance,
    ):
        stream(ready, memory.write_block, threads=threads, progress=advance)
    return memory.build()


def mix_models_by_layers(
    model_names_or_paths: Sequence[str | Path],
    model_type: str,
    weights: Sequence[float],
    output_path: str | Path | None = None,
    **options: Any,
) -> PreTrainedModel:
    """The same as :func:`mix_models`, which never holds more than one model.

    LM_Cocktail needs two functions: a fast one, and one that fits in memory.
    """
    return mix_models(model_names_or_paths, model_type, weights, output_path, **options)


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
    pooling: PoolingMode | None = None,
    retain_data: RetainedData | None = None,
    retain_text: TextData | None = None,
    base: str | Path | int | None = None,
    head: str = "error",
    trust_remote_code: bool = False,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    sync: bool = True,
    push_to_hub: str | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Mix models with weights found from a few examples; LM_Cocktail's call gives its weights.

    LM-Cocktail, https://arxiv.org/abs/2311.13534, equation 2: softmax(-loss / T) of the individual
    models' losses. Rerankers and encoder-decoders, which LM_Cocktail does not cover, follow the
    same rule with the mean loss over the examples. The weights are logged at level INFO, and
    written to ``cocktail.json`` with the model. Its card has what the search measured, but for
    LM-Cocktail's rule without retain examples, which measures no mix.

    Args:
        example_data, temperature, batch_size, max_input_length, strategy, retain_data, retain_text,
            base, device, options: as in :func:`search_weights`.
        neg_number: negatives to draw from each example; decoders and encoder-decoders have none.
        output_path: also write the mix there, adding ``pooling`` to an encoder that has none.
        dtype, max_shard_size, overwrite, sync, push_to_hub: for the mix, as in
            :func:`cocktail.mix_models`.

    Returns:
        The mixed model in eval mode, on the CPU.

    Raises:
        CocktailError: as :func:`search_weights` and :func:`cocktail.mix_models`, before the search
            where possible.
        KeyboardInterrupt: no model is made from an unfinished search.
    """
    check_threads(threads)
    names = tuple(map(str, model_names_or_paths))
    written_pooling = None if output_path is None else pooling
    recipe = make_recipe(
        names, [1 / len(names)] * len(names), model_type=model_type, dtype=dtype, head=head,
        pooling=written_pooling,
    )  # fmt: skip
    output = None if output_path is None else output_folder(output_path)
    plan = checked_plan(recipe, output, max_shard_size=max_shard_size, overwrite=overwrite)
    _check_push(push_to_hub, output)
    asked = SearchOptions(
        **options, strategy=strategy, temperature=temperature, batch_size=batch_size,
        max_input_length=max_input_length, neg_number=neg_number if plan.kind.ranks else None,
        pooling=pooling, base=base_index(base, names),
    )  # fmt: skip
    asked.check(labelled=retain_data is not None, unlabelled=retain_text is not None)
    weights, figures = _found_weights(
        search_plan(names, model_type, head=head, dtype=asked.model_dtype), example_data,
        retain_data, asked, progress=progress, device=device, trust_remote_code=trust_remote_code,
        threads=threads, retain_text=retain_text,
    )  # fmt: skip
    logger.info("mixing weights: %s", dict(zip(names, weights, strict=True)))
    trim_heap()
    recipe = make_recipe(
        names, weights, model_type=model_type, dtype=dtype, head=head, pooling=written_pooling
    )
    plan = checked_plan(recipe, output, max_shard_size=max_shard_size, overwrite=overwrite)
    return _mixed(
        plan, output, sync=sync, threads=threads, progress=progress,
        trust_remote_code=trust_remote_code, push_to_hub=push_to_hub, figures=figures,
    )  # fmt: skip


def _found_weights(
    plan: Plan,
    data: ExampleData,
    retain_data: RetainedData | None,
    options: SearchOptions,
    *,
    progress: bool,
    retain_text: TextData | None,
    **resources: Any,
) -> tuple[list[float], list[Figure]]:
    """The strategy's weights and what was measured on their mix; the model is released."""
    from cocktail.search.run import search_bench, searched  # noqa: PLC0415 - imports torch

    bench = search_bench(
        plan, data, retain_data, options, retain_text=retain_text, progress=progress, **resources
    )
    if options.strategy == "lm-cocktail" and bench.retain is None:
        return list(map(float, _softmax_alone(bench, options))), []
    result = searched(bench, options, progress=progress)
    if result.interrupted:
        raise KeyboardInterrupt
    general = retain_text if retain_data is None else retain_data
    return list(result.weights), result.figures(source_name(data), source_name(general))


def _softmax_alone(bench: Bench, options: SearchOptions) -> Weights:
    """LM-Cocktail's weights, from one forward for each ingredient and nothing else."""
    from cocktail.measure.mixture import simplex_vertex  # noqa: PLC0415 - imports torch
    from cocktail.search.lm_cocktail import softmax_weights  # noqa: PLC0415
    from cocktail.search.objective import MixObjective  # noqa: PLC0415

    count = len(bench.mixture.names)
    objective = MixObjective(bench.mixture, bench.task)
    vertices = [simplex_vertex(i, count) for i in range(count)]
    for vertex in vertices:
        objective.measure(vertex)  # refuses what is not finite
    rows = [objective.rows(vertex) for vertex in vertices]
    return softmax_weights(bench, rows, options)

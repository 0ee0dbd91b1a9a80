"""Measure every ingredient of a plan on examples, in one model that each refills in turn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from cocktail.checkpoint.model import MAIN
from cocktail.errors import CocktailError, NonFiniteError, OutputError, PlanError
from cocktail.measure.bench import Bench, prepare, read_examples
from cocktail.measure.fisher import fisher_information
from cocktail.measure.gram import gram_groups, input_grams
from cocktail.measure.mixture import Mixture, out_of_memory, simplex_vertex
from cocktail.measure.options import MeasureOptions
from cocktail.measure.refillable import not_refillable
from cocktail.measure.tasks.encoder import choose_pooling
from cocktail.measure.tasks.examples import RankedExample
from cocktail.plan.mixed_tensor import MixedTensor
from cocktail.plan.plan import Plan, build_plan
from cocktail.system.progress import progress_bar
from cocktail.tensors.dtypes import as_bytes
from cocktail.tensors.headers import build_header, read_header
from cocktail.tensors.info import TensorInfo

_MEASURES: Mapping[str, Callable[..., dict[str, Tensor]]] = {
    "fisher": fisher_information,
    "gram": input_grams,
}
_NAMES = {"fisher": "Fisher information", "gram": "Gram matrix of the inputs"}


def measuring_problems(plan: Plan) -> list[str]:
    """Why the ingredients cannot be measured, as far as headers and examples show."""
    recipe = plan.recipe
    problems = []
    found = not_refillable(plan)
    if found is not None:
        problems.append(
            f"{found} - {recipe.merge_method} measures all models in one that is refilled with "
            "whole tensors of each - merge by a method that needs no examples"
        )
    try:
        if plan.kind.name == "encoder":
            choose_pooling(recipe.pooling, plan.donor, {t.part: None for t in plan.tensors})
        examples = read_examples(plan, recipe.data or "", MeasureOptions())
    except CocktailError as error:
        return [*problems, str(error)]
    ranked = [example for example in examples if isinstance(example, RankedExample)]
    if ranked and recipe.method.statistic == "fisher" and not any(e.negatives for e in ranked):
        problems.append(
            f"{recipe.data}: no example has a negative - the loss on a single passage has no "
            "gradient - add passages that do not answer the query ('neg')"
        )
    return problems


def measure(
    plan: Plan,
    folder: Path,
    *,
    trust_remote_code: bool = False,
    threads: int | None = None,
    progress: bool = True,
) -> Plan:
    """Measure the ingredients one after another.

    Args:
        folder: where to store each ingredient's statistics, which the mix reads.
        trust_remote_code: run custom code to build the model and its tokenizer.
        progress: show a bar on stderr.

    Returns:
        The plan with its statistics.

    Raises:
        ExampleError: the examples cannot be used.
        PlanError: the model cannot be built, refilled or measured.
        NonFiniteError: a statistic holds NaN or infinity.
        CocktailError: the device runs out of memory.
        OutputError: the disk is full or failed.
    """
    recipe = plan.recipe
    data = Path(recipe.data or "")
    pooling = recipe.pooling if plan.kind.name == "encoder" else None
    bench = prepare(
        _refillable(plan), data, None, MeasureOptions(pooling=pooling),
        trust_remote_code=trust_remote_code, threads=threads, for_search=False,
    )  # fmt: skip
    parameters = _parameters(bench.mixture, plan)
    by_grams = recipe.method.statistic == "gram"
    groups = gram_groups(bench.mixture.model, parameters) if by_grams else [parameters]
    total = len(plan.ingredients) * len(groups) * len(bench.order)
    with progress_bar(total=total, desc="measuring", unit=" examples", shown=progress) as bar:
        tables = [
            _measured(bench, plan, i, groups, folder, bar.update)
            for i in range(len(plan.ingredients))
        ]
    files = tuple(
        replace(
            file, tensors=tuple(tensor.measured(_of(tensor, tables)) for tensor in file.tensors)
        )
        for file in plan.files
    )
    return replace(plan, files=files, data_sha256=hashlib.sha256(data.read_bytes()).hexdigest())


def _refillable(plan: Plan) -> Plan:
    """The plan of one fp32 model of the same ingredients, which starts as the first."""
    first = (1.0, *(0.0 for _ in plan.ingredients[1:]))
    recipe = replace(
        plan.recipe, weights=first, merge_method="linear", parameters={}, model_parameters=(),
        dtype="F32", model_type=plan.kind.name, pooling=None, tokenizer_source=None, data=None,
        steps=(),
    )  # fmt: skip
    # The results of earlier steps go by name, not by folder.
    folders = {c.reference: c.folder for c in plan.ingredients if c.adaption is None}
    return build_plan(recipe, made=folders)


def _parameters(mixture: Mixture, plan: Plan) -> dict[str, nn.Parameter]:
    """The model's parameter for every tensor that the method makes; for a stored copy of a tied
    embedding, the parameter that it is tied to."""
    named = dict(mixture.model.named_parameters(remove_duplicate=False))
    found = {}
    for tensor in plan.tensors:
        if tensor.part == MAIN and tensor.is_measured:
            parameter = mixture.homes.get(tensor.name, named.get(tensor.name))
            if isinstance(parameter, nn.Parameter) and parameter.shape == tensor.shape:
                found[tensor.name] = parameter
    return found


def _measured(
    bench: Bench,
    plan: Plan,
    ingredient: int,
    groups: Sequence[Mapping[str, nn.Parameter]],
    folder: Path,
    advance: Callable[[], object],
) -> dict[str, TensorInfo]:
    """Store the statistics of one ingredient, and return where each lies, by tensor name."""
    statistic = plan.recipe.method.statistic or ""
    bench.mixture.fill(simplex_vertex(ingredient, len(plan.ingredients)))
    who = plan.ingredients[ingredient].reference
    stored: dict[str, TensorInfo] = {}
    says_something = False
    for number, group in enumerate(groups):
        try:
            found = _MEASURES[statistic](bench.mixture, bench.task, group, advance)
        except torch.cuda.OutOfMemoryError:
            raise out_of_memory(bench.mixture.device, f"the {_NAMES[statistic]}") from None
        says_something |= _says_something(found, f"{who}: the {_NAMES[statistic]}")
        stored |= _store(folder / f"{ingredient}-{number}.safetensors", found)
        del found  # before the next group's are made
    if not says_something:
        raise PlanError(
            [
                f"{who}: the {_NAMES[statistic]} is zero everywhere - the examples say nothing "
                "about this model - give others, or merge by a method that needs no examples"
            ]
        )
    return stored


def _says_something(found: Mapping[str, Tensor], what: str) -> bool:
    """Whether any element is not zero.

    Raises:
        NonFiniteError: one is NaN or infinite.
    """
    says_something = False
    for name, tensor in found.items():
        if not tensor.numel():
            continue
        low, high = torch.aminmax(tensor)  # NaN where an element is
        if not bool(low.isfinite() and high.isfinite()):
            raise NonFiniteError(
                f"{what} of {name} is not finite - models are weighed by it - look at the model "
                "with `cocktail inspect`, or leave the model out"
            )
        says_something |= bool(low or high)
    return says_something


def _store(path: Path, found: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    """Write statistics, shared ones once, and return where each lies.

    Raises:
        OutputError: the disk is full or failed.
    """
    names: dict[int, str] = {}
    for name, tensor in found.items():
        names.setdefault(id(tensor), name)
    shapes = [(name, "F32", tuple(found[name].shape)) for name in names.values()]
    header, _ = build_header(shapes, {})
    try:
        with path.open("wb") as file:
            file.write(header)
            for name in names.values():
                file.write(as_bytes(found[name].reshape(-1).cpu()).data)
    except OSError as error:
        raise OutputError(
            f"{path}: writing statistics failed ({error.strerror}) - they are kept there until "
            "the models are mixed - free some space and run again"
        ) from None
    stored = read_header(path)[0]
    return {name: stored[names[id(tensor)]] for name, tensor in found.items()}


def _of(tensor: MixedTensor, tables: Sequence[Mapping[str, TensorInfo]]) -> list[TensorInfo]:
    """The statistics of a tensor's sources; empty if it has none."""
    if tensor.part != MAIN or tensor.name not in tables[0]:
        return []
    return [tables[source.ingredient][tensor.name] for source in tensor.sources]

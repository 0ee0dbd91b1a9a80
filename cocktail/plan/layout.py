"""Lay out the output: what every tensor is made of, and which file it goes to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from cocktail.checkpoint.model import Checkpoint
from cocktail.errors import PlanError, RecipeError
from cocktail.plan.alignment import Alignment
from cocktail.plan.mixed_tensor import Merge, MixedTensor, OutputFile
from cocktail.recipe.recipe import Recipe
from cocktail.recipe.schedule import layer_depths, unmatched_filters
from cocktail.tensors.dtypes import FLOATING, ITEM_SIZE, widest

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


def parse_size(size: int | str) -> int:
    """Read a number of bytes: ``5GB`` is 5 * 10**9, ``5GiB`` 5 * 2**30.

    Raises:
        RecipeError: it is not a size, or less than one byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", str(size).strip().upper())
    value = float(match[1]) * _UNITS.get(match[2], 0) if match else 0.0
    if not 1 <= value < 2**63:
        raise RecipeError(
            f"max_shard_size is {size!r} - it must be bytes, or text such as 500MB or 5GB - "
            "correct it"
        )
    return int(value)


def lay_out(
    ingredients: Sequence[Checkpoint], aligned: Alignment, recipe: Recipe, shard_bytes: int
) -> tuple[OutputFile, ...]:
    """Make every output tensor, and distribute them to files.

    Raises:
        PlanError: a tensor has no weight, or a filter fits no tensor.
    """
    files: list[OutputFile] = []
    by_part: dict[str, list[MixedTensor]] = {}
    for tensor in _mixed_tensors(aligned, recipe):
        by_part.setdefault(tensor.part, []).append(tensor)
    for path, tensors in by_part.items():
        part = next(c.parts[path] for c in ingredients if path in c.parts)
        if part.file is not None:
            files.append(OutputFile(part.file, tuple(tensors), is_safetensors=False))
            continue
        # Wide types first: every tensor stays aligned to its element size, as safetensors asks.
        tensors.sort(key=lambda tensor: -ITEM_SIZE[tensor.dtype])
        shards = _cut(tensors, shard_bytes)
        for number, shard in enumerate(shards, start=1):
            suffix = "" if len(shards) == 1 else f"-{number:05d}-of-{len(shards):05d}"
            file = (PurePosixPath(part.folder) / f"model{suffix}.safetensors").as_posix()
            files.append(OutputFile(file, tuple(shard), is_safetensors=True))
    return tuple(files)


def _mixed_tensors(aligned: Alignment, recipe: Recipe) -> list[MixedTensor]:
    """Give every tensor its weights, or its method with its options.

    Raises:
        PlanError: a tensor has no weight, or a filter fits no tensor.
    """
    names = [name for _, name in aligned.sources]
    depths = layer_depths(names)
    problems = [
        f"{key} has a filter {text!r} that no tensor's name contains - a filter must be part of a "
        "name - list the names with `cocktail inspect --tensors`"
        for given in (recipe.parameters, *recipe.model_parameters)
        for key, setting in given.items()
        for text in unmatched_filters(setting, names)
    ]
    tensors = []
    for (path, name), sources in aligned.sources.items():
        codes = {source.info.dtype for source in sources}
        code = recipe.dtype or widest(codes) if codes <= FLOATING else next(iter(codes))
        runs = aligned.runs.get((path, name), [])
        shape = sources[aligned.donor if runs else 0].info.shape
        tensor = MixedTensor(path, name, code, shape, sources)
        try:
            if len(sources) == len(recipe.ingredients):
                tensor = _merged(tensor, recipe, depths)
        except RecipeError as error:
            problems.append(str(error))
            continue
        tensors.append(tensor.in_pieces(runs, sources) if runs else tensor)
    if problems:
        raise PlanError(list(dict.fromkeys(problems)))
    return tensors


def _merged(tensor: MixedTensor, recipe: Recipe, depths: Mapping[str, float]) -> MixedTensor:
    """The tensor as the recipe makes it from all ingredients.

    Raises:
        RecipeError: no weight is given for it.
    """
    weights, options = recipe.for_tensor(tensor.name, depths)
    weights = weights or (1.0,) * len(recipe.merged)
    sources = tuple(
        replace(tensor.sources[i], weight=weight)
        for i, weight in zip(recipe.merged, weights, strict=True)
    )
    if recipe.is_weighted_sum:
        return replace(tensor, sources=sources)
    has_base = recipe.base_index is not None and recipe.method.base != "ingredient"
    base = tensor.sources[recipe.base_index or 0] if has_base else None
    return replace(tensor, sources=sources, merge=Merge(recipe.method, options, base, recipe.seed))


def _cut(tensors: Sequence[MixedTensor], shard_bytes: int) -> list[list[MixedTensor]]:
    """Fill shards in order; a tensor larger than a shard gets a shard of its own."""
    shards: list[list[MixedTensor]] = []
    filled = 0
    for tensor in tensors:
        if not shards or filled + tensor.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    return shards

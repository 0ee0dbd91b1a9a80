"""Decide what to write and refuse what cannot be written: from headers, before reading any data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cocktail.checkpoint.architecture import architecture_of, layer_count, looks_loadable
from cocktail.checkpoint.card import licence_note, licences
from cocktail.checkpoint.companions import companion_files, left_behind
from cocktail.checkpoint.detect import kind_of, scoring
from cocktail.checkpoint.kinds import KINDS, LANGUAGE_RERANKER, Kind, kind_problem
from cocktail.checkpoint.model import MAIN, Checkpoint
from cocktail.checkpoint.resolve import resolve
from cocktail.checkpoint.ties import is_quantised, is_tied
from cocktail.errors import CheckpointError, PlanError, RecipeError, counted, listed
from cocktail.plan.align import align_parts
from cocktail.plan.alignment import Alignment
from cocktail.plan.configs import compare_configs, pooling_problems
from cocktail.plan.layout import lay_out, parse_size
from cocktail.plan.mixed_tensor import MixedTensor, OutputFile
from cocktail.plan.tokenizer import choose_tokenizer
from cocktail.plan.vocabularies import Vocabularies, compare_vocabularies
from cocktail.recipe.check import recipe_problems
from cocktail.recipe.recipe import Recipe

DEFAULT_SHARD_BYTES = 5_000_000_000
HALVES_WITHOUT_TORCH = 1 << 31
"""The most fp16 elements to read and write without torch: beyond that, its faster conversions make
up, on two threads, for the second that its import takes."""


@dataclass(frozen=True)
class Plan:
    """Everything known about a mix before its first byte is written.

    Attributes:
        donor: the ingredient that config, tokenizer and other companions come from.
        files: the weights to write.
        companions: files to copy, by their path in the output.
        texts: files to write, by their path in the output; they replace copies.
        notes: decisions that a user may want to know about, one line each.
        data_sha256: that of the examples, once the models have been measured on them.
        overwrite: whether an existing model at the output may be replaced.
    """

    recipe: Recipe
    kind: Kind
    ingredients: tuple[Checkpoint, ...]
    donor: Checkpoint
    files: tuple[OutputFile, ...]
    companions: Mapping[str, Path]
    notes: tuple[str, ...]
    data_sha256: str | None = None
    overwrite: bool = False
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def tensors(self) -> list[MixedTensor]:
        return [tensor for file in self.files for tensor in file.tensors]

    @property
    def pieces(self) -> list[MixedTensor]:
        """The tensors, with those that are joined from pieces replaced by their pieces."""
        return [piece for tensor in self.tensors for piece in tensor.pieces or (tensor,)]

    @property
    def output_bytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    @property
    def input_bytes(self) -> int:
        return sum(s.info.nbytes for piece in self.pieces for s in piece.active)

    @property
    def parameters(self) -> int:
        return sum(tensor.numel for tensor in self.tensors)

    @property
    def dtype(self) -> str:
        """The type that most of the model's parameters are written in."""
        counts: dict[str, int] = {}
        for tensor in self.tensors:
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel
        return max(counts, key=lambda code: counts[code])

    @property
    def is_plain_sum(self) -> bool:
        """Whether the whole mix is made without torch.

        Sums of fp32 and bf16 of any size are. NumPy is slower at fp16, so that a large amount of it
        is worth importing torch.
        """
        if sum(piece.halves for piece in self.pieces) > HALVES_WITHOUT_TORCH:
            return False
        return all(piece.is_plain_sum for piece in self.pieces)

    def block_bytes(self, block: int) -> int:
        """The most bytes that ``block`` elements of any tensor take, as a multiple of eight."""
        largest = max((piece.block_bytes(block) for piece in self.pieces), default=0)
        return math.ceil(largest / 8) * 8

    @property
    def statistics_bytes(self) -> int:
        """The most bytes that are measured of one model before tensors are combined."""
        return 4 * sum(tensor.statistic_numel for tensor in self.tensors)

    def reweighted(self, weights: Sequence[float]) -> Plan:
        """The same plan with other weights, checked like the first; nothing is read again.

        Raises:
            PlanError: their number, their sum or one of them is wrong.
        """
        recipe = replace(self.recipe, weights=tuple(map(float, weights)))
        problems = recipe_problems(recipe)
        if problems:
            raise PlanError(problems)
        files = tuple(
            replace(
                file, tensors=tuple(tensor.reweighted(recipe.weights) for tensor in file.tensors)
            )
            for file in self.files
        )
        return replace(self, recipe=recipe, files=files)

    def with_tensor(self, tensor: MixedTensor) -> Plan:
        """The same plan with this tensor in place of the one with its key."""
        files = tuple(
            replace(file, tensors=tuple(tensor if t.key == tensor.key else t for t in file.tensors))
            for file in self.files
        )
        return replace(self, files=files)

    def index(self, folder: str) -> dict[str, Any] | None:
        """The index of a sharded model; ``None`` if the folder's weights are one file."""
        shards = [f for f in self.files if f.is_safetensors and str(Path(f.path).parent) == folder]
        if len(shards) < 2:
            return None
        return {
            "metadata": {"total_size": sum(shard.nbytes for shard in shards)},
            "weight_map": {t.name: Path(s.path).name for s in shards for t in s.tensors},
        }


def build_plan(
    recipe: Recipe,
    *,
    max_shard_size: int | str = DEFAULT_SHARD_BYTES,
    made: Mapping[str, Path] | None = None,
) -> Plan:
    """Read every ingredient's headers and config, and lay out the output.

    Args:
        max_shard_size: bytes of the largest output file, or text such as ``"5GB"``.
        made: the results of earlier recipes by their names.

    Raises:
        PlanError: with every reason why these ingredients cannot be mixed.
    """
    problems = recipe_problems(recipe)
    shard_bytes = DEFAULT_SHARD_BYTES
    try:
        shard_bytes = parse_size(max_shard_size)
    except RecipeError as error:
        problems.append(str(error))
    ingredients = []
    for reference in recipe.ingredients:
        try:
            folder = (made or {}).get(reference, reference)
            ingredients.append(replace(resolve(folder), reference=reference))
        except CheckpointError as error:
            problems.append(str(error))
    if len(ingredients) < max(2, len(recipe.ingredients)):
        raise PlanError(list(dict.fromkeys(problems)))
    vocabularies = _vocabularies(ingredients, recipe)
    aligned = align_parts(ingredients, recipe, vocabularies)
    donor = ingredients[aligned.donor]
    kind = _kind(recipe.model_type, donor, problems)
    problems += _scoring_problems(kind, donor, ingredients)
    problems += _agreement_problems(ingredients, kind, vocabularies)
    # Where rows are aligned by token, each ingredient may have its own number of tokens.
    free = ("vocab_size",) if vocabularies.grew else ()
    differences = compare_configs(
        [checkpoint.reference for checkpoint in ingredients],
        [_without(checkpoint.config, free) for checkpoint in ingredients],
        recipe.accept_config,
        aligned.donor,
    )
    problems += differences.problems
    tokenizer = choose_tokenizer(recipe, ingredients, donor, vocabularies)
    problems += tokenizer.problems + _layer_problems(recipe, ingredients)
    problems += pooling_problems(ingredients, recipe.pooling)
    problems += aligned.problems or _load_problems(kind, aligned, donor, recipe)
    if problems or kind is None:
        raise PlanError(list(dict.fromkeys(problems)))
    files = lay_out(ingredients, aligned, recipe, shard_bytes)
    adaptions = [c.adaption for c in ingredients if c.adaption is not None]
    notes = (
        *(note for checkpoint in ingredients for note in checkpoint.notes),
        *aligned.notes,
        *differences.notes,
        *tokenizer.notes,
        *recipe.notes(),
        *(note for adaption in adaptions for note in adaption.notes),
        *left_behind(donor),
        *_licence_notes(ingredients),
    )
    companions = companion_files(donor, tokenizer.folder)
    return Plan(
        recipe, kind, tuple(ingredients), donor, files, companions, notes, texts=tokenizer.texts
    )


def _kind(name: str | None, donor: Checkpoint, problems: list[str]) -> Kind | None:
    try:
        kind = _detect(donor, name)
    except PlanError as error:
        problems.append(str(error))
        return None
    problem = kind_problem(kind, donor.config, donor.reference)
    if problem is not None:
        problems.append(problem)
    return kind


def _detect(donor: Checkpoint, name: str | None) -> Kind:
    kind = kind_of(donor, name)
    if kind is None:
        raise PlanError(
            [
                f"{donor.reference}: its config names no architectures - the kind of model must be "
                f"known, one of {', '.join(KINDS)} - give it with --model-type (model_type=)"
            ]
        )
    return kind


def _scoring_problems(
    kind: Kind | None, donor: Checkpoint, ingredients: Sequence[Checkpoint]
) -> list[str]:
    """The config that says how a language model reranks comes from the first ingredient."""
    if kind is None or kind.auto_class != LANGUAGE_RERANKER.auto_class or scoring(donor):
        return []
    told = [other.reference for other in ingredients if scoring(other)]
    if not told:
        return []
    return [
        f"{donor.reference} does not say how it reranks, but {told[0]} does - the mix takes its "
        f"config from the first model - name {told[0]} first"
    ]


def _vocabularies(ingredients: Sequence[Checkpoint], recipe: Recipe) -> Vocabularies:
    source = recipe.tokenizer_source
    chosen = recipe.ingredients.index(source) if source in recipe.ingredients else None
    try:
        return compare_vocabularies(ingredients, chosen)
    except CheckpointError as error:
        return Vocabularies(problems=[str(error)])


def _layer_problems(recipe: Recipe, ingredients: Sequence[Checkpoint]) -> list[str]:
    """Say which models have a different number of layers from the recipe."""
    if recipe.layers is None:
        return []
    return [
        f"{checkpoint.reference} has {counted(count, 'layer')}, but the recipe's slices cover "
        f"{recipe.layers} - only whole models are merged - let the slices cover all layers, or use "
        "models"
        for checkpoint in ingredients
        if (count := layer_count(checkpoint.config)) not in (None, recipe.layers)
    ]


def _agreement_problems(
    ingredients: Sequence[Checkpoint], kind: Kind | None, vocabularies: Vocabularies
) -> list[str]:
    names = [checkpoint.reference for checkpoint in ingredients]
    configs = [checkpoint.config for checkpoint in ingredients]
    problems = [
        f"{name} is quantised - packed weights cannot be averaged - mix the original precision "
        "and quantise the result"
        for name, config in zip(names, configs, strict=True)
        if is_quantised(config)
    ]
    ties = [config.get("tie_word_embeddings") for config in configs]
    if any(tie is not None for tie in ties):
        ties = [is_tied(config) for config in configs]
    if True in ties and False in ties and kind is not None and kind.ties_embeddings:
        problems.append(
            f"{names[ties.index(True)]} ties its output embedding to the input, but "
            f"{names[ties.index(False)]} does not - a mix can do only one of these - untie the "
            "first (save it with both embeddings), or mix checkpoints that agree"
        )
    return problems + vocabularies.problems


def _without(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def _licence_notes(ingredients: Sequence[Checkpoint]) -> list[str]:
    found = {k: v for checkpoint in ingredients for k, v in licences(checkpoint).items()}
    note = licence_note(found)
    return [] if note is None else [note]


def _load_problems(
    kind: Kind | None, aligned: Alignment, donor: Checkpoint, recipe: Recipe
) -> list[str]:
    """Say what a loader would initialise at random because the mix lacks it."""
    names = [name for part, name in aligned.sources if part == MAIN]
    if not names:
        return ["the ingredients have no tensor in common - mix checkpoints of one base"]
    has_head = kind is None or _has_head(kind, names, donor)
    asked = aligned.architecture
    if asked is None and not (has_head and looks_loadable(names, donor.config)):
        asked = architecture_of(donor.config)
    if asked is None:
        return [] if has_head or kind is None else [_no_head(kind, kind.heads)]
    if recipe.head == "drop":
        return []
    unfilled = [name for name in asked.unfilled(names) if "pooler." not in name]
    heads = [name for name in unfilled if asked.has_prefix and not name.startswith(asked.prefix)]
    if not has_head and kind is not None and (heads or not asked.has_prefix) and unfilled:
        return [_no_head(kind, heads or unfilled)]
    unknown = [name for name in names if asked.place(name) is None and not asked.is_ignored(name)]
    if unfilled and unknown:
        return [
            f"{asked.name}, the class that the config names, has no place for {len(unknown)} of "
            f"{len(names)} tensors ({listed(unknown, 3)}) and would initialise {len(unfilled)} "
            f"others at random ({listed(unfilled, 3)}) - a mix must load in its class - save "
            "the models with save_pretrained()"
        ]
    if unfilled:
        aligned.notes.append(
            f"no ingredient has {listed(unfilled, 3)}; loading the mix initialises "
            f"{'it' if len(unfilled) == 1 else 'them'} at random, as loading an ingredient does"
        )
    return []


def _has_head(kind: Kind, names: Sequence[str], donor: Checkpoint) -> bool:
    """Whether the names include the head that this kind needs, or its class makes one."""
    if not kind.heads or any(name.split(".")[0] in kind.heads for name in names):
        return True
    if "auto_map" in donor.config:
        return True  # custom code may call its head anything
    return kind.ties_embeddings and is_tied(donor.config) is not False


def _no_head(kind: Kind, heads: Sequence[str]) -> str:
    return (
        f"no ingredient has a head for {kind.name} models ({listed(heads, 4)}) - the mix would get "
        "a random one - fine-tune a model first, or name the right model_type"
    )

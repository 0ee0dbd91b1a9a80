"""The calls that users make: mix to a folder, mix into a model, verify."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cocktail.card import (
    PROVENANCE_FILE,
    file_metadata,
    model_card,
    provenance,
    token_width,
)
from cocktail.errors import PlanError
from cocktail.loading import ModelInMemory
from cocktail.mix import Digests, stream
from cocktail.plan import DEFAULT_SHARD_BYTES, MixedTensor, Plan, build_plan
from cocktail.pooling import write_modules
from cocktail.progress import byte_progress
from cocktail.recipe import Recipe, make_recipe
from cocktail.write import StagedModel, output_problems

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class MixReport:
    """What a mix did.

    Attributes:
        output: the folder that was written.
        digest: of the mixed tensors; the same weights have the same digest in any sharding.
        seconds: ``plan`` (headers and checks), ``mix`` (read, mix, write), ``sync`` (flush to disk
            and rename), ``total``.
        model: what was built from ``memory``, if it was given.
    """

    plan: Plan
    output: Path
    digest: str
    seconds: Mapping[str, float]
    model: PreTrainedModel | None = None


def checked_plan(
    recipe: Recipe,
    output: Path | None,
    *,
    max_shard_size: int | str = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
) -> Plan:
    """Build the plan and check the output path, with all problems of both in one error.

    Raises:
        PlanError: with every reason why this cannot be mixed or written.
    """
    problems: list[str] = []
    plan = None
    try:
        plan = build_plan(recipe, max_shard_size=max_shard_size)
    except PlanError as error:
        problems += error.problems
    if output is not None:
        folders = (
            {checkpoint.reference: checkpoint.folder for checkpoint in plan.ingredients}
            if plan
            else {name: Path(name) for name in recipe.models if Path(name).is_dir()}
        )
        needed = plan.output_bytes if plan else 0
        problems += output_problems(output, folders, needed, overwrite=overwrite)
    if plan is None or problems:
        raise PlanError(problems)
    return plan


def mix_to_folder(
    plan: Plan,
    output: Path,
    *,
    sync: bool = True,
    threads: int | None = None,
    progress: bool = True,
    memory: ModelInMemory | None = None,
    trust_remote_code: bool = False,
) -> MixReport:
    """Run a plan and write the complete model.

    Args:
        sync: flush everything to disk before the new folder takes the output's name.
        threads: of the engine; the result does not depend on it.
        progress: show a bar on stderr.
        memory: a model to fill with the same blocks; it is built before the output takes its name,
            so that what cannot be loaded is not left on disk.
        trust_remote_code: to build it.

    Raises:
        OutputError: the disk is full or failed; the old output is untouched.
        NonFiniteError: a mixed tensor holds NaN or infinity; nothing was written.
    """
    started = time.perf_counter()
    with StagedModel(plan, output, sync=sync) as staged:
        staged.lay_out(file_metadata(plan))

        def both(tensor: MixedTensor, start: int, block: torch.Tensor) -> None:
            staged.write_block(tensor, start, block)
            if memory is not None:
                memory.write_block(tensor, start, block)

        with byte_progress(plan.output_bytes, "mixing", shown=progress) as advance:
            digests = stream(plan, both, threads=threads, progress=advance)
        mixed = time.perf_counter()
        digest = _write_rest(staged, digests)
        model = None if memory is None else memory.build(trust_remote_code=trust_remote_code)
        staged.commit()
    done = time.perf_counter()
    seconds = {"mix": mixed - started, "sync": done - mixed, "total": done - started}
    return MixReport(plan, output, digest, seconds, model)


def _write_rest(staged: StagedModel, digests: Digests) -> str:
    plan = staged.plan
    staged.write_companions()
    if plan.recipe.pooling is not None and not (staged.folder / "modules.json").exists():
        write_modules(staged.folder, plan.recipe.pooling, token_width(plan))
    record = provenance(plan, digests)
    staged.write_json(PROVENANCE_FILE, record)
    staged.write_text("README.md", model_card(plan))
    return str(record["output"]["digest"])


def mix_models(
    model_names_or_paths: Sequence[str | Path],
    model_type: str,
    weights: Sequence[float],
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
) -> PreTrainedModel:
    """Average the weights of models of one architecture: theta = sum_i w_i theta_i.

    LM-Cocktail, https://arxiv.org/abs/2311.13534, section 3.

    Args:
        model_names_or_paths: K local folders or Hub ids ``org/name[@revision]``; config, tokenizer
            and other companions come from the first.
        model_type: ``reranker``, ``encoder``, ``decoder`` or ``encoder-decoder``.
        weights: K numbers that sum to 1 within 1e-3.
        output_path: also write the mix there, as a folder that transformers loads.
        dtype: of the mix; by default each tensor keeps its type, the widest one if they differ.
        max_shard_size: of one output file, in bytes or as text such as ``"5GB"``.
        overwrite: replace a model that stands at ``output_path``.
        trust_remote_code: run code that comes with the first model, to build it.
        progress: show a bar on stderr.
        normalize: divide the weights by their sum first.
        head: for a head that only one ingredient has: ``error``, ``copy`` it whole, ``drop`` it.
        pooling: make a sentence-transformers folder with this pooling if the first is none.
        sync: flush the output to disk before it takes its name.
        threads: of the engine; the result does not depend on it.

    Returns:
        The mixed model in eval mode, on the CPU.

    Raises:
        PlanError: the ingredients, the weights or the output path cannot be used; every reason.
        CocktailError: reading, mixing or writing failed; nothing is left behind.
    """
    recipe = make_recipe(
        model_names_or_paths, weights, model_type=model_type, dtype=dtype, head=head,
        pooling=pooling, normalize=normalize,
    )  # fmt: skip
    output = None if output_path is None else Path(output_path)
    plan = checked_plan(recipe, output, max_shard_size=max_shard_size, overwrite=overwrite)
    memory = ModelInMemory(plan)
    if output is not None:
        report = mix_to_folder(
            plan, output, sync=sync, threads=threads, progress=progress, memory=memory,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        return report.model
    with byte_progress(plan.output_bytes, "mixing", shown=progress) as advance:
        stream(plan, memory.write_block, threads=threads, progress=advance)
    return memory.build(trust_remote_code=trust_remote_code)


def mix_models_by_layers(
    model_names_or_paths: Sequence[str | Path],
    model_type: str,
    weights: Sequence[float],
    output_path: str | Path | None = None,
    **options: Any,
) -> PreTrainedModel:
    """The same as :func:`mix_models`, which already holds one model at most.

    LM_Cocktail needs two functions, a fast one and one that fits in memory.
    """
    return mix_models(model_names_or_paths, model_type, weights, output_path, **options)

"""The path of every mix: recipe, plan, measure, stream, folder."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cocktail.checkpoint.folder import local_folder
from cocktail.checkpoint.resolve import resolve
from cocktail.errors import PlanError, RecipeError
from cocktail.mix.digests import checkpoint_digest
from cocktail.mix.stream import Digests, stream
from cocktail.plan.mixed_tensor import MixedTensor
from cocktail.plan.plan import DEFAULT_SHARD_BYTES, Plan, build_plan
from cocktail.recipe.recipe import Recipe
from cocktail.system.progress import byte_progress
from cocktail.system.temporary import temporary_parts
from cocktail.write.card import CURVE_PICTURE, Figure, model_card
from cocktail.write.modules import token_width, write_modules
from cocktail.write.place import linked_folders, output_problems
from cocktail.write.provenance import PROVENANCE_FILE, file_metadata, provenance
from cocktail.write.staged import StagedModel, disk_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from cocktail.measure.in_memory import ModelInMemory
    from cocktail.tensors.dtypes import Bytes


_PLAIN_NAME = re.compile(r"[^\W_][\w .-]{0,63}")


@dataclass(frozen=True)
class MixReport:
    """What a mix did.

    Attributes:
        output: the folder that was written.
        digest: that of the mixed tensors; equal weights have equal digests, however sharded.
        seconds: ``plan`` (headers and checks), ``mix`` (read, mix, write), ``sync`` (flush to disk
            and rename), ``total``.
        model: the model built from ``memory``, if that was given.
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
    made: Mapping[str, Path] | None = None,
) -> Plan:
    """Build the plan and check the output path, reporting all problems of both in one error.

    Raises:
        PlanError: giving every reason why this cannot be mixed or written.
    """
    problems: list[str] = []
    plan = None
    try:
        plan = build_plan(recipe, max_shard_size=max_shard_size, made=made)
    except PlanError as error:
        problems += error.problems
    if plan is not None and plan.recipe.method.statistic is not None:
        from cocktail.measure.statistics import measuring_problems  # noqa: PLC0415 - runs models

        problems += measuring_problems(plan)
    if output is not None:
        folders = (
            {k: v for c in plan.ingredients for k, v in (c.origins | linked_folders(c)).items()}
            if plan
            else {name: place for name in recipe.ingredients if (place := local_folder(name))}
        )
        needed = 0
        if plan is not None:
            needed = disk_bytes(plan) + len(plan.ingredients) * plan.statistics_bytes
        problems += output_problems(output, folders, needed, overwrite=overwrite)
    if plan is None or problems:
        raise PlanError(problems)
    return replace(plan, overwrite=overwrite)


def mix_to_folder(
    plan: Plan,
    output: Path,
    *,
    sync: bool = True,
    threads: int | None = None,
    progress: bool = True,
    memory: ModelInMemory | None = None,
    trust_remote_code: bool = False,
    figures: Sequence[Figure] = (),
    picture: Path | None = None,
    calibrate: Callable[[Path], Mapping[str, Any]] | None = None,
) -> MixReport:
    """Run a plan and write the complete model.

    Args:
        sync: flush everything to disk before the new folder takes the output's name.
        threads: how many threads to mix with; the result does not depend on it.
        progress: show a bar on stderr.
        memory: a model to fill with the same blocks; it is built before the output takes its name,
            so that a model that cannot be loaded is not left on disk.
        trust_remote_code: run custom code to build it.
        figures: what was measured on the mix, for its card.
        picture: a PNG of the measured curve, to show on the card.
        calibrate: changes the weights of the complete model in a folder, before it takes the
            output's name; what it returns is recorded with the mix.

    Raises:
        OutputError: the disk is full or failed, or something has appeared at the output since the
            plan was made; what exists there is untouched.
        NonFiniteError: a mixed tensor holds NaN or infinity; nothing was written.
    """
    started = time.perf_counter()
    with (
        measured_plan(
            plan, output, trust_remote_code=trust_remote_code, threads=threads, progress=progress
        ) as ready,
        StagedModel(ready, output, sync=sync) as staged,
    ):
        staged.lay_out(file_metadata(plan))

        def both(tensor: MixedTensor, start: int, block: Bytes) -> None:
            staged.write_block(tensor, start, block)
            if memory is not None:
                memory.write_block(tensor, start, block)

        with byte_progress(plan.output_bytes, "mixing", shown=progress) as advance:
            forks = memory is None and staged.is_on_disk
            digests = stream(ready, both, threads=threads, progress=advance, forks=forks)
        for tensor in plan.tensors:
            if tensor.pieces:
                digests.outputs[tensor.key] = staged.read_digest(tensor)
        mixed = time.perf_counter()
        if picture is not None:
            shutil.copyfile(picture, staged.folder / CURVE_PICTURE)
        card = model_card(plan, figures, has_picture=picture is not None)
        digest = _write_rest(staged, digests, card, calibrate)
        model = None if memory is None else memory.build()
        staged.commit()
    done = time.perf_counter()
    seconds = {"mix": mixed - started, "sync": done - mixed, "total": done - started}
    return MixReport(plan, output, digest, seconds, model)


@contextmanager
def measured_plan(
    plan: Plan,
    output: Path | None,
    *,
    trust_remote_code: bool,
    threads: int | None,
    progress: bool,
) -> Iterator[Plan]:
    """The plan with the statistics that its method needs, in files that are removed at the end:
    beside the output or, without one, among the system's temporary files."""
    if plan.recipe.method.statistic is None:
        yield plan
        return
    from cocktail.measure.statistics import measure  # noqa: PLC0415 - runs models

    place = Path(tempfile.gettempdir(), "mix") if output is None else output
    with temporary_parts(place, "statistics") as folder:
        yield measure(
            plan, folder, trust_remote_code=trust_remote_code, threads=threads, progress=progress
        )


def mix_recipe(
    recipe: Recipe,
    output: Path,
    *,
    max_shard_size: int | str = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    sync: bool = True,
    threads: int | None = None,
    progress: bool = True,
) -> MixReport:
    """Run a recipe, and before it the steps that it builds on.

    The results of the steps are models in a temporary folder beside the output, which is removed at
    the end.

    Raises:
        PlanError: giving every reason why one of them cannot be mixed or written.
        CocktailError: as :func:`mix_to_folder`.
    """
    check_threads(threads)
    names = _step_names(recipe.steps)
    made: dict[str, Path] = {}
    with ExitStack() as stack:
        if recipe.steps:
            parts = stack.enter_context(temporary_parts(output))
        for name, step in zip(names, recipe.steps, strict=True):
            plan = checked_plan(step, parts / name, made=made)
            made[name] = parts / name
            mix_to_folder(plan, made[name], sync=False, threads=threads, progress=progress)
        plan = checked_plan(
            recipe, output, max_shard_size=max_shard_size, overwrite=overwrite, made=made
        )
        return mix_to_folder(plan, output, sync=sync, threads=threads, progress=progress)


def check_threads(threads: int | None) -> None:
    if threads is not None and (not isinstance(threads, int) or threads < 0):
        raise RecipeError(
            f"threads are {threads!r} - they must be a whole number, 0 for one per processor - "
            "correct them"
        )


def _step_names(steps: Sequence[Recipe]) -> list[str]:
    """The names of the steps' results, which are also those of their folders.

    Raises:
        RecipeError: a name is missing, duplicate, or not a plain name.
    """
    names: list[str] = []
    for step in steps:
        if step.name is None or step.name in names:
            raise RecipeError(
                f"a recipe before the last is called {step.name!r} - later ones refer to its "
                "result by a unique name - give it one (name:)"
            )
        if not _PLAIN_NAME.fullmatch(step.name):
            raise RecipeError(
                f"a recipe is called {step.name!r} - a name is made of letters, digits, spaces, "
                "'.', '-' and '_', and starts with a letter or digit - give it another (name:)"
            )
        names.append(step.name)
    return names


def _write_rest(
    staged: StagedModel,
    digests: Digests,
    card: str,
    calibrate: Callable[[Path], Mapping[str, Any]] | None,
) -> str:
    plan = staged.plan
    staged.write_companions()
    if plan.recipe.pooling is not None and not (staged.folder / "modules.json").exists():
        write_modules(staged.folder, plan.recipe.pooling, token_width(plan))
    record = provenance(plan, digests)
    if calibrate is not None:
        record["calibration"] = calibrate(staged.folder)
        record["output"]["digest"] = checkpoint_digest(resolve(staged.folder), (), lambda _: None)
    staged.write_json(PROVENANCE_FILE, record)
    staged.write_text("README.md", card)
    return str(record["output"]["digest"])

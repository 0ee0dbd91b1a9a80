"""Open a PEFT adapter on its base as one ingredient, without merging the two.

The tensors of the result are the base's, in the base's files. Those that the adapter changes carry
the change and are read with it; those that were trained in full come from the adapter's file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cocktail.checkpoint.adapter.config import LoraConfig, read_adapter_config
from cocktail.checkpoint.adapter.tensors import JoinedTensors, join_tensors, read_stored
from cocktail.checkpoint.adapter.view import fitted_config, make_view, own_config
from cocktail.checkpoint.folder import local_folder, locate, module_folders
from cocktail.checkpoint.hub import parse_identifier
from cocktail.checkpoint.kinds import KINDS
from cocktail.checkpoint.model import MAIN, Adaption, Checkpoint, Part, with_commit
from cocktail.checkpoint.ties import INPUT_EMBEDDINGS, OUTPUT_EMBEDDINGS, is_quantised, is_tied
from cocktail.checkpoint.weight_files import ADAPTER_CONFIG, INDEX, WHOLE
from cocktail.checkpoint.whole import module_parts, open_whole
from cocktail.errors import CheckpointError, listed
from cocktail.tensors.dtypes import FLOATING
from cocktail.tensors.reading import equal_tensors

# Pretraining heads, for which a class with a head of its own has no use.
_PRETRAINING_HEAD = re.compile(
    r"(cls|lm_head|embed_out|vocab_transform|vocab_layer_norm|vocab_projector|"
    r"discriminator_predictions|generator_predictions|generator_lm_head)\..+|decoder\.(weight|bias)"
)


def _is_output(name: str) -> bool:
    return name.endswith(OUTPUT_EMBEDDINGS)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter and no model of its own."""
    return (folder / ADAPTER_CONFIG).is_file() and not any(
        (folder / f"{name}{end}").is_file() for name in WHOLE for end in ("", INDEX)
    )


def split_pair(text: str) -> tuple[str, str] | None:
    """Split ``BASE+ADAPTER``; ``None`` where ``text`` is a folder or not such a pair."""
    if local_folder(text) is not None:
        return None
    pairs = [(text[: m.start()], text[m.end() :]) for m in re.finditer(r"(?<=.)\+(?=.)", text)]
    best = max(pairs, key=_standing, default=None)
    return best if best is not None and _standing(best)[1] else None


def _standing(pair: tuple[str, str]) -> tuple[int, int]:
    """Score how far each side looks like a model (folder 2, id 1): the lower score, and the sum."""
    sides = [
        2 if local_folder(side) is not None else int(parse_identifier(side) is not None)
        for side in pair
    ]
    return min(sides), sum(sides)


def open_adapter(text: str, base_reference: str | None, reference: str) -> Checkpoint:
    """Open an adapter on its base, from headers and configs alone.

    Args:
        text: the reference that the result is known by.
        base_reference: ``None`` to take the base that the adapter's config names.

    Raises:
        CheckpointError: the base or the adapter cannot be opened, or the two do not fit.
    """
    folder, commit = locate(reference)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{reference}: has no {ADAPTER_CONFIG} - a PEFT adapter must follow the + - check "
            "the path"
        )
    lora = read_adapter_config(folder)
    stored = read_stored(folder)
    base = _open_base(base_reference or lora.base, reference)
    joined = join_tensors(base, stored, lora, reference)
    _require_untouched_ties(base, joined, lora, reference)
    added = {name: joined.tensors[name] for name in joined.added}
    config = fitted_config(own_config(base, folder), lora, added, reference)
    parts, notes = _parts(base, folder, joined, drop_heads=_names_other_class(base, config))
    view = make_view(base, folder, parts[MAIN].folder, config)
    adaption = Adaption(base, with_commit(reference, commit), folder, view, notes)
    return Checkpoint(text, view.folder, None, config, parts, adaption)


def _open_base(reference: str | None, adapter: str) -> Checkpoint:
    if reference is None:
        raise CheckpointError(
            f"{adapter}: its {ADAPTER_CONFIG} names no base_model_name_or_path - an adapter is "
            f"added to its base - name it: BASE+{adapter}"
        )
    try:
        folder, commit = locate(reference)
        if is_adapter(folder):
            raise CheckpointError(
                f"{reference}: is an adapter itself - an adapter is added to a whole model - merge "
                "it with merge_and_unload() first"
            )
        base = open_whole(reference, folder, commit)
    except CheckpointError as error:
        raise CheckpointError(f"the base of {adapter} cannot be opened: {error}") from None
    if is_quantised(base.config) or not all(
        info.dtype in FLOATING
        for name, info in base.parts[MAIN].tensors.items()
        if name.endswith(".weight")
    ):
        raise CheckpointError(
            f"{reference}: is quantised - an adapter is added to weights in their original "
            f"precision - name the model it was quantised from: BASE+{adapter}"
        )
    return base


def _names_other_class(base: Checkpoint, config: Mapping[str, Any]) -> bool:
    return bool(config.get("architectures") != base.config.get("architectures"))


def _require_untouched_ties(
    base: Checkpoint, joined: JoinedTensors, lora: LoraConfig, adapter: str
) -> None:
    """Refuse a change to only one of two tied embeddings: a loader would tie them again."""
    before = base.parts[MAIN].tensors
    ties = is_tied(base.config) is not False and not any(map(_is_output, before))
    architectures = base.config.get("architectures") or ()
    ends = tuple(
        end for kind in KINDS.values() if kind.ties_embeddings for end in kind.architectures
    )
    if not ties or lora.ties_embeddings or not any(str(a).endswith(ends) for a in architectures):
        return
    untied = [
        name
        for name, info in joined.tensors.items()
        if _is_output(name)
        or (
            name.endswith(INPUT_EMBEDDINGS)
            and info.file != before[name].file
            and not equal_tensors(before[name], replace(info, delta=None))
        )
    ]
    if untied:
        raise CheckpointError(
            f"{adapter}: changes only {listed(untied)}, but {base.reference} ties its input and "
            "output embeddings - a loader would tie them again - save the base with both, and with "
            "tie_word_embeddings false in its config"
        )


def _parts(
    base: Checkpoint, folder: Path, joined: JoinedTensors, *, drop_heads: bool
) -> tuple[dict[str, Part], tuple[str, ...]]:
    """The parts of the ingredient, and a note about what is left out.

    Args:
        drop_heads: the class differs from the base's and lacks its pretraining head.
    """
    main = base.parts[MAIN]
    others = {path: part for path, part in base.parts.items() if path != MAIN}
    place = main.folder
    if (folder / "modules.json").is_file():
        modules = module_folders(folder)
        others = {path: part for path, part in others.items() if part.file is not None}
        others |= module_parts(folder, modules)
        place = modules[0]
    unused = [
        name
        for name in joined.tensors
        if drop_heads
        and name not in joined.added
        and _PRETRAINING_HEAD.fullmatch(name.removeprefix(joined.prefix))
    ]
    tensors = {name: info for name, info in joined.tensors.items() if name not in unused}
    aliases = {
        joined.prefix + alias: joined.prefix + name
        for alias, name in main.aliases.items()
        if joined.prefix + name in tensors
    }
    notes = (
        (
            f"{base.reference}: its pretraining head ({listed(unused)}) has no place beside the "
            "adapter's own head; left out",
        )
        if unused
        else ()
    )
    return {MAIN: replace(main, folder=place, tensors=tensors, aliases=aliases), **others}, notes

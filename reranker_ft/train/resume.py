"""Choose the checkpoint to go on from: which one is whole, and whether it fits the model."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from reranker_ft.errors import ArgumentError
from reranker_ft.train.output_folder import holds_weights

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
# What decides the shapes of a model, or how its numbers are read.
SIZES = (
    *("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "max_position_embeddings", "type_vocab_size"),
)


def checkpoint_to_resume(wanted: str | None, output: Path, *, sharded: bool = False) -> Path | None:
    """Return the folder that --resume_from_checkpoint means; ``True`` is the last whole one.

    Args:
        sharded: Whether FSDP or DeepSpeed keep the weights, in files of their own.

    Raises:
        ArgumentError: There is none, or it is not whole.
    """
    if wanted is None or str(wanted).lower() in ("false", "none", ""):
        return None
    if str(wanted).lower() not in ("true", "last"):
        defect = _defect(Path(wanted), sharded=sharded)
        if defect:
            raise ArgumentError(
                f"{wanted} is not a checkpoint ({defect}) - resuming needs a folder that a run "
                "saved to its end - name another checkpoint-* folder"
            )
        return Path(wanted)
    defects: list[str] = []
    for folder in _newest_first(output):
        defect = _defect(folder, sharded=sharded)
        if defect is None:
            if defects:
                logger.warning("Left out %s: going on from %s.", "; ".join(defects), folder.name)
            return folder
        defects.append(f"{folder.name} ({defect})")
    found = f"no whole checkpoint: {'; '.join(defects)}" if defects else "no checkpoint"
    raise ArgumentError(
        f"resume_from_checkpoint is {wanted} and {output} holds {found} - only a run that saved "
        "one can be resumed - leave the flag out to start anew"
    )


def _newest_first(output: Path) -> list[Path]:
    found = output.iterdir() if output.is_dir() else ()
    folders = [path for path in found if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(folders, key=lambda path: -int(path.name.split("-")[1]))


def _defect(folder: Path, *, sharded: bool) -> str | None:
    """Return what is missing or broken, as far as names and headers tell; else ``None``.

    The state is written last, so that what has it was saved to the end.
    """
    try:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = "no" if isinstance(error, FileNotFoundError | NotADirectoryError) else "a broken"
        return f"it has {found} {STATE_FILE}"
    if not isinstance(state, dict) or "global_step" not in state:
        return f"it has a broken {STATE_FILE}"
    if sharded:
        return None
    if not holds_weights(folder):
        return "it has no weights"
    try:
        dict(_shapes(folder))
    except (OSError, SafetensorError):
        return "its weights are cut off or broken"
    return None


def _shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Return names and shapes of the stored tensors, from the headers of the files."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                yield name, tuple(file.get_slice(name).get_shape())


def require_fit(folder: Path, model: nn.Module, *, adapters: bool) -> None:
    """Refuse a checkpoint of another model before anything of it is loaded.

    Args:
        adapters: Whether LoRA adapters are trained; ``model`` then has them.

    Raises:
        ArgumentError: The checkpoint was saved of a model of another kind or size.
    """
    stored = (folder / "adapter_config.json").is_file()
    if stored != adapters:
        kinds = {True: "adapters (--use_lora)", False: "a whole model"}
        raise _misfit(folder, f"it holds {kinds[stored]} and {kinds[adapters]} would be trained")
    if not adapters:
        for name, theirs, ours in _differing_sizes(folder, model):
            raise _misfit(folder, f"its {name} is {theirs} and the model's is {ours}")
    saved, found = _saved(model, adapters), dict(_shapes(folder))
    for name in sorted(found.keys() & saved.keys()):
        ours = tuple(saved[name].shape)
        if found[name] != ours:
            raise _misfit(folder, f"its {name} is {found[name]} and the model's is {ours}")
    stored_once = {saved[name].data_ptr() for name in found.keys() & saved.keys()}
    unlike = found.keys() - saved.keys()
    unlike |= {name for name in saved.keys() - found if saved[name].data_ptr() not in stored_once}
    if found and unlike:
        raise _misfit(folder, f"{len(unlike)} tensors have no counterpart, like {min(unlike)}")


def _misfit(folder: Path, found: str) -> ArgumentError:
    return ArgumentError(
        f"{folder} does not fit the model: {found} - a resumed run needs the model that it began "
        "with - name that model, or leave out --resume_from_checkpoint"
    )


def _differing_sizes(folder: Path, model: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, the checkpoint's value and the model's where their configs disagree."""
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # the Trainer says what it misses
    if stored.get("model_type") != model.config.model_type:
        yield "model_type", stored.get("model_type"), model.config.model_type
        return
    theirs = type(model.config).from_dict(stored)  # knows the other names of these sizes
    for name in SIZES:
        values = getattr(theirs, name, None), getattr(model.config, name, None)
        if values[0] != values[1]:
            yield name, *values


def _saved(model: nn.Module, adapters: bool) -> dict[str, Any]:
    """Return the tensors that a checkpoint of this model holds."""
    if not adapters:
        return model.state_dict()
    from peft import get_peft_model_state_dict  # noqa: PLC0415 - optional

    return get_peft_model_state_dict(model)  # type: ignore[no-any-return]

"""Guard the output folder of a training run: what may be replaced there, and when."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    ADAPTER_WEIGHTS_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_NAME,
)

from reranker_ft.errors import ArgumentError
from reranker_ft.train.history import HISTORY_FILE, PICTURE_FILE

WHOLE_MODEL = re.compile(
    "|".join(
        rf"{stem}(-\d+-of-\d+)?\.{end}|{stem}\.{end}\.index\.json"
        for stem, end in (name.split(".") for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME))
    )
)
ADAPTERS = re.compile(
    "|".join((ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME, ADAPTER_CONFIG_NAME))
)
# Where a run that keeps general ability puts the fine-tune, the examples that the mix was chosen
# by, and the report on the choice.
FINE_TUNED = "fine-tuned"
HELD_OUT = "held-out.jsonl"
KEPT = "kept.jsonl"
CHOICE_REPORT = "report"
# What a training run leaves in its output folder, and another one may not take for its own.
RUN_OUTPUTS = re.compile(
    rf"checkpoint-\d+|{WHOLE_MODEL.pattern}|{ADAPTERS.pattern}|training_args\.bin|chat_template\.jinja"
    rf"|{re.escape(HISTORY_FILE)}|{re.escape(PICTURE_FILE)}"
    rf"|{FINE_TUNED}|{re.escape(HELD_OUT)}|{re.escape(KEPT)}|{CHOICE_REPORT}|cocktail\.json|curve\.png"
)


def check_output(
    output: Path, model: str, inputs: Iterable[str | Path], *, overwrite: bool, resuming: bool
) -> None:
    """Make sure that writing into the folder loses nothing that is needed or not given up.

    Args:
        model: Where the run starts from.
        inputs: What else the run reads.

    Raises:
        ArgumentError: It would.
    """
    if output.exists() and not output.is_dir():
        raise ArgumentError(
            f"output_dir {output} is a file - it must be a folder - use another path"
        )
    if output.resolve() == Path(model).resolve():
        raise ArgumentError(
            f"output_dir {output} is the model itself - a run does not overwrite its model - use "
            "another folder"
        )
    holder = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not os.access(holder, os.W_OK | os.X_OK):
        raise ArgumentError(
            f"output_dir {output} cannot be written: {holder} does not permit it - a run needs "
            "write permission - change it, or use another folder"
        )
    if resuming or not output.is_dir():
        return
    if not overwrite:
        if any(output.iterdir()):
            raise ArgumentError(
                f"output_dir {output} is not empty - the files of two runs are not mixed - use "
                "a new folder, --overwrite_output_dir, or --resume_from_checkpoint True"
            )
        return
    removed = {path.resolve() for path in _matching(output, RUN_OUTPUTS)}
    for path in (model, *inputs):
        place = Path(path).resolve()
        if removed & {place, *place.parents}:
            raise ArgumentError(
                f"{path} is read by this run and --overwrite_output_dir would remove it - a run "
                "never removes what it reads - use another output_dir"
            )


class OutputCallback(TrainerCallback):  # type: ignore[misc]
    """Clears the output folder as late as can be: what fails before the first step loses nothing.

    Args:
        overwrite: Whether what an earlier run left is to be removed.

    Attributes:
        began: Whether all is made that training needs: optimizer, schedule, compiled model.
    """

    def __init__(self, *, overwrite: bool) -> None:
        self.overwrite = overwrite
        self.began = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called before anything of the step is saved."""
        if self.overwrite:
            with args.main_process_first(local=False):
                if args.should_save:
                    _remove(Path(args.output_dir), RUN_OUTPUTS)
        self.overwrite = False


def holds_weights(folder: Path) -> bool:
    """Whether a folder holds a model or adapters."""
    return any(
        WHOLE_MODEL.fullmatch(path.name) or ADAPTERS.fullmatch(path.name)
        for path in folder.iterdir()
        if path.suffix != ".json"
    )


def keep_one_model(output: Path, *, adapters: bool) -> None:
    """Remove the other kind of model, which an earlier run may have left and loaders would take.

    Args:
        adapters: Whether the adapters are what the folder is to hold, and not a whole model.
    """
    _remove(output, WHOLE_MODEL if adapters else ADAPTERS)


def _matching(output: Path, names: re.Pattern[str]) -> Iterator[Path]:
    return (path for path in list(output.iterdir()) if names.fullmatch(path.name))


def _remove(output: Path, names: re.Pattern[str]) -> None:
    """Remove what is named so; anything else in the folder stays."""
    for path in _matching(output, names):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

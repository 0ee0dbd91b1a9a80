"""Tell how a training run goes: a bar or lines with the time left, a line for each evaluation."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from reranker_ft.progress import on_terminal, progress_bar
from reranker_ft.train.config import DataArguments, ModelArguments, RerankerTrainingArguments
from reranker_ft.train.keep import is_benchmark
from reranker_ft.train.output_folder import FINE_TUNED, HELD_OUT

logger = logging.getLogger(__name__)

SIDES = {"target": "eval_", "general": "eval_retain_"}
METRIC = "ndcg@10"


class TellingCallback(TrainerCallback):  # type: ignore[misc]
    """Shows the steps, and says at each evaluation what has changed since the first."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._first: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the bar where a resumed run goes on."""
        hidden = not state.is_world_process_zero or (args.disable_tqdm and on_terminal())
        self._bar = progress_bar(
            state.max_steps, "training", unit="steps", shown=not hidden, initial=state.global_step
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if self._bar is not None and "loss" in (logs or {}):
            self._bar.set_postfix_str(f"loss {(logs or {})['loss']:.4g}", refresh=False)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any
    ) -> None:
        """Say what was measured."""
        if not state.is_world_process_zero:
            return
        line = evaluation_line(state.global_step, state.max_steps, metrics, self._first)
        self._first = self._first or dict(metrics)
        # A bar that is drawn makes room for the line.
        with tqdm.external_write_mode(file=sys.stderr) if on_terminal() else nullcontext():
            logger.info(line)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._bar is not None:
            self._bar.close()


def tell(trainer: Trainer) -> None:
    """Let a trainer tell in these words instead of transformers' dictionaries of numbers."""
    for kind in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
        trainer.remove_callback(kind)
    trainer.add_callback(TellingCallback())


def evaluation_line(
    step: int, steps: int, metrics: Mapping[str, float], first: Mapping[str, float]
) -> str:
    """Return one line: the metric on either side, and its change since the first evaluation."""
    parts = []
    for side, prefix in SIDES.items():
        name = f"{prefix}{METRIC}"
        if name in metrics:
            change = f" ({metrics[name] - first[name]:+.3f})" if name in first else ""
            parts.append(f"{side} NDCG@10 {metrics[name]:.3f}{change}")
    when = f"step {step:,} of {steps:,}" if step else "before training"
    return f"{when}: {', '.join(parts)}"


def next_command(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: RerankerTrainingArguments,
    *,
    mixable: bool,
) -> str:
    """Return the command that a user runs next, as it is typed.

    Args:
        mixable: Whether the run started from a reranker, whose scores a mix can keep.
    """
    base, output = model_args.model_name_or_path, training_args.output_dir
    target, general = training_args.eval_data or [], training_args.retain_data or []
    words = ["reranker-ft", "score", output, "--data", "pairs.jsonl"]
    if data_args.keep or data_args.keep_text:
        fine_tuned = str(Path(output) / FINE_TUNED)
        words = ["reranker-ft", "evaluate", base, fine_tuned, output]
        words += _each("--data", target or [str(Path(output) / HELD_OUT)])
        if data_args.keep and is_benchmark(data_args.keep):
            words += ["--benchmark", data_args.keep]
        else:
            words += _each("--data", [data_args.keep] if data_args.keep else general)
    elif target and mixable:
        words = ["cocktail", "search", base, output, "--data", target[0]]
        words += [*_each("--retain", general[:1]), "--output", f"{output.rstrip('/')}-mixed"]
    elif target:
        words = ["reranker-ft", "evaluate", output, *_each("--data", [*target, *general])]
    elif mixable:
        words = ["cocktail", "mix", base, output, "--weights", "0.5", "0.5"]
        words += ["--output", f"{output.rstrip('/')}-mixed"]
    return shlex.join(words)


def _each(flag: str, values: list[str]) -> list[str]:
    return [word for value in values for word in (flag, value)]

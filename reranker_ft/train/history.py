"""Record the course of a training run, as JSON and as a picture."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from reranker_ft.data.files import finite, new_text_file

logger = logging.getLogger(__name__)

HISTORY_FILE = "history.json"
PICTURE_FILE = "history.png"
DRAWN_METRICS = {
    "eval_ndcg@10": ("target NDCG@10", "tab:red"),
    "eval_retain_ndcg@10": ("general NDCG@10", "tab:blue"),
}


class HistoryCallback(TrainerCallback):  # type: ignore[misc]
    """Keeps ``history.json`` in the output folder up to date."""

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write after every log of a step, so that a run that is stopped has its history too."""
        # Before the first step a history that stands there may still be an earlier run's.
        if state.is_world_process_zero and state.global_step:
            write_history(Path(args.output_dir) / HISTORY_FILE, state.log_history)


def write_history(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """Write one entry per log: ``step``, ``epoch``, and what was logged then.

    A gradient norm that was not finite is null: JSON has no name for it.
    """
    with new_text_file(path, overwrite=True) as file:
        file.write(json.dumps(finite(list(history)), indent=1, allow_nan=False) + "\n")


def draw_history(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """Draw loss, target and general metric against the steps; say so if matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("No %s: it is drawn by matplotlib (pip install matplotlib).", path.name)
        return
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    losses = figure.add_subplot()
    steps, values = _series(history, "loss")
    losses.plot(steps, values, color="tab:gray", label="training loss")
    losses.set_xlabel("optimizer steps")
    losses.set_ylabel("training loss")
    losses.set_ylim(bottom=0)
    handles = list(losses.get_lines())
    if any(name in entry for entry in history for name in DRAWN_METRICS):
        handles += _draw_metrics(losses.twinx(), history)
    losses.legend(handles=handles, loc="best")
    figure.savefig(path, dpi=150)


def _draw_metrics(axes: Any, history: Sequence[dict[str, Any]]) -> list[Any]:
    """Draw what was measured, with its interval; return the lines, for the legend."""
    for name, (label, color) in DRAWN_METRICS.items():
        steps, values = _series(history, name)
        if steps:
            axes.plot(steps, values, marker="o", color=color, label=label)
            low, high = _series(history, f"{name}_low")[1], _series(history, f"{name}_high")[1]
            axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_ylabel("NDCG@10, with 95 % interval")
    return list(axes.get_lines())


def _series(history: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    points: dict[int, float] = {}
    for entry in history:
        if name in entry:
            # A second value at one step is that of the best model, loaded when training had ended.
            points.setdefault(entry["step"], entry[name])
    return list(points), list(points.values())

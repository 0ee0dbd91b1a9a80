"""The course of a training run, as JSON and as a picture."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from reranker_ft.files import new_text_file

logger = logging.getLogger(__name__)

HISTORY_FILE = "history.json"
PICTURE_FILE = "history.png"
DRAWN_METRIC = "ndcg@10"


class HistoryCallback(TrainerCallback):  # type: ignore[misc]
    """Keeps `history.json` in the output folder up to date, and draws it at the end."""

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Writes after every log, so that a run that is stopped has its history too."""
        if state.is_world_process_zero:
            write_history(Path(args.output_dir) / HISTORY_FILE, state.log_history)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Draws the picture where matplotlib is installed."""
        if state.is_world_process_zero:
            draw_history(Path(args.output_dir) / PICTURE_FILE, state.log_history)


def write_history(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """Writes one entry a log: `step`, `epoch`, and what was logged then."""
    with new_text_file(path, overwrite=True) as file:
        file.write(json.dumps(list(history), indent=1) + "\n")


def draw_history(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """Draws loss, target and general metric against the steps; says so if matplotlib is missing."""
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
    ranking = losses.twinx()
    for prefix, label, color in (
        ("eval", "target", "tab:red"),
        ("eval_retain", "general", "tab:blue"),
    ):
        name = f"{prefix}_{DRAWN_METRIC}"
        steps, values = _series(history, name)
        if not steps:
            continue
        ranking.plot(steps, values, marker="o", color=color, label=f"{label} NDCG@10")
        low, high = _series(history, f"{name}_low")[1], _series(history, f"{name}_high")[1]
        ranking.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    ranking.set_ylabel("NDCG@10, with 95 % interval")
    handles = [*losses.get_lines(), *ranking.get_lines()]
    losses.legend(handles=handles, loc="best")
    figure.savefig(path, dpi=150)


def _series(history: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    points = {entry["step"]: entry[name] for entry in history if name in entry}
    return list(points), list(points.values())

"""Write the model card of a fine-tune."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.repocard_data import EvalResult, ModelCardData

from reranker_ft.data.files import new_text_file

CARD = "README.md"
_MARK = "Fine-tuned with `reranker-ft`"
_UNWRITTEN = "[More Information Needed]"  # of the template that PEFT leaves beside adapters
_TASK = "text-ranking"


def write_card(
    output: Path,
    base: str,
    *,
    train_data: Iterable[Path],
    eval_data: Mapping[str, Sequence[Path]],
    history: Sequence[Mapping[str, Any]],
    adapters: bool,
) -> None:
    """Write ``README.md``, unless one that somebody else wrote is there.

    Args:
        base: What was fine-tuned; named as ``base_model`` if it is a Hub id.
        train_data: Named without their folders.
        eval_data: Files of ``eval`` and ``eval_retain``, the prefixes of what was logged.
        history: The trainer's log, of which the last evaluation is shown.
        adapters: Whether the folder holds adapters, not a whole model.
    """
    path = output / CARD
    if path.is_file() and not {_MARK, _UNWRITTEN} & _marks(path):
        return
    on_hub = not Path(base).exists()
    title = f"{Path(base).name} fine-tuned for reranking"
    results = _results(eval_data, history)
    names = sorted({file.name for file in train_data})
    is_stack = (output / "modules.json").is_file()
    library = "sentence-transformers" if is_stack else "peft" if adapters else "transformers"
    front = ModelCardData(
        base_model=base if on_hub else None,
        base_model_relation=("adapter" if adapters else "finetune") if on_hub else None,
        datasets=names,
        library_name=library,
        pipeline_tag=_TASK,
        tags=["reranker", "cross-encoder"],
        model_name=title if results else None,
        eval_results=results or None,
    )
    rows = [
        f"| {result.dataset_name} | {result.metric_name} | {result.metric_value:.4f} |"
        for result in results
    ]
    table = ["", "| queries | measure | value |", "|---|---|---|", *rows] if rows else []
    text = [
        *("---", front.to_yaml(), "---", "", f"# {title}", ""),
        f"{_MARK} from `{base if on_hub else Path(base).name}` on {', '.join(names)}.",
        *table,
    ]
    with new_text_file(path, overwrite=True) as file:
        file.write("\n".join(text) + "\n")


def _marks(path: Path) -> set[str]:
    text = path.read_text(encoding="utf-8", errors="replace")
    return {mark for mark in (_MARK, _UNWRITTEN) if mark in text}


def _results(
    eval_data: Mapping[str, Sequence[Path]], history: Sequence[Mapping[str, Any]]
) -> list[EvalResult]:
    """The last figures of each set of held-out queries."""
    results = []
    for prefix, files in eval_data.items():
        key = f"{prefix}_ndcg@10"
        value = next((entry[key] for entry in reversed(history) if key in entry), None)
        if value is not None:
            kind = "general" if prefix == "eval_retain" else "target"
            results.append(
                EvalResult(
                    task_type=_TASK,
                    dataset_type="custom",
                    dataset_config=kind,  # results of one config are merged
                    dataset_name=f"{kind} ({', '.join(file.name for file in files)})",
                    metric_type="ndcg_at_10",
                    metric_name="NDCG@10",
                    metric_value=float(value),
                )
            )
    return results

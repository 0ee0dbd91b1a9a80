"""Add what was measured to the models' cards, in the text and as the Hub's ``model-index``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from huggingface_hub.repocard import ModelCard
from huggingface_hub.repocard_data import EvalResult, ModelCardData

from reranker_ft.data.files import new_text_file
from reranker_ft.errors import ArgumentError, DataError, one_line
from reranker_ft.evaluate.compare import Result

CARD = "README.md"
_METRICS = {"ndcg@10": "NDCG@10", "map": "MAP"}
_START, _END = "<!-- reranker-ft evaluate -->", "<!-- end of reranker-ft evaluate -->"


def check_cards(models: Sequence[str]) -> None:
    """Refuse before the long work what ``add_to_cards`` would refuse after it.

    Raises:
        ArgumentError: No model is a folder.
        DataError: A card's front matter cannot be read.
    """
    folders = [Path(model) for model in models if Path(model).is_dir()]
    if not folders:
        raise ArgumentError(
            f"{', '.join(models)} is no folder here - a card is written beside a model - save the "
            "model to a folder, or leave card out"
        )
    for folder in folders:
        _card(folder)


def add_to_cards(results: Sequence[Result]) -> list[Path]:
    """Write NDCG@10 and MAP of every model that is a folder into its ``README.md``.

    The text around stays; figures for the same data that an earlier call wrote are replaced.

    Returns:
        The cards.

    Raises:
        DataError: A card's front matter cannot be read.
    """
    written = []
    for model in dict.fromkeys(result.model for result in results):
        if Path(model).is_dir():
            own = [result for result in results if result.model == model]
            card = _card(Path(model))
            _add_to_index(cast(ModelCardData, card.data), own, name=Path(model).resolve().name)
            card.text = _with_table(card.text, own)
            with new_text_file(Path(model) / CARD, overwrite=True) as file:
                file.write(str(card))
            written.append(Path(model) / CARD)
    return written


def _card(folder: Path) -> ModelCard:
    path = folder / CARD
    if not path.is_file():
        front = ModelCardData(pipeline_tag="text-ranking", tags=["reranker"])
        return ModelCard(f"---\n{front.to_yaml()}\n---\n\n# {folder.resolve().name}\n")
    try:
        return ModelCard(path.read_text(encoding="utf-8"))
    except Exception as error:  # of YAML and of the Hub's client
        raise DataError(
            [f"{path}: its front matter cannot be read ({one_line(error)[:200]}) - correct it"]
        ) from None


def _add_to_index(data: ModelCardData, results: Sequence[Result], *, name: str) -> None:
    new = [
        EvalResult(
            task_type="text-ranking",
            dataset_type="custom",
            dataset_config=_title(result),  # results of one config are merged
            dataset_name=_title(result),
            metric_type=metric.replace("@", "_at_"),
            metric_name=title,
            metric_value=result.means[metric].mean,
        )
        for result in results
        for metric, title in _METRICS.items()
    ]
    known = {(each.dataset_name, each.metric_type) for each in new}
    kept = [
        each
        for each in data.eval_results or []
        if (each.dataset_name, each.metric_type) not in known
    ]
    data.eval_results = kept + new
    data.model_name = data.model_name or name


def _with_table(text: str, results: Sequence[Result]) -> str:
    """The text with a table of these results, in the place of an earlier one."""
    found = re.search(f"{re.escape(_START)}.*?{re.escape(_END)}\n?", text, re.DOTALL)
    rows = {} if found is None else _rows(found[0])
    for result in results:
        means = [result.means[metric] for metric in _METRICS]
        cells = [f"{mean.mean:.4f} [{mean.low:.4f}, {mean.high:.4f}]" for mean in means]
        queries = len(next(iter(result.per_query.values())))
        rows[_title(result)] = f"| {_title(result)} | {queries} | {' | '.join(cells)} |"
    table = [
        *(_START, "Ranked with `reranker-ft evaluate`, with 95 % intervals over the queries:", ""),
        f"| queries of | queries | {' | '.join(_METRICS.values())} |",
        "|---|---|" + "---|" * len(_METRICS),
        *rows.values(),
        *("", _END, ""),
    ]
    block = "\n".join(table)
    if found is None:
        return f"{text.rstrip()}\n\n{block}"
    return text[: found.start()] + block + text[found.end() :]


def _rows(table: str) -> dict[str, str]:
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines}


def _title(result: Result) -> str:
    """Of a file, its name and its folder's, which tells apart files called ``test.jsonl``."""
    return "/".join(Path(result.data).parts[-2:]).replace("|", " ")

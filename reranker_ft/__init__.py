"""Fine-tune, evaluate, mine for, calibrate and score with cross-encoder rerankers.

Every command of ``reranker-ft`` is a call, with the command's options as arguments:

>>> from reranker_ft import evaluate_rerankers, train_reranker
>>> train_reranker("BAAI/bge-reranker-base", "train.jsonl", "out")  # doctest: +SKIP
>>> evaluate_rerankers(["BAAI/bge-reranker-base", "out"], "test.jsonl")  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reranker_ft.api import (
        distil_scores,
        evaluate_rerankers,
        mine_negatives,
        train_reranker,
    )
    from reranker_ft.errors import DataError, RerankerError
    from reranker_ft.evaluate.calibrate import calibrate_reranker
    from reranker_ft.evaluate.metrics import bootstrap_mean, per_query_metrics
    from reranker_ft.mine.mine import mine_file
    from reranker_ft.score.distil import add_teacher_scores
    from reranker_ft.score.llm import FlagLLMReranker, LayerWiseFlagLLMReranker
    from reranker_ft.score.reranker import FlagReranker, Reranker
    from reranker_ft.train.check import check_data

__all__ = [
    "DataError",
    "FlagLLMReranker",
    "FlagReranker",
    "LayerWiseFlagLLMReranker",
    "Reranker",
    "RerankerError",
    "add_teacher_scores",
    "bootstrap_mean",
    "calibrate_reranker",
    "check_data",
    "distil_scores",
    "evaluate_rerankers",
    "mine_file",
    "mine_negatives",
    "per_query_metrics",
    "train_reranker",
]

# torch and transformers take seconds to import: a name is loaded when it is first used.
_MODULES = {
    "DataError": "errors",
    "FlagLLMReranker": "score.llm",
    "FlagReranker": "score.reranker",
    "LayerWiseFlagLLMReranker": "score.llm",
    "Reranker": "score.reranker",
    "RerankerError": "errors",
    "add_teacher_scores": "score.distil",
    "bootstrap_mean": "evaluate.metrics",
    "calibrate_reranker": "evaluate.calibrate",
    "check_data": "train.check",
    "distil_scores": "api",
    "evaluate_rerankers": "api",
    "mine_file": "mine.mine",
    "mine_negatives": "api",
    "per_query_metrics": "evaluate.metrics",
    "train_reranker": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__

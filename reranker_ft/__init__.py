"""Fine-tune, evaluate, mine for and score with cross-encoder rerankers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reranker_ft.errors import DataError, RerankerError
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
    "check_data",
    "mine_file",
    "per_query_metrics",
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
    "check_data": "train.check",
    "mine_file": "mine.mine",
    "per_query_metrics": "evaluate.metrics",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

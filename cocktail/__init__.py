"""Mix fine-tuned checkpoints with their base, and keep the abilities of both.

Every command of ``cocktail`` is a call:

>>> from cocktail import mix_models
>>> model = mix_models(["base", "fine-tuned"], "reranker", [0.5, 0.5], "mixed")  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cocktail.system.collector import collection_paused
from cocktail.version import __version__

if TYPE_CHECKING:
    from cocktail.api import mix_models, mix_models_by_layers, mix_models_with_data
    from cocktail.checkpoint.diff import diff_models
    from cocktail.checkpoint.inspect import inspect_model
    from cocktail.errors import CocktailError
    from cocktail.measure.converted import convert_model
    from cocktail.search.result import SearchResult
    from cocktail.search.run import search_weights
    from cocktail.write.verify import verify_mix

__all__ = [
    "CocktailError",
    "SearchResult",
    "__version__",
    "convert_model",
    "diff_models",
    "inspect_model",
    "mix_models",
    "mix_models_by_layers",
    "mix_models_with_data",
    "search_weights",
    "verify_mix",
]

_HOMES = {
    "CocktailError": "cocktail.errors",
    "SearchResult": "cocktail.search.result",
    "convert_model": "cocktail.measure.converted",
    "diff_models": "cocktail.checkpoint.diff",
    "inspect_model": "cocktail.checkpoint.inspect",
    "mix_models": "cocktail.api",
    "mix_models_by_layers": "cocktail.api",
    "mix_models_with_data": "cocktail.api",
    "search_weights": "cocktail.search.run",
    "verify_mix": "cocktail.write.verify",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, and `cocktail --help` does without it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with collection_paused():
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__

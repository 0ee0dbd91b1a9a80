"""What a search can be told, and what is refused before it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cocktail.api import mix_models_with_data
from cocktail.errors import CocktailError, RecipeError
from cocktail.search import run as run_module
from cocktail.search.options import SearchOptions, base_index
from cocktail.write.modules import write_modules
from tests.cocktail.tiny import examples, ingredients, ranked

QUIET: dict[str, Any] = {"progress": False, "device": "cpu"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in ("5", None, 0, float("nan"), 1e-320, True)),
        *(("max_drop", value) for value in (float("inf"), float("nan"), "0", None, -0.1)),
        *(("seed", value) for value in (-1, 1.5, None, "1")),
        *(("batch_size", value) for value in (0, 2.0, float("inf"), None)),
        *(("max_input_length", value) for value in (None, 0, 9.5)),
        *(("neg_number", value) for value in (1.5, -1, "7", True)),
    ],
)
def test_what_is_no_number_of_its_kind_is_refused(name: str, value: object) -> None:
    options = SearchOptions(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=f"{name} is ") as caught:
        options.check(labelled=True)
    assert "\n" not in str(caught.value)


def test_the_base_is_found_by_index_reference_or_folder(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path)
    models = ("one", "two/", "org/name")
    for base, index in (
        (None, 0), (1, 1), (-1, 2), ("two/", 1), ("./two", 1), (Path("two"), 1),
        (tmp_path / "one", 0), ("org/name", 2),
    ):  # fmt: skip
        assert base_index(base, models) == index
    for wrong in (3, -4, True, 0.5, "three", Path("three")):
        with pytest.raises(RecipeError, match="base is '"):
            base_index(wrong, models)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "elsewhere"}, "base is 'elsewhere'"),
        ({"max_drop": 0.5}, "nothing is retained"),
        ({"retain_by": "loss"}, "no labelled retain examples"),
        ({"retain_by": "magic"}, "retain_by is 'magic'"),
        ({"dtype": "float13"}, "float13"),
        ({"max_shard_size": "huge"}, "huge"),
        ({"output_path": __file__}, "is a file"),
        ({"push_to_hub": "org/mixed"}, "push_to_hub is given without output_path"),
        ({"threads": -1}, "threads are -1"),
    ],
)
def test_a_mix_with_data_is_refused_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    def searched(*_: Any, **__: Any) -> None:
        pytest.fail("the search has begun")

    monkeypatch.setattr(run_module, "prepare", searched)
    names = ingredients("bert-reranker", tmp_path, count=2)
    with pytest.raises(CocktailError, match=message):
        mix_models_with_data(names, "reranker", ranked(2), **QUIET, **options)


def test_negatives_are_for_those_who_rank(tmp_path: Path) -> None:
    """LM_Cocktail's call has a number of them for every kind."""
    names = ingredients("llama", tmp_path, count=2)
    mix_models_with_data(names, "decoder", examples("llama", 2), neg_number=7, **QUIET)


def test_a_mix_with_data_is_written_with_its_pooling(tmp_path: Path) -> None:
    names = ingredients("bert-encoder", tmp_path, count=2)
    options: dict[str, Any] = {"neg_number": 2, "pooling": "mean", **QUIET}
    mix_models_with_data(names, "encoder", ranked(3), output_path=tmp_path / "mixed", **options)
    config = json.loads((tmp_path / "mixed" / "1_Pooling" / "config.json").read_text())
    assert config["pooling_mode_mean_tokens"]
    for name in names:
        write_modules(Path(name), "cls", width=32)
    mix_models_with_data(names, "encoder", ranked(3), **options)  # measured, and not written
    with pytest.raises(CocktailError, match="pools by cls, but pooling 'mean' was asked for"):
        mix_models_with_data(names, "encoder", ranked(3), output_path=tmp_path / "no", **options)

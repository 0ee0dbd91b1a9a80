"""What the card of a mix says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cocktail.pipeline import checked_plan, mix_to_folder
from cocktail.recipe.recipe import make_recipe, recipe_of
from cocktail.recipe.yaml_file import read_recipe
from cocktail.write.verify import verify
from tests.cocktail.checkpoint.test_whole import hub_cache
from tests.cocktail.checkpoints import Save, load, weights
from tests.cocktail.search.results import made_up


def test_the_card_of_a_mix_with_a_hub_model(
    tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = save("tuned", weights(1))
    (tuned / "README.md").write_text("---\nbase_model: org/name\n---\n")
    card = b"---\nlicense: other\nlicense_name: own\nlanguage: [en]\ntags: [x]\n---\n# Base\n"
    files = {path.name: path.read_bytes() for path in save("a", weights(0)).iterdir()}
    commit = hub_cache(tmp_path / "hub", files | {"README.md": card})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    recipe = make_recipe(["org/name@main", tuned], [0.5, 0.5])
    mix_to_folder(checked_plan(recipe, tmp_path / "out"), tmp_path / "out", progress=False)
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert front == {
        "base_model": ["org/name"],
        "base_model_relation": "merge",
        "license": "other",
        "license_name": "own",
        "language": ["en"],
        "library_name": "transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["merge", "lm-cocktail", "encoder"],
    }
    record = json.loads((tmp_path / "out" / "cocktail.json").read_text())
    assert record["ingredients"][0]["commit"] == commit
    assert record["ingredients"][0]["sha256"].keys() == files.keys() | {"README.md"}
    assert [v.state for v in verify(tmp_path / "out", progress=False)] == ["same"] * 3


def card(models: list[Path], output: Path, **options: Any) -> tuple[dict[str, Any], str]:
    """Front matter and text of the card that a mix gets."""
    recipe = make_recipe(models, [0.25, 0.75], **options)
    mix_to_folder(checked_plan(recipe, output), output, progress=False)
    _, front, text = (output / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_of_local_models(pair: tuple[Path, Path], tmp_path: Path) -> None:
    front, text = card(list(pair), tmp_path / "out")
    assert "base_model" not in front and "license" not in front
    assert front["pipeline_tag"] == "sentence-similarity"
    assert front["tags"] == ["merge", "lm-cocktail", "encoder"]
    assert f"| {pair[0]} | 0.25 |" in text and f"| {pair[1]} | 0.75 |" in text


def test_the_recipe_on_the_card_makes_the_mix_again(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    _, text = card(list(pair), tmp_path / "out")
    (tmp_path / "recipe.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    recipe = recipe_of(read_recipe(tmp_path / "recipe.yaml"))
    mix_to_folder(checked_plan(recipe, tmp_path / "again"), tmp_path / "again", progress=False)
    first, again = (load(tmp_path / name) for name in ("out", "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_card_shows_what_a_search_measured(pair: tuple[Path, Path], tmp_path: Path) -> None:
    figures = made_up().figures("target.jsonl")
    (tmp_path / "curve.png").write_bytes(b"\x89PNG")
    output = tmp_path / "out"
    mix_to_folder(
        checked_plan(make_recipe(list(pair), [0.6, 0.4]), output), output, progress=False,
        figures=figures, picture=tmp_path / "curve.png",
    )  # fmt: skip
    _, front, text = (output / "README.md").read_text().split("---\n", 2)
    (model,) = yaml.safe_load(front)["model-index"]
    assert [
        (result["dataset"]["name"], metric["type"], metric["value"])
        for result in model["results"]
        for metric in result["metrics"]
    ] == [
        ("target (target.jsonl)", "ndcg_at_10", pytest.approx(figures[0].value)),
        ("target (target.jsonl)", "loss", pytest.approx(figures[1].value)),
        ("general", "ndcg_at_10", pytest.approx(figures[2].value)),
    ]
    assert f"| general | ndcg@10 | {figures[2].value:.4f} | {figures[2].base:.4f} | -" in text
    assert "](curve.png)" in text
    assert (output / "curve.png").read_bytes() == b"\x89PNG"

"""Where a mix may be written, and where it is refused before the first byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cocktail.errors import OutputError, PlanError
from cocktail.pipeline import checked_plan, mix_to_folder
from cocktail.recipe.recipe import make_recipe
from cocktail.write.place import output_folder
from cocktail.write.verify import verify
from tests.cocktail.checkpoints import load, weights


def mix(models: tuple[Path, ...], output: Path, *, overwrite: bool = False, **options: Any) -> None:
    plan = checked_plan(make_recipe(models, (0.5, 0.5), **options), output, overwrite=overwrite)
    mix_to_folder(plan, output, progress=False)


def output_problem(pair: tuple[Path, Path], output: Path, *, overwrite: bool = False) -> str:
    with pytest.raises(PlanError) as caught:
        mix(pair, output, overwrite=overwrite)
    (problem,) = caught.value.problems
    return problem


def test_outputs_that_touch_an_ingredient(pair: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = pair
    assert "is the ingredient" in output_problem(pair, a, overwrite=True).replace("contains", "is")
    assert "lies in the ingredient" in output_problem(pair, b / "mixed")
    (tmp_path / "link").symlink_to(a)
    with pytest.raises(PlanError, match="is the ingredient"):
        mix(pair, tmp_path / "link", overwrite=True)
    with pytest.raises(PlanError, match="contains the ingredient"):
        mix(pair, tmp_path, overwrite=True)
    # A folder of links: replacing what they lead to would change the ingredient.
    links = tmp_path / "links"
    links.mkdir()
    for path in a.iterdir():
        (links / path.name).symlink_to(path)
    found = output_problem((links, b), a, overwrite=True)
    assert "is the ingredient" in found and "(model.safetensors links there)" in found


def test_existing_outputs(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is a file" in output_problem(pair, tmp_path / "file", overwrite=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("mine")
    assert "exists and is not empty" in output_problem(pair, tmp_path / "notes")
    assert "holds files but not a model" in output_problem(pair, tmp_path / "notes", overwrite=True)
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    mix(pair, tmp_path / "empty")
    assert load(tmp_path / "empty").keys() == weights(0).keys()


@pytest.mark.parametrize(
    ("files", "is_model"),
    [
        (["config.json", "thesis.tex"], False),
        (["config.json", "data.bin"], False),
        (["modules.json", "1_Pooling/config.json"], False),
        (["model.safetensors"], False),
        (["config.json", "model-00001-of-00002.safetensors"], True),
        (["config.json", "pytorch_model.bin"], True),
        (["config.json", "cocktail.json"], True),
        (["modules.json", "0_Transformer/model.safetensors"], True),
    ],
)
def test_only_a_model_is_overwritten(
    pair: tuple[Path, Path], tmp_path: Path, files: list[str], is_model: bool
) -> None:
    for name in files:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("{}")
    if is_model:
        mix(pair, tmp_path / "out", overwrite=True)
        return
    assert "holds files but not a model" in output_problem(pair, tmp_path / "out", overwrite=True)
    out = tmp_path / "out"
    assert {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} == set(files)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_paths_that_the_system_does_not_take(
    pair: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    assert "is not a path here" in output_problem(pair, tmp_path / name)


def test_ingredients_that_the_system_does_not_take(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="does not exist"):
        mix((tmp_path / ("x" * 300), pair[0]), tmp_path / "out")


def test_a_home_of_nobody(pair: tuple[Path, Path], tmp_path: Path) -> None:
    mix(pair, tmp_path / "out")
    record = (tmp_path / "out/cocktail.json").read_text().replace(str(pair[0]), "~nosuchuser/x")
    (tmp_path / "out/cocktail.json").write_text(record)
    assert verify(tmp_path / "out", progress=False)[1].state == "unknown"
    with pytest.raises(OutputError, match="'~nosuchuser/x' is not a path here"):
        output_folder("~nosuchuser/x")


def test_too_little_disk(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert "16 MB while it is written" in output_problem(pair, tmp_path / "out")


def test_outputs_that_cannot_be_made(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "file is a file" in output_problem(pair, tmp_path / "file" / "deep" / "out")
    with pytest.raises(PlanError, match="the output / contains the ingredient"):
        mix(pair, Path("/"))

"""Temporary folders are removed, whoever was killed, and those of the living are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cocktail.errors import OutputError
from cocktail.pipeline import checked_plan, mix_to_folder
from cocktail.recipe.recipe import make_recipe
from cocktail.system.temporary import View, temporary_parts


def mix(models: tuple[Path, ...], output: Path, *, overwrite: bool = False, **options: Any) -> None:
    plan = checked_plan(make_recipe(models, (0.5, 0.5), **options), output, overwrite=overwrite)
    mix_to_folder(plan, output, progress=False)


def test_leftovers_are_cleared_unless_their_run_lives(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    import fcntl

    dead, alive = (tmp_path / f".out.cocktail-tmp-{pid}" for pid in (999999991, 999999992))
    for folder in (dead, alive):
        folder.mkdir()
        (folder / ".lock").touch()
    with (alive / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        mix(pair, tmp_path / "out")
    assert not dead.exists()
    assert alive.exists()


def test_parts_lie_beside_the_output_and_go(tmp_path: Path) -> None:
    with temporary_parts(tmp_path / "out") as parts:
        assert parts.parent == tmp_path and parts.name.startswith(".out.")
        (parts / "step").write_text("half done")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), temporary_parts(tmp_path / "out"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_parts_that_cannot_be_made_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match="cannot be made") as caught,
        temporary_parts(tmp_path / "file" / "out"),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_a_view_lives_as_long_as_somebody_looks() -> None:
    view = View()
    folder = view.folder
    assert folder.is_dir()
    View()  # clears what is abandoned, not what is held
    assert folder.is_dir()
    del view
    assert not folder.exists()

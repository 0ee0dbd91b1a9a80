"""A mix is compared with what its record says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cocktail.pipeline import checked_plan, mix_to_folder
from cocktail.recipe.recipe import make_recipe
from cocktail.write.verify import verify


def mix(models: tuple[Path, ...], output: Path, *, overwrite: bool = False, **options: Any) -> None:
    plan = checked_plan(make_recipe(models, (0.5, 0.5), **options), output, overwrite=overwrite)
    mix_to_folder(plan, output, progress=False)


def test_verify_finds_a_changed_byte(pair: tuple[Path, Path], tmp_path: Path) -> None:
    mix(pair, tmp_path / "out")
    assert [v.state for v in verify(tmp_path / "out", progress=False)] == ["same"] * 3
    for folder, role in ((tmp_path / "out", 0), (pair[1], 2)):
        file = folder / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        assert verify(tmp_path / "out", progress=False)[role].state == "different"
        content[-1] ^= 1
        file.write_bytes(content)
    pair[0].rename(tmp_path / "moved")
    assert verify(tmp_path / "out", progress=False)[1].state == "unknown"


def test_verify_looks_for_no_folder_on_the_hub(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path looks like a Hub id from elsewhere; another model of that name may exist."""
    monkeypatch.chdir(tmp_path)
    mix((Path("a"), Path("b")), tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr("cocktail.checkpoint.folder.fetch", lambda *_: pytest.fail("asked the Hub"))
    verdicts = verify(tmp_path / "out", progress=False)
    assert [verdict.state for verdict in verdicts] == ["same", "unknown", "unknown"]
    assert "no folder a here" in verdicts[1].detail

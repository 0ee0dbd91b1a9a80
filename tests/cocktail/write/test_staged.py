"""Writing: at every instant the output is absent, the old folder, or the whole new one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cocktail.errors import OutputError
from cocktail.pipeline import checked_plan, mix_to_folder
from cocktail.recipe.recipe import make_recipe
from cocktail.write.verify import verify
from tests.cocktail.checkpoints import Save, load, weights


def mix(models: tuple[Path, ...], output: Path, *, overwrite: bool = False, **options: Any) -> None:
    plan = checked_plan(make_recipe(models, (0.5, 0.5), **options), output, overwrite=overwrite)
    mix_to_folder(plan, output, progress=False)


def content(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_output_is_complete_and_sources_are_untouched(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    for name in ("tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        (pair[0] / name).write_text("{}")
    left_behind = ("model.onnx", "history.json", "search.json", "trainer_state.json")
    for name in left_behind:
        (pair[0] / name).write_text("[]")
    before = [content(folder) for folder in pair]
    mix(pair, tmp_path / "deep" / "out")
    assert set(content(tmp_path / "deep" / "out")) == {
        "README.md", "chat_template.jinja", "cocktail.json", "config.json",
        "generation_config.json", "model.safetensors", "tokenizer_config.json",
    }  # fmt: skip
    assert [content(folder) for folder in pair] == before


def test_the_same_recipe_gives_the_same_bytes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    mix(pair, tmp_path / "one")
    mix(pair, tmp_path / "two")
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_config_says_what_was_written(pair: tuple[Path, Path], tmp_path: Path) -> None:
    mix(pair, tmp_path / "out", dtype="bfloat16")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_what_appears_at_the_output_during_a_mix_is_kept_and_so_is_the_mix(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    plan = checked_plan(make_recipe(pair, (0.3, 0.7)), output)
    mix(pair, output)  # another run was faster
    before = content(output)
    with pytest.raises(OutputError, match=r"is not empty .*; the mix is complete and was kept as"):
        mix_to_folder(plan, output, progress=False)
    assert content(output) == before
    (kept,) = tmp_path.glob("out.cocktail-*")
    assert verify(kept, progress=False)[0].state == "same"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out", kept.name]


def test_what_appears_at_the_last_moment_is_kept_too(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def late(folder: Path, target: Path) -> Path:
        if target.name == "out":
            target.mkdir()
            (target / "thesis.txt").touch()
        return rename(folder, target)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(OutputError, match=r"cannot be replaced .*mix is complete and was kept as"):
        mix(pair, tmp_path / "out")
    assert set(content(tmp_path / "out")) == {"thesis.txt"}


def test_overwrite_replaces_the_whole_folder(pair: tuple[Path, Path], tmp_path: Path) -> None:
    mix(pair, tmp_path / "out")
    (tmp_path / "out" / "stale.txt").touch()
    mix(pair, tmp_path / "out", overwrite=True, dtype="bfloat16")
    assert not (tmp_path / "out" / "stale.txt").exists()
    assert next(iter(load(tmp_path / "out").values())).dtype == torch.bfloat16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


def test_overwrite_without_an_atomic_exchange(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cocktail.write.staged._exchange", lambda *_: False)
    mix(pair, tmp_path / "out")
    mix(pair, tmp_path / "out", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]
    # Killed between the two renames: the next run puts the old model back first.
    (tmp_path / "out").rename(tmp_path / ".out.cocktail-old")
    monkeypatch.setattr("cocktail.write.staged._write_all", fail(errno.ENOSPC))
    with pytest.raises(OutputError):
        mix(pair, tmp_path / "out")
    assert load(tmp_path / "out").keys() == weights(0).keys()


def fail(code: int) -> Any:
    def raiser(path: Path, *_: object) -> None:
        from cocktail.write.staged import _write_error

        raise _write_error(path, OSError(code, os.strerror(code)))

    return raiser


@pytest.mark.parametrize("call", ["posix_fallocate", "pwritev"])
def test_a_full_disk_leaves_the_old_output(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    mix(pair, tmp_path / "out")
    before = content(tmp_path / "out")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OutputError, match="the disk is full - the old output is untouched"):
        mix(pair, tmp_path / "out", overwrite=True)
    assert content(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


@pytest.mark.parametrize("place", ["shutil.copyfile", "cocktail.write.staged._sync"])
def test_a_disk_that_fills_up_beside_the_weights_is_no_traceback(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(place, full)
    with pytest.raises(OutputError, match="the disk is full"):
        mix(pair, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_an_interrupt_leaves_no_litter(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cocktail.pipeline.stream", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mix(pair, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


KILLED = """
import sys
from pathlib import Path
from cocktail.api import checked_plan, mix_to_folder
from cocktail.write.place import output_folder
from cocktail.recipe.recipe import make_recipe
a, b, output = map(Path, sys.argv[1:])
while True:
    print("ready", flush=True)
    plan = checked_plan(make_recipe((a, b), (0.5, 0.5)), output, overwrite=True)
    mix_to_folder(plan, output, progress=False, sync=False)
"""


def test_killed_at_any_moment_the_output_is_whole(save: Save, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {f"w{i}": (257, 1021) for i in range(8)}
    models = [
        save(name, {key: torch.randn(shape, generator=generator) for key, shape in sizes.items()})
        for name in ("a", "b")
    ]
    output = tmp_path / "out"
    expected: dict[str, str] | None = None
    rng = random.Random(0)
    for round_ in range(12):
        arguments = [sys.executable, "-c", KILLED, *map(str, models), str(output)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(1 + round_ % 2):  # in every other round one mix is done
                process.stdout.readline()
            time.sleep(rng.uniform(0.0, 0.3))
            process.send_signal(signal.SIGKILL)
        leftovers = [path for path in tmp_path.iterdir() if path.name not in ("a", "b", "out")]
        assert len(leftovers) <= 1
        assert all(path.name.startswith(".out.cocktail-tmp-") for path in leftovers)
        if output.exists():
            found = content(output)
            expected = expected or found
            assert found == expected
            assert verify(output, progress=False)[0].state == "same"
    assert expected is not None
    mix((models[0], models[1]), output, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]

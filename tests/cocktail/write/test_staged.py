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

from cocktail.errors import OutputError, PlanError
from cocktail.pipeline import checked_plan, mix_to_folder
from cocktail.recipe.recipe import make_recipe
from cocktail.write.place import output_folder
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
    assert "holds files but no model" in output_problem(pair, tmp_path / "notes", overwrite=True)
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
    assert "holds files but no model" in output_problem(pair, tmp_path / "out", overwrite=True)
    assert set(content(tmp_path / "out")) == set(files)


def test_what_appears_at_the_output_during_a_mix_is_kept_and_so_is_the_mix(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    plan = checked_plan(make_recipe(pair, (0.3, 0.7)), output)
    mix(pair, output)  # another run was faster
    before = content(output)
    with pytest.raises(OutputError, match=r"is not empty .*; the mix is done and was kept as"):
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
    with pytest.raises(OutputError, match=r"cannot be replaced .*the mix is done and was kept as"):
        mix(pair, tmp_path / "out")
    assert set(content(tmp_path / "out")) == {"thesis.txt"}


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_paths_that_the_system_does_not_take(
    pair: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    assert "is no path here" in output_problem(pair, tmp_path / name)


def test_ingredients_that_the_system_does_not_take(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="does not exist"):
        mix((tmp_path / ("x" * 300), pair[0]), tmp_path / "out")


def test_a_home_of_nobody(pair: tuple[Path, Path], tmp_path: Path) -> None:
    mix(pair, tmp_path / "out")
    record = (tmp_path / "out/cocktail.json").read_text().replace(str(pair[0]), "~nosuchuser/x")
    (tmp_path / "out/cocktail.json").write_text(record)
    assert verify(tmp_path / "out", progress=False)[1].state == "unknown"
    with pytest.raises(OutputError, match="'~nosuchuser/x' is no path here"):
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


def test_verify_passes_over_tensors_without_elements(save: Save, tmp_path: Path) -> None:
    empty = {"encoder.extra": torch.zeros(0, 4), "encoder.none": torch.zeros(0)}
    pair = save("a", weights(0) | empty), save("b", weights(1) | empty)
    mix(pair, tmp_path / "out")
    assert [v.state for v in verify(tmp_path / "out", progress=False)] == ["same"] * 3


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

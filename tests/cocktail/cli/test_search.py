"""Where a report goes, and what stays of a search when it cannot be written or printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from transformers import __version__

from cocktail.cli import main as command
from cocktail.cli.main import main
from cocktail.measure.tasks.reranker import pair_scores
from cocktail.search import report as report_module
from tests.cocktail.tiny import ingredients, ranked, write_jsonl


@pytest.fixture(scope="module")
def given(kitchen: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    data = write_jsonl(tmp_path_factory.mktemp("data") / "data.jsonl", ranked(4, seed=5))
    return [
        "search", kitchen["base"], kitchen["noise"], "--data", str(data), "--device", "cpu",
        "--strategy", "lm-cocktail",
    ]  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("mixed", "overlap"),
        ("mixed/report", "overlap"),
        (".", "overlap"),
        ("base/report", "overlap"),
        ("file/report", "cannot be made"),
        ("x" * 300, "is not a path here"),
    ],
)
def test_a_folder_that_cannot_take_a_report_is_refused_before_the_search(
    kitchen: dict[str, str], given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    report: str, message: str,
) -> None:  # fmt: skip
    def searched(*_: Any, **__: Any) -> None:
        pytest.fail("the search has begun")

    monkeypatch.setattr("cocktail.search.run.prepare", searched)
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "base").symlink_to(kitchen["base"])
    (tmp_path / "file").touch()
    folder = place if report == "." else tmp_path / report
    output = place / "mixed" if report == "." else tmp_path / "mixed"
    done = run(*given, "--output", output, "--report", folder)
    assert done.exit_code == 1
    assert message in done.stderr
    assert not list(place.iterdir())


def test_a_report_is_whole_or_as_it_was(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "report"
    retain = write_jsonl(tmp_path / "retain.jsonl", ranked(3, seed=9))
    assert run(*given, "--retain", retain, "--report", report, "-q").exit_code == 0
    before = {path.name: path.read_bytes() for path in report.iterdir()}
    assert set(before) == set(report_module.REPORT_FILES)

    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(report_module, "_markdown", full)
        done = run(*given, "--report", report, "--output", tmp_path / "mixed", "--json")
    assert done.exit_code == 1
    assert done.stderr.endswith("report: cannot be written (No space left on device)\n")
    assert json.loads(done.stdout)["weights"]
    assert (tmp_path / "mixed" / "model.safetensors").is_file()
    assert {path.name: path.read_bytes() for path in report.iterdir()} == before
    with monkeypatch.context() as patch:
        patch.setattr(report_module, "find_spec", lambda _: None)
        assert run(*given, "--report", report, "-q").exit_code == 0  # nothing draws now
    assert {path.name for path in report.iterdir()} == {"search.json", "report.md"}


def test_ctrl_c_while_the_report_is_written_keeps_the_result(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(report_module, "_markdown", interrupted)
    done = run(*given, "--report", tmp_path / "report", "--output", tmp_path / "mixed")
    assert done.exit_code == 130
    assert "forward equivalents" in done.stdout and "mixed" in done.stdout
    assert "report: not written: interrupted" in done.stderr
    assert (tmp_path / "mixed" / "model.safetensors").is_file()
    assert not list((tmp_path / "report").iterdir())


def test_what_cannot_be_printed_is_one_line_and_still_written(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo = click.echo

    def full(message: str = "", *, err: bool = False, **options: Any) -> None:
        if not err:
            raise OSError(28, "No space left on device")
        echo(message, err=err, **options)

    monkeypatch.setattr(click, "echo", full)
    done = run(*given, "--report", tmp_path / "report", "--output", tmp_path / "mixed", "--json")
    assert done.exit_code == 1
    assert done.stderr.startswith("cocktail: printing failed (No space left on device)")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "mixed" / "model.safetensors").is_file()
    assert (tmp_path / "report" / "report.md").is_file()


@pytest.mark.parametrize(("rank", "waits"), [("0", []), ("1", [command.SECONDS_OF_THE_FIRST])])
def test_the_first_of_several_processes_says_why_it_ends(
    given: list[str], monkeypatch: pytest.MonkeyPatch, rank: str, waits: list[float]
) -> None:
    """By the time that another would, all have been ended, unless the first goes on."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    done = run(*given, "--report", __file__)
    assert (done.exit_code, slept) == (1, waits)
    assert "is a file - a report must be a folder" in done.stderr


def test_a_search_that_calibrates_writes_a_mix_that_verifies(tmp_path: Path) -> None:
    models = ingredients("bert-reranker", tmp_path, 2)
    target = write_jsonl(tmp_path / "target.jsonl", ranked(8, seed=5))
    pairs = write_jsonl(tmp_path / "pairs.jsonl", _judged_by(models[1], 30))
    common = [
        "search", *models, "--data", target, "--device", "cpu", "--strategy", "lm-cocktail",
        "--calibrate", pairs,
    ]  # fmt: skip
    shown = run(*common, "--output", tmp_path / "text")
    assert shown.exit_code == 0, shown.output
    assert f"calibrated on {pairs}: calibration error" in shown.stdout
    done = run(*common, "--output", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["calibration"]
    record = json.loads((tmp_path / "out" / "cocktail.json").read_text())
    assert record["calibration"]["scale"] == found["scale"] > 0
    assert run("verify", tmp_path / "out").exit_code == 0
    plain = run(*common[:-2], "--output", tmp_path / "plain")
    assert plain.exit_code == 0
    heads = [
        load_file(tmp_path / name / "model.safetensors")["classifier.weight"]
        for name in ("plain", "out")
    ]
    torch.testing.assert_close(heads[0] * found["scale"], heads[1])


def _judged_by(model: str, count: int) -> list[dict[str, Any]]:
    """Rows of which each passage that scores above the middle is relevant, but for some."""
    rows = ranked(count, seed=9)
    for number, row in enumerate(rows):
        texts = list(dict.fromkeys(row["pos"] + row["neg"]))
        scores = pair_scores(Path(model), [(row["query"], text) for text in texts])
        order = [text for _, text in sorted(zip(scores, texts, strict=True), reverse=True)]
        if number % 5 == 0:
            order.reverse()
        row["pos"], row["neg"] = order[: len(order) // 2], order[len(order) // 2 :]
    return rows


@pytest.mark.parametrize(
    ("family", "more", "message"),
    [
        ("llama", ["--output", "out"], "are made of the scores of rerankers"),
        ("bert-reranker", ["--output", "out"], "which is no file"),
        ("bert-reranker", [], "without --output"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, more: list[str], message: str
) -> None:
    def searched(*_: Any, **__: Any) -> None:
        pytest.fail("the search has begun")

    monkeypatch.setattr("cocktail.search.run.prepare", searched)
    monkeypatch.chdir(tmp_path)
    models = ingredients(family, tmp_path, 2)
    data = write_jsonl(tmp_path / "data.jsonl", ranked(4))
    pairs = data if family == "llama" else "absent.jsonl"
    done = run("search", *models, "--data", data, "--calibrate", pairs, *more)
    assert done.exit_code == 1
    assert message in done.stderr


@pytest.fixture
def begin(given: list[str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command where the import of torch ends it with status 77."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit(77)\n")
    paths = [str(tmp_path), str(Path(__file__).parents[3]), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def begun(*more: str) -> subprocess.CompletedProcess[str]:
        call = [sys.executable, "-m", "cocktail", *given, *more]
        return subprocess.run(call, capture_output=True, text=True, env=environment)

    return begun


def test_what_begins_is_told_before_torch_is_imported(
    kitchen: dict[str, str], given: list[str], begin: Callable[..., Any]
) -> None:
    done = begin("--json")
    parameters = sum(
        tensor.numel() for tensor in load_file(f"{kitchen['base']}/model.safetensors").values()
    )
    told = f"searching: 2 rerankers of {parameters:,} parameters, {given[4]}"
    assert (done.returncode, done.stdout) == (77, "")
    assert done.stderr == f"{told}; torch and transformers start first\n"
    assert begin("--quiet").stderr == ""


@pytest.mark.skipif(
    __version__.startswith("4."), reason="the sources of transformers 4 do not say enough"
)
def test_what_the_headers_forbid_is_said_without_torch(begin: Callable[..., Any]) -> None:
    refused = begin("--model-type", "decoder")
    assert refused.returncode == 1
    assert refused.stderr.startswith("cocktail: ")

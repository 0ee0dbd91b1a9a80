"""Models arrive on the Hub, or on a stand-in for it, with all their files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocktail.errors import RecipeError
from cocktail.write.push import check_push
from tests.cocktail.tiny import ingredients, ranked, write_jsonl
from tests.hub import Hub, standing_in


@pytest.fixture
def hub() -> Iterator[Hub]:
    with standing_in() as found:
        yield found


def run(hub: Hub, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cocktail", *map(str, words)], capture_output=True, text=True,
        env={**os.environ, **hub.environment(), **more},
    )  # fmt: skip


def mixing(folder: Path) -> list[object]:
    """A command that writes to ``mixed``."""
    models = ingredients("bert-reranker", folder, 2)
    words = ["mix", *models, "--weights", 0.5, 0.5, "--output", folder / "mixed"]
    return [*words, "--push-to-hub", "org/mixed"]


def test_a_mix_is_pushed_as_it_is_on_disk(tmp_path: Path, hub: Hub) -> None:
    output = tmp_path / "mixed"
    words = mixing(tmp_path)
    done = run(hub, *words, "--private", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["hub"] == f"{hub.address}/org/mixed"
    written = {path.name: path.read_bytes() for path in output.iterdir()}
    assert written.items() <= hub.files["org/mixed"].items()
    assert hub.private["org/mixed"]


def test_a_search_is_pushed_when_it_is_written(tmp_path: Path, hub: Hub) -> None:
    models = ingredients("bert-reranker", tmp_path, 2)
    data = write_jsonl(tmp_path / "data.jsonl", ranked(4))
    words = ["search", *models, "--data", data, "--strategy", "lm-cocktail", "--device", "cpu"]
    refused = run(hub, *words, "--push-to-hub", "org/found")
    assert "--push-to-hub is given without --output" in refused.stderr
    done = run(hub, *words, "--push-to-hub", "org/found", "--output", tmp_path / "found")
    assert done.returncode == 0, done.stderr
    assert f"pushed: {hub.address}/org/found" in done.stdout
    assert "model.safetensors" in hub.files["org/found"]


def test_what_the_hub_refuses_is_one_line_and_the_mix_stays(tmp_path: Path, hub: Hub) -> None:
    output = tmp_path / "mixed"
    words = mixing(tmp_path)
    unknown = run(hub, *words, HF_TOKEN="hf_another")
    assert unknown.returncode == 1
    assert "a token that may write" in unknown.stderr
    assert not output.exists()  # before anything was mixed
    hub.refuses = True
    refused = run(hub, *words)
    assert refused.returncode == 1
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("cocktail: ")]
    assert f"hf upload org/mixed {output}" in line
    assert (output / "model.safetensors").is_file()


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(RecipeError, match="org/name"):
        check_push("too/many/parts")


def test_a_mix_is_pushed_from_python(tmp_path: Path, hub: Hub) -> None:
    models = ingredients("bert-reranker", tmp_path, 2)
    code = (
        "import sys; from cocktail import mix_models; mix_models(sys.argv[1:3], 'reranker', "
        "[0.5, 0.5], sys.argv[3] or None, progress=False, push_to_hub='org/called')"
    )
    call = [sys.executable, "-c", code, *models]
    environment = {**os.environ, **hub.environment()}
    refused = subprocess.run([*call, ""], capture_output=True, text=True, env=environment)
    assert "push_to_hub is given without output_path" in refused.stderr
    subprocess.run([*call, str(tmp_path / "out")], check=True, env=environment)
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert hub.files["org/called"]["model.safetensors"] == written

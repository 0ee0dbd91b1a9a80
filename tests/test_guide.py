"""The commands of the guide and of the README run as they stand, in order, in both languages."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reranker_ft.conftest import make_model, make_tokenizer

ROOT = Path(__file__).parents[1]
HUB_MODEL = "BAAI/bge-reranker-base"
TOY = ROOT / "examples" / "toy_finetune_data.jsonl"


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and content of every block of code, without comments."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL)
    return [(language, re.sub(r" *# .*", "", content)) for language, content in found]


def test_both_languages_show_the_same_commands() -> None:
    assert blocks("docs/zh/guide.md") == blocks("docs/guide.md")
    ours, theirs = blocks("README.md"), blocks("README.zh.md")
    assert [block for block in ours if ".[test]" not in block[1]] == theirs


@pytest.fixture
def kitchen(tmp_path: Path) -> Path:
    """A folder with the files that the guide names, and a tiny model for the one on the Hub."""
    make_model("bert", num_labels=1).save_pretrained(tmp_path / "tiny")
    make_tokenizer("bert").save_pretrained(tmp_path / "tiny")
    shutil.copy(TOY, tmp_path)
    lines = TOY.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "examples.jsonl").write_text("".join(lines[:6]), encoding="utf-8")
    words = ("river", "stone", "bridge", "garden", "winter", "summer", "bird", "horse")
    texts = [f"The {word} is north of the city. What was red in the {word}?\n" for word in words]
    (tmp_path / "general.txt").write_text("".join(texts), encoding="utf-8")
    return tmp_path


def run(language: str, command: str, kitchen: Path) -> None:
    """Run a block in the kitchen, with the tiny model for the one on the Hub."""
    command = command.replace(HUB_MODEL, "./tiny")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }
    call = [sys.executable, "-c"] if language == "python" else ["bash", "-euc"]
    done = subprocess.run(
        [*call, command], cwd=kitchen, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr


def test_every_command_of_the_guide_runs(kitchen: Path) -> None:
    for language, content in blocks("docs/guide.md"):
        if language != "json" and not content.startswith("pip install"):
            run(language, content, kitchen)
    for number in (1, 2, 3):
        assert (kitchen / f"mixed_model_{number}" / "model.safetensors").is_file()


def test_every_command_of_the_readme_runs(kitchen: Path) -> None:
    nouns = ("bird", "horse", "river", "stone")
    names = (
        "tower",
        "mill",
        "bridge",
        "garden",
        "lock",
        "winter",
        "barn",
        "canal",
        "path",
        "vicar",
    )
    lines = [
        {
            "query": f"Where is the {noun} of the {name}?",
            "pos": [f"The {noun} is north of the {name}."],
            "neg": [f"The {other} is red." for other in nouns if other != noun],
        }
        for noun in nouns
        for name in names
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (kitchen / "train.jsonl").write_text(text, encoding="utf-8")
    installs = ("pip install", "python3 -m venv")
    shutil.copytree(kitchen / "tiny", kitchen / "fine-tuned")
    for language, content in blocks("README.md"):
        if language == "yaml":
            recipe = content.replace(HUB_MODEL, "./tiny")
            (kitchen / "cocktail.yaml").write_text(recipe, encoding="utf-8")
        # The guide runs torchrun.
        elif language != "json" and not content.startswith((*installs, "torchrun")):
            run(language, content, kitchen)
    for name in ("out", "chosen", "mixed", "half"):
        assert (kitchen / name / "model.safetensors").is_file()
    assert (kitchen / "out" / "report" / "report.html").is_file()

"""The guide's commands run as they stand, in the order in which they stand, in both languages."""

from __future__ import annotations

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
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL)
    return [(language, re.sub(r" *# .*", "", content)) for language, content in found]


def test_both_languages_show_the_same_commands() -> None:
    assert blocks("zh/guide.md") == blocks("guide.md")


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


def test_every_command_runs(kitchen: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }
    for language, content in blocks("guide.md"):
        command = content.replace(HUB_MODEL, "./tiny")
        if language == "json" or command.startswith("pip install"):
            continue
        call = [sys.executable, "-c"] if language == "python" else ["bash", "-euc"]
        done = subprocess.run(
            [*call, command], cwd=kitchen, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
    for number in (1, 2, 3):
        assert (kitchen / f"mixed_model_{number}" / "model.safetensors").is_file()

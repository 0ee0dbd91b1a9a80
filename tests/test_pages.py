"""Every command and every block of Python in docs/ runs as it stands, on tiny models and data.

The README and the guide, which a newcomer pastes from the top, run in test_guide.py: each command
in a process of its own.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import BertForSequenceClassification

from reranker_ft import train_reranker
from tests.cocktail.tiny import moved
from tests.language_models import make_language_model
from tests.pages import Shell, blocks, commands
from tests.reranker_ft.conftest import make_model, make_tokenizer, save, toy_rows

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

NOT_RUN = {
    r"^pip install ": "it would change the environment that the tests run in",
    r"^(python|bash) benchmarks/": "a measurement, of minutes to hours",
    r" \.\.\. ": "something of the reader's stands there",
    r" --benchmark | --retain NanoBEIR ": "the tasks come from the Hub; test_benchmark.py has one",
    r"pytest tests/": "it is one of these tests",
    r" --backend openvino": "an extra that not everyone has; test_backends.py has the command",
}
ELSEWHERE = {
    "guide.md": "test_guide.py",
    "zh/guide.md": "test_guide.py, which also compares it with the English one",
    "benchmarks.md": "every command is a measurement, of minutes to hours",
    "search-results.md": "the same",
}
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


@pytest.fixture(scope="module")
def pantry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the pages name: models under their names, and data."""
    folder = tmp_path_factory.mktemp("pantry")
    words = make_tokenizer("bert")
    rerankers = ("base", "fine-tuned", "one", "two", "other", "out", "covid", "overtuned")
    hub = ("BAAI/bge-reranker-base", "BAAI/bge-reranker-large")
    rows = [{**row, "query": f"{row['query']} {i}"} for i, row in enumerate(toy_rows(48))]
    _write(folder / "train.jsonl", rows)
    learnt = _trained(folder)
    for seed, name in enumerate((*rerankers, "classifier-of-bert", *hub)):
        save(folder / name, moved(copy.deepcopy(learnt), seed, 0.05 if seed else 0.0), words)
    _adapters(folder, ("lora", "lora-law", "lora-code"))
    for name, kind, layers in (
        ("Qwen/Qwen3-Reranker-0.6B", "qwen3", 2),
        ("BAAI/bge-reranker-v2-gemma", "gemma", 2),
        ("BAAI/bge-reranker-v2-minicpm-layerwise", "llama", 28),
        ("HuggingFaceTB/SmolLM2-135M", "llama", 9),
        ("my-model", "llama", 2),
        ("Qwen3-Reranker-0.6B", "qwen3", 2),
        ("model", "qwen3", 2),
        ("domain-model", "llama", 9),
    ):
        make_language_model(folder / name, kind, layers=layers)
    _data(folder)
    return folder


def _trained(folder: Path) -> Any:
    """A reranker that finds the positives, as what is calibrated must."""
    save(folder / "start", make_model("bert"), make_tokenizer("bert"))
    flags = {"num_train_epochs": 6, "learning_rate": 3e-3, "report_to": "none", "max_length": 48}
    train_reranker(
        folder / "start", folder / "train.jsonl", folder / "learnt", train_group_size=4,
        save_strategy="no", disable_tqdm=True, **flags,
    )  # fmt: skip
    return BertForSequenceClassification.from_pretrained(folder / "learnt")


def _adapters(folder: Path, names: tuple[str, ...]) -> None:
    from peft import LoraConfig, get_peft_model

    for name in names:
        config = LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
        adapted = get_peft_model(make_model("bert"), config)
        adapted.peft_config["default"].base_model_name_or_path = "./base"
        adapted.save_pretrained(folder / name)


def _data(folder: Path) -> None:
    rows = {"forty": 12, "DATA/train": 12, "DATA/xquad_zh/train": 12}
    tests = ("dev", "examples", "general", "target", "held-out", "DATA/target/test",
             "DATA/target/dev", "DATA/general/test", "DATA/covidqa/test", "DATA/xquad_en/test",
             "train_mined")  # fmt: skip
    for name in (*rows, *tests):
        _write(folder / f"{name}.jsonl", toy_rows(rows.get(name, 12)))
    shutil.copy(ROOT / "examples" / "toy_finetune_data.jsonl", folder)
    texts = [text for row in toy_rows(24) for text in (*row["pos"], *row["neg"])]
    pairs = [{"query": row["query"], "passage": row["pos"][0]} for row in toy_rows(6)]
    for place in (folder, folder / "DATA"):
        _write(place / "passages.jsonl", [{"text": text} for text in texts])
        _write(place / "pairs.jsonl", pairs)
    sentences = [
        f"The {row['query'][8:]} is red. It is in {row['pos'][0]}." for row in toy_rows(12)
    ]
    (folder / "general.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")


def _write(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def kitchen(pantry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the pantry, as the current folder; uploads go nowhere."""
    import huggingface_hub

    folder = tmp_path / "kitchen"
    shutil.copytree(pantry, folder)
    (folder / "OUT").mkdir()
    for name in ("base", "covid", "overtuned", "DATA"):
        (folder / "OUT" / name).symlink_to(folder / name)
    monkeypatch.chdir(folder)

    class Hub:
        repo_id = "org/name"

        def whoami(self) -> None: ...

        def create_repo(self, *_: Any, **__: Any) -> Hub:
            return self

        def upload_folder(self, **_: Any) -> None: ...

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return folder


def _names(page: str) -> dict[str, Any]:
    """What a page's Python takes as given."""
    if page != "search.md":
        return {}
    texts = [{"input": "who is the bird?", "output": "the red bird"}] * 4
    return {"models": ["HuggingFaceTB/SmolLM2-135M", "my-copy"], "examples": texts}


def test_every_page_is_looked_at() -> None:
    assert set(ELSEWHERE) < set(PAGES)


@pytest.mark.filterwarnings("ignore")  # of half precision on a CPU, and the like
@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE])
def test_every_command_of_the_page_runs(page: str, kitchen: Path) -> None:
    shell = Shell(_names(page))
    if page == "search.md":
        make_language_model(kitchen / "my-copy", "llama", layers=9, seed=1)
    if page == "llm-rerankers.md":
        shutil.rmtree(kitchen / "base")
        shutil.copytree(kitchen / "HuggingFaceTB/SmolLM2-135M", kitchen / "base")
        for name in ("train", "dev", "examples", "general"):  # long prompts take their time
            _write(kitchen / f"{name}.jsonl", toy_rows(4, negatives=2))
    for language, text in _runnable(page):
        if language == "python":
            shell.python(text)
        elif language == "yaml":
            (kitchen / "recipe.yaml").write_text(text, encoding="utf-8")
            shell.run("cocktail mix recipe.yaml --output ./of-the-recipe")
        else:
            shell.run(text)


def _runnable(page: str) -> Iterator[tuple[str, str]]:
    for block in blocks(DOCS / page):
        if block.language in ("python", "yaml"):
            yield block.language, block.text
        elif block.language == "sh":
            for command in commands(block):
                if not any(re.search(pattern, command) for pattern in NOT_RUN):
                    yield "sh", command


def test_what_does_not_run_is_on_a_page() -> None:
    """No pattern outlives its commands."""
    found = [
        command
        for page in PAGES
        if page not in ELSEWHERE
        for block in blocks(DOCS / page)
        if block.language == "sh"
        for command in commands(block)
    ]
    for pattern in NOT_RUN:
        assert any(re.search(pattern, command) for command in found), pattern

"""The reference that the site generates without importing what it describes."""

from __future__ import annotations

import importlib.util
from dataclasses import fields
from pathlib import Path

from transformers import TrainingArguments

from reranker_ft.train.config import DataArguments, ModelArguments, RerankerTrainingArguments

HOOKS = Path(__file__).parents[1] / "docs" / "hooks.py"


def test_the_reference_lists_every_flag_of_training() -> None:
    spec = importlib.util.spec_from_file_location("hooks", HOOKS)
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = hooks.on_page_markdown(hooks.MARK)
    theirs = {field.name for field in fields(TrainingArguments)}
    ours = fields(ModelArguments) + fields(DataArguments) + fields(RerankerTrainingArguments)
    listed = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `--")}
    required = {"warmup_ratio", "overwrite_output_dir"}  # transformers 4 has them too
    expected = {f"--{field.name}" for field in ours if field.name not in theirs - required}
    assert listed == expected
    assert "| `--train_group_size` | Passages per query and step" in page
    assert page.count("| required |") == 2

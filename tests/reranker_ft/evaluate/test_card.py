"""What was measured stands in the models' cards, and nothing else in them changes."""

import shutil

import numpy as np
import pytest
from huggingface_hub.repocard import ModelCard

from reranker_ft.errors import ArgumentError, DataError
from reranker_ft.evaluate.card import add_to_cards, check_cards
from reranker_ft.evaluate.compare import Result
from reranker_ft.evaluate.metrics import bootstrap_mean

CARD = """---
license: mit
model-index:
- name: mine
  results:
  - task: {type: text-ranking}
    dataset: {type: custom, name: target (dev.jsonl), config: target}
    metrics: [{type: ndcg_at_10, value: 0.5, name: NDCG@10}]
---

# Mine

Some words of my own | with a bar.
"""


def measured(model, **values):
    """Of one model, with the same value for every metric of a data set."""
    results = []
    for data, value in values.items():
        rows = np.full(4, value)
        means = {name: bootstrap_mean(rows) for name in ("ndcg@10", "map")}
        results.append(Result(str(model), data, {"ndcg@10": rows, "map": rows}, means, None))
    return results


def figures(path):
    found = ModelCard(path.read_text()).data.eval_results
    return {(each.dataset_name, each.metric_type): each.metric_value for each in found}


def test_a_card_keeps_its_words_and_figures(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(CARD)
    assert add_to_cards(measured(tmp_path, NanoNQ=0.25, NanoFEVER=0.75)) == [path]
    add_to_cards(measured(tmp_path, NanoNQ=0.5))
    text = path.read_text()
    assert "license: mit" in text and "name: mine" in text
    assert "# Mine\n\nSome words of my own | with a bar.\n" in text
    assert text.count("| NanoNQ | 4 | 0.5000 [0.5000, 0.5000] | 0.5000 [") == 1
    assert text.count("| NanoFEVER | 4 | 0.7500 [") == 1
    assert figures(path) == {
        ("target (dev.jsonl)", "ndcg_at_10"): 0.5,
        ("NanoNQ", "ndcg_at_10"): 0.5,
        ("NanoNQ", "map"): 0.5,
        ("NanoFEVER", "ndcg_at_10"): 0.75,
        ("NanoFEVER", "map"): 0.75,
    }


def test_a_model_without_a_card_gets_one(tmp_path):
    [path] = add_to_cards(measured(tmp_path, **{"/data/of/test.jsonl": 0.25}))
    assert figures(path)["of/test.jsonl", "map"] == 0.25
    assert "pipeline_tag: text-ranking" in path.read_text()


def test_what_has_no_card_is_refused_or_left_out(tmp_path):
    assert add_to_cards(measured("org/name", NanoNQ=0.5)) == []
    with pytest.raises(ArgumentError, match="org/name is no folder here"):
        check_cards(["org/name"])
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(DataError, match="front matter cannot be read"):
        check_cards([str(tmp_path)])


def test_the_command_writes_cards(model_folders, write_jsonl, tmp_path):
    from click.testing import CliRunner

    from reranker_ft.cli.main import main
    from tests.reranker_ft.conftest import toy_rows

    model = shutil.copytree(model_folders("bert"), tmp_path / "model")
    words = ["evaluate", str(model), "--data", str(write_jsonl(toy_rows(6))), "--card"]
    done = CliRunner().invoke(main, [*words, "--devices", "cpu"])
    assert done.exit_code == 0, done.output
    assert (f"{tmp_path.name}/data.jsonl", "ndcg_at_10") in figures(model / "README.md")

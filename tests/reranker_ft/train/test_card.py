"""The model card of a fine-tune."""

from pathlib import Path

import pytest
import yaml

from reranker_ft.train.card import write_card

HISTORY = [
    {"step": 1, "eval_ndcg@10": 0.5, "eval_retain_ndcg@10": 0.75},
    {"step": 2, "eval_ndcg@10": 0.625, "eval_retain_ndcg@10": 0.7},
    {"step": 2, "train_loss": 0.1},
]


def write(folder, base="org/base", history=HISTORY, *, adapters=False):
    write_card(
        folder,
        base,
        train_data=[Path("/private/train.jsonl")],
        eval_data={"eval": [Path("/private/eval.jsonl")], "eval_retain": [Path("general.jsonl")]},
        history=history,
        adapters=adapters,
    )
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_it_says_what_was_trained_on_what_and_measured_last(tmp_path):
    front, text = write(tmp_path)
    assert "/private" not in str(front) + text
    (model,) = front.pop("model-index")
    assert front == {
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "datasets": ["train.jsonl"],
        "library_name": "transformers",
        "pipeline_tag": "text-ranking",
        "tags": ["reranker", "cross-encoder"],
    }
    assert [
        (result["dataset"]["name"], result["metrics"][0]["type"], result["metrics"][0]["value"])
        for result in model["results"]
    ] == [
        ("target (eval.jsonl)", "ndcg_at_10", 0.625),
        ("general (general.jsonl)", "ndcg_at_10", 0.7),
    ]
    assert "| target (eval.jsonl) | NDCG@10 | 0.6250 |" in text


def test_a_local_base_is_no_id_of_the_hub(tmp_path):
    base = tmp_path / "my-base"
    base.mkdir()
    front, text = write(tmp_path, str(base), history=[])
    assert "base_model" not in front and "model-index" not in front
    assert "from `my-base` on train.jsonl" in text and str(tmp_path) not in text


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ("# Mine\n", True),
        ("---\n{}\n---\n[More Information Needed]\n", False),
        ("# x\nFine-tuned with `reranker-ft` from `y`.\n", False),
    ],
)
def test_a_card_of_somebody_else_stays(tmp_path, found, kept):
    (tmp_path / "README.md").write_text(found)
    if kept:
        with pytest.raises(ValueError, match="unpack"):
            write(tmp_path)
        assert (tmp_path / "README.md").read_text() == found
    else:
        assert write(tmp_path, adapters=True)[0]["library_name"] == "peft"

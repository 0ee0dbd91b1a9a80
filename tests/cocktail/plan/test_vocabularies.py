"""Rows are aligned by token where a tensor has one a token, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cocktail.checkpoint.resolve import resolve
from cocktail.checkpoint.vocabulary import read_vocabulary
from cocktail.errors import CheckpointError, PlanError
from cocktail.plan.plan import Plan, build_plan
from cocktail.recipe.recipe import make_recipe
from tests.cocktail.checkpoints import Save, streamed

TOKENS = ["[PAD]", "a", "b"]


def plan(*models: Path, **options: Any) -> Plan:
    return build_plan(make_recipe(models, (0.5, 0.5), **options))


def grown(
    save: Save, name: str, tokens: list[str], value: float, **others: tuple[int, ...]
) -> Path:
    """A model with an embedding for each token, and other tensors of these shapes."""
    shapes = {"bert.embeddings.word_embeddings.weight": (len(tokens), 2)} | others
    state = {key: torch.full(shape, value) for key, shape in shapes.items()}
    architecture = "BertForSequenceClassification" if "classifier.weight" in others else "BertModel"
    folder = save(name, state, architectures=[architecture], vocab_size=len(tokens))
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("bert.embeddings.position_embeddings.weight", 8),
        ("bert.embeddings.position_embeddings.weight", 4),
        ("bert.embeddings.LayerNorm.weight", 6),
        ("bert.embeddings.token_type_embeddings.weight", 5),
        ("lm_head.dense.weight", 6),
        ("lm_head.layer_norm.bias", 6),
        ("bert.embeddings.sizes.weight", 6),
    ],
)
def test_other_tensors_are_averaged_whatever_their_length(save: Save, name: str, rows: int) -> None:
    shape = (rows, 2) if name.endswith("weight") else (rows,)
    models = [
        grown(save, "small", TOKENS, 0.0, **{name: shape}),
        grown(save, "large", [*TOKENS, "new"], 1.0, **{name: shape}),
    ]
    mixed, _ = streamed(plan(*models))
    assert torch.equal(mixed[name], torch.full(shape, 0.5))
    embedding = mixed["bert.embeddings.word_embeddings.weight"]
    assert embedding[:, 0].tolist() == [0.5, 0.5, 0.5, 1.0]


@pytest.mark.parametrize("name", ["cls.predictions.bias", "lm_head.bias"])
def test_the_bias_of_the_output_has_one_row_a_token(save: Save, name: str) -> None:
    models = [
        grown(save, "small", TOKENS, 0.0, **{name: (3,)}),
        grown(save, "large", [*TOKENS, "new"], 1.0, **{name: (4,)}),
    ]
    assert streamed(plan(*models))[0][name].tolist() == [0.5, 0.5, 0.5, 1.0]


@pytest.mark.parametrize(("head", "with_head"), [("copy", 0), ("drop", 1)])
def test_config_and_tokenizer_cannot_come_from_two(save: Save, head: str, with_head: int) -> None:
    heads: list[dict[str, tuple[int, ...]]] = [{}, {}]
    heads[with_head] = {"classifier.weight": (1, 2)}
    small = grown(save, "small", TOKENS, 0.0, **heads[0])
    large = grown(save, "large", [*TOKENS, "new"], 1.0, **heads[1])
    with pytest.raises(PlanError, match="config and tokenizer must come from one"):
        plan(small, large, head=head)


def added(folder: Path, where: str, tokens: dict[str, int]) -> Path:
    value: dict[str, Any] = tokens
    if where == "tokenizer_config.json":
        value = {"added_tokens_decoder": {str(n): {"content": t} for t, n in tokens.items()}}
    (folder / where).write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize("vocabulary", ["vocab.txt", "tokenizer.model"])
@pytest.mark.parametrize("where", ["added_tokens.json", "tokenizer_config.json"])
def test_other_added_tokens_under_one_id_are_refused(
    save: Save, vocabulary: str, where: str
) -> None:
    models = []
    for name, token in (("one", "[A]"), ("two", "[B]")):
        folder = grown(save, name, [*TOKENS, "c"], 0.0)
        (folder / "vocab.txt").rename(folder / vocabulary)
        models.append(added(folder, where, {"[CLS]": 1, token: 3}))
    with pytest.raises(PlanError, match=r"\[B\]"):
        plan(*models)
    added(models[1], where, {"[A]": 3})
    plan(*models)


def test_a_token_that_one_has_added_comes_from_it(save: Save) -> None:
    small = grown(save, "small", [*TOKENS, "c"], 0.0)
    large = grown(save, "large", [*TOKENS, "c", ""], 1.0)
    added(large, "tokenizer_config.json", {"[A]": 4})
    mixed, _ = streamed(plan(small, large))
    assert mixed["bert.embeddings.word_embeddings.weight"][:, 0].tolist() == [0.5] * 4 + [1.0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vocab.json", "5"),
        ("vocab.json", "null"),
        ("vocab.json", '{"a": "0"}'),
        ("added_tokens.json", '{"a": true}'),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "a"}}}'),
        (
            "tokenizer.json",
            '{"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "b", "id": "1"}]}',
        ),
    ],
)
def test_a_damaged_vocabulary_is_one_line(save: Save, name: str, text: str) -> None:
    folders = [save(which, {"a.weight": torch.ones(2)}) for which in "ab"]
    for folder in folders:
        (folder / "vocab.json").write_text('{"a": 0}')
    (folders[1] / name).write_text(text)
    with pytest.raises(CheckpointError, match="its tokenizer files cannot be understood"):
        read_vocabulary(folders[1])
    with pytest.raises(PlanError, match="its tokenizer files cannot be understood"):
        plan(*folders)
    resolve(folders[1])

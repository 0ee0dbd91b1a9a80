"""Losses per example against transformers' own, batches by length, metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    Data2VecTextModel,
    RobertaPreLayerNormModel,
    XLMRobertaXLModel,
    XmodModel,
)

from cocktail.measure.tasks.decoder import DecoderTask
from cocktail.measure.tasks.encoder import EncoderTask, pool
from cocktail.measure.tasks.examples import ExampleError, read_ranked, read_written
from cocktail.measure.tasks.reranker import RerankerTask, position_limit
from cocktail.measure.tasks.seq2seq import EncoderDecoderTask
from cocktail.measure.tasks.task import by_length, ndcg_at_10
from tests.cocktail.tiny import BERT, FAMILIES, ranked, tokenizer, written

ONE = torch.ones(())
MAX_TOKENS = 48


def model(family: str):
    torch.manual_seed(3)
    return FAMILIES[family][1]().eval()


def losses(task, net) -> torch.Tensor:
    rows = None
    with torch.no_grad():
        for batch in task.batches(MAX_TOKENS):
            found = task.forward(net, batch)
            rows = torch.zeros((task.rows, *found.shape[1:])) if rows is None else rows
            rows[batch.rows] = found
    return task.losses(task.scores(rows, range(len(task.places))), ONE)


def test_decoder_loss_is_transformers_own_on_each_example_alone() -> None:
    """No padding token, no padding, labels masked by hand."""
    net, tok, rows = model("llama"), tokenizer("llama"), written(7)
    assert tok.pad_token_id is None
    task = DecoderTask(read_written(rows), tok, net, max_length=64)
    assert len(task.batches(MAX_TOKENS)) > 1
    for row, found in zip(rows, losses(task, net), strict=True):
        ids = [*tok.encode(row["input"] + " " + row["output"]), tok.eos_token_id]
        labels = [-100] * len(tok.encode(row["input"])) + ids[len(tok.encode(row["input"])) :]
        with torch.no_grad():
            expected = net(torch.tensor([ids]), labels=torch.tensor([labels])).loss
        assert float(found) == pytest.approx(float(expected), abs=1e-5)


def test_encoder_decoder_loss_is_transformers_own() -> None:
    net, tok, rows = model("t5"), tokenizer("t5"), written(7)
    task = EncoderDecoderTask(read_written(rows), tok, net, max_length=64)
    for row, found in zip(rows, losses(task, net), strict=True):
        with torch.no_grad():
            expected = net(
                input_ids=torch.tensor([tok.encode(row["input"])]),
                labels=torch.tensor([tok.encode(row["output"])]),
            ).loss
        assert float(found) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("family", ["bert-reranker", "roberta-reranker"])
def test_reranker_loss_is_cross_entropy_of_the_group(family: str) -> None:
    net, tok = model(family), tokenizer(family)
    rows = ranked(4, negatives=3)
    rows[1]["neg"] = rows[1]["neg"][:1]  # groups of different sizes
    task = RerankerTask(read_ranked(rows), tok, net, max_length=64)
    for row, found in zip(rows, losses(task, net), strict=True):
        passages = row["pos"] + row["neg"]
        inputs = tok([row["query"]] * len(passages), passages, padding=True, return_tensors="pt")
        with torch.no_grad():
            scores = net(**inputs).logits[:, 0]
        assert float(found) == pytest.approx(float(-scores.log_softmax(0)[0]), abs=1e-5)


def test_encoder_loss_has_the_passages_of_all_examples_and_no_other_positive() -> None:
    net, tok = model("bert-encoder"), tokenizer("bert-encoder")
    rows = ranked(3, negatives=2)
    rows[2]["pos"].append(rows[0]["neg"][0])  # a negative of another query answers this one
    task = EncoderTask(read_ranked(rows), tok, net, pooling="mean", max_length=64)
    queries = _embed(net, tok, [row["query"] for row in rows])
    texts = [text for row in rows for text in [row["pos"][0], *row["neg"]]]
    cosines = queries @ _embed(net, tok, texts).T / 0.05
    cosines[2, texts.index(rows[0]["neg"][0])] = -torch.inf
    expected = torch.nn.functional.cross_entropy(cosines, torch.tensor([0, 3, 6]), reduction="none")
    torch.testing.assert_close(losses(task, net).float(), expected, atol=1e-4, rtol=1e-4)


def _embed(net, tok, texts: list[str]) -> torch.Tensor:
    vectors = []
    for text in texts:
        with torch.no_grad():
            vectors.append(net(**tok(text, return_tensors="pt")).last_hidden_state[0].mean(0))
    return torch.nn.functional.normalize(torch.stack(vectors), dim=-1)


def test_an_encoder_ranks_own_passages_and_all_positives_where_there_are_none() -> None:
    rows = [*ranked(2, negatives=2), *({**row, "neg": []} for row in ranked(3, seed=9))]
    rows[4] = {**rows[4], "pos": [*rows[4]["pos"], *rows[0]["pos"]]}
    net, tok = model("bert-encoder"), tokenizer("bert-encoder")
    task = EncoderTask(read_ranked(rows), tok, net, pooling="mean", max_length=64)
    vectors = torch.randn(task.rows, 4, generator=torch.Generator().manual_seed(0))
    groups = task.groups(vectors, range(5))

    def cosines(query: int, passages: list[int]) -> list[float]:
        return torch.cosine_similarity(vectors[[query]], vectors[passages]).tolist()

    nothing = float("-inf")
    # Rows: two queries with three passages each, then three with one.
    np.testing.assert_allclose(groups[0], [*cosines(0, [1, 2, 3]), nothing, nothing], rtol=1e-5)
    np.testing.assert_allclose(groups[2], cosines(8, [9, 1, 5, 11, 13]), rtol=1e-5)
    np.testing.assert_allclose(groups[4], [*cosines(12, [13, 5, 9, 11]), nothing], rtol=1e-5)


def test_scale_slopes_are_the_derivatives_of_the_losses() -> None:
    for task, rows in _tasks_with_rows():
        scores = task.scores(rows, range(4))
        first, second = task.scale_slopes(scores, 1.3)
        at = {
            d: float(task.losses(scores, torch.tensor(1.3 + d, dtype=torch.float64)).sum())
            for d in (-1e-3, 0, 1e-3)
        }
        assert first == pytest.approx((at[1e-3] - at[-1e-3]) / 2e-3, rel=1e-4)
        assert second == pytest.approx((at[1e-3] - 2 * at[0] + at[-1e-3]) / 1e-6, rel=1e-2)


def _tasks_with_rows():
    generator = torch.Generator().manual_seed(0)
    examples = read_ranked(ranked(4))
    reranker = RerankerTask(
        examples, tokenizer("bert-reranker"), model("bert-reranker"), max_length=64
    )
    yield reranker, torch.randn(reranker.rows, generator=generator)
    encoder = EncoderTask(
        examples, tokenizer("bert-encoder"), model("bert-encoder"), pooling="cls", max_length=64
    )
    yield encoder, torch.randn(encoder.rows, 8, generator=generator)


def test_kept_probabilities_sum_to_one_and_hold_the_token() -> None:
    net = model("llama")
    task = DecoderTask(read_written(written(5)), tokenizer("llama"), net, max_length=64)
    for batch in task.batches(MAX_TOKENS):
        with torch.no_grad():
            kept, losses = task.keep(net, batch), task.forward(net, batch)
        torch.testing.assert_close(kept.exp().sum(dim=1), torch.ones(len(kept)))
        # The whole vocabulary is kept of a model as small as this.
        assert ((kept + losses[:, None]).abs().min(dim=1).values < 1e-5).all()


def test_an_input_that_fills_the_model_is_named() -> None:
    rows = [{"input": "red " * 30, "output": "blue"}]
    with pytest.raises(ExampleError, match=r"its input alone has 31 tokens \(the limit is 16"):
        DecoderTask(read_written(rows), tokenizer("llama"), model("llama"), max_length=16)


def test_batches_are_cut_by_length_and_padded_to_their_longest() -> None:
    lengths = [3, 9, 4, 20, 5]
    batches = by_length(lengths, 12)
    assert sorted(i for batch in batches for i in batch) == [0, 1, 2, 3, 4]
    assert batches[0] == [3]
    assert all(len(b) * max(lengths[i] for i in b) <= 12 for b in batches[1:])
    task = RerankerTask(
        read_ranked(ranked(5)), tokenizer("bert-reranker"), model("bert-reranker"), max_length=64
    )
    for batch in task.batches(MAX_TOKENS):
        mask = batch.inputs.get("attention_mask")
        assert mask is None or int(mask.sum(1).max()) == mask.shape[1]


def test_ndcg_counts_ties_against_the_model() -> None:
    scores = torch.tensor(
        [[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.5, float("-inf")]]
    )
    np.testing.assert_allclose(ndcg_at_10(scores), [1, 1 / np.log2(3), 0.5, 1])
    assert ndcg_at_10(torch.arange(12.0)[None])[0] == 0  # rank 12


@pytest.mark.parametrize("mode", ["cls", "mean", "max", "lasttoken"])
def test_pooling_does_not_see_the_padding(mode: str) -> None:
    hidden = torch.randn(1, 5, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    torch.testing.assert_close(pool(hidden, mask, mode), pool(hidden[:, :3], mask[:, :3], mode))


def test_what_is_read_and_written_is_padded_apart() -> None:
    rows = [
        {"input": "red " * read, "output": "blue " * wrote}
        for read, wrote in ((1, 20), (20, 1), (9, 9), (2, 3), (12, 2), (1, 15))
    ]
    task = EncoderDecoderTask(read_written(rows), tokenizer("t5"), model("t5"), max_length=64)
    batches = task.batches(MAX_TOKENS)
    assert all(batch.tokens <= MAX_TOKENS for batch in batches)
    assert any(batch.texts > 1 for batch in batches)
    assert [b.tokens for b in batches] == sorted((b.tokens for b in batches), reverse=True)
    assert sorted(i for batch in batches for i in batch.examples) == list(range(6))


@pytest.mark.parametrize(
    "kind", [XLMRobertaXLModel, RobertaPreLayerNormModel, Data2VecTextModel, XmodModel]
)
def test_texts_are_cut_where_positions_start_behind_the_padding(kind) -> None:
    """The table has 64 rows, of which a text has those from the padding token's id on."""
    extra = {"languages": ["en_XX"], "default_language": "en_XX"} if kind is XmodModel else {}
    config = kind.config_class(**BERT, max_position_embeddings=64, **extra)
    tok = tokenizer("roberta-encoder")
    tok.model_max_length = 10**30
    net = kind(config).eval()
    task = EncoderTask(
        read_ranked([{"query": "red " * 90, "pos": ["blue"], "neg": ["green"]}]), tok,
        net, pooling="cls", max_length=position_limit(net),
    )  # fmt: skip
    assert max(batch.inputs["input_ids"].shape[1] for batch in task.batches(MAX_TOKENS)) == 62
    losses(task, net)

"""Words, BM25 and embeddings: what ranks how high."""

import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from reranker_ft.data.instructions import Instructions
from reranker_ft.errors import ArgumentError, ModelError
from reranker_ft.mine import retrieve
from reranker_ft.mine.bi_encoder import EncoderOptions, PooledEncoder, load_encoder
from reranker_ft.mine.retrieve import BM25, EncoderSearch, lexical_tokens
from tests.reranker_ft.conftest import MAX_POSITIONS, make_tokenizer

DATA = Path(__file__).parents[3].parent / "shared" / "data"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The GIANT panda's 2nd home", ["the", "giant", "panda", "s", "2nd", "home"]),
        ("大熊猫", ["大熊", "熊猫"]),
        ("GPU加速，快", ["gpu", "加速", "快"]),
        ("ひらがな", ["ひら", "らが", "がな"]),
        ("ＦＵＬＬ　ｗｉｄｔｈ", ["full", "width"]),
        ("über straße", ["über", "straße"]),
        (" ,.! ", []),
    ],
)
def test_lexical_tokens(text, tokens):
    assert lexical_tokens(text) == tokens


def bm25_by_hand(pool: list[str], query: str) -> list[float]:
    """Lucene's BM25: idf = ln(1 + (N - n + .5) / (n + .5)), k1 = 1.5, b = 0.75."""
    documents = [Counter(lexical_tokens(text)) for text in pool]
    lengths = [sum(document.values()) for document in documents]
    average = sum(lengths) / len(lengths)
    scores = []
    for document, length in zip(documents, lengths, strict=True):
        score = 0.0
        for token in lexical_tokens(query):
            holding = sum(token in other for other in documents)
            idf = math.log(1 + (len(pool) - holding + 0.5) / (holding + 0.5))
            tf = document[token]
            score += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * length / average)) if tf else 0.0
        scores.append(score)
    return scores


def test_bm25_ranks_as_worked_by_hand():
    pool = ["red apple red", "green apple", "blue river and stone", "red", "winter is cold"]
    scores = bm25_by_hand(pool, "red apple unheard")
    [ranking] = BM25(pool).search(["red apple unheard"], 10)
    expected = sorted((i for i, s in enumerate(scores) if s > 0), key=lambda i: -scores[i])
    assert ranking.tolist() == expected
    [best] = BM25(pool).search(["red apple unheard"], 2)
    assert best.tolist() == expected[:2]


def test_bm25_gives_nothing_where_no_word_is_shared():
    rankings = list(BM25(["red apple", "blue river"]).search(["winter", "", "river"], 5))
    assert [ranking.tolist() for ranking in rankings] == [[], [], [1]]
    with pytest.raises(ArgumentError, match="has a word"):
        BM25(["...", "!"])


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the data sets are not in {DATA}")
@pytest.mark.parametrize(("name", "least"), [("xquad_zh", 0.9), ("xquad_en", 0.9)])
def test_bm25_finds_the_positives_of_real_questions(name, least):
    from reranker_ft.data.examples import ExampleFiles
    from reranker_ft.mine.mine import distinct, passages_of

    examples = ExampleFiles([DATA / name / "test.jsonl"])[:150]
    pool = distinct(passages_of(examples))
    rankings = BM25(pool).search([example.query for example in examples], 10)
    found = [
        any(pool[i] in example.pos for i in ranking)
        for example, ranking in zip(examples, rankings, strict=True)
    ]
    assert np.mean(found) > least


class TableEncoder:
    """Embeddings that stand in a table."""

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self.vectors = vectors

    def encode_queries(self, texts):
        return torch.tensor([self.vectors[text] for text in texts])

    encode_passages = encode_queries


@pytest.mark.parametrize(("piece", "block"), [(2, 1), (3, 2), (100, 100)])
def test_encoder_search_is_exact_whatever_the_pieces(monkeypatch, piece, block):
    random = np.random.default_rng(0)
    pool = [f"p{i}" for i in range(23)]
    queries = [f"q{i}" for i in range(5)]
    vectors = {text: random.normal(size=4).tolist() for text in pool + queries}
    monkeypatch.setattr(retrieve, "POOL_PIECE", piece)
    monkeypatch.setattr(retrieve, "QUERY_BLOCK", block)
    search = EncoderSearch(TableEncoder(vectors), pool)
    for top_k in (4, 23, 50):
        for query, ranking in zip(queries, search.search(queries, top_k), strict=True):
            products = [np.dot(vectors[query], vectors[text]) for text in pool]
            assert ranking.tolist() == np.argsort(-np.array(products))[:top_k].tolist()


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = make_tokenizer("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


TEXTS = ["the red apple", "river", "what is the king of the north and where is the bridge"]


@pytest.mark.parametrize("pooling", ["cls", "mean", "last_token"])
def test_pooled_embeddings_equal_unpadded_ones(encoder_folder, pooling):
    options = EncoderOptions(pooling=pooling, device="cpu", normalize=False)
    encoder = load_encoder(encoder_folder, options)
    assert isinstance(encoder, PooledEncoder)
    together = encoder.encode_passages(TEXTS)
    model, tokenizer = BertModel.from_pretrained(encoder_folder).eval(), make_tokenizer("bert")
    for text, vector in zip(TEXTS, together, strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        one = {"cls": hidden[0], "mean": hidden.mean(0), "last_token": hidden[-1]}[pooling]
        torch.testing.assert_close(vector, one, atol=1e-5, rtol=1e-4)


def test_pooled_encoder_normalizes_cuts_and_instructs(encoder_folder):
    options = EncoderOptions(
        pooling="mean",
        device="cpu",
        instructions=Instructions(query="what is", query_format="{} {}"),
        query_max_length=5,
    )
    encoder = load_encoder(encoder_folder, options)
    torch.testing.assert_close(encoder.encode_passages(TEXTS).norm(dim=1), torch.ones(3))
    plain = load_encoder(encoder_folder, EncoderOptions(pooling="mean", device="cpu"))
    torch.testing.assert_close(
        encoder.encode_queries(["red", "red apple and more"]),
        plain.encode_passages(["what is red", "what is red"]),
    )


def test_texts_are_cut_at_the_model_s_positions(encoder_folder, tmp_path):
    BertModel.from_pretrained(encoder_folder).save_pretrained(tmp_path)
    tokenizer = make_tokenizer("bert")
    tokenizer.model_max_length = 512  # more than the model has positions for
    tokenizer.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), EncoderOptions(pooling="mean", device="cpu"))
    whole, cut = (encoder.encode_passages(["red " * n]) for n in (200, MAX_POSITIONS - 2))
    torch.testing.assert_close(whole, cut)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"device": "foo"}, "device 'foo' is unknown"),
        ({"device": "meta"}, "'meta' computes nothing"),
        ({"query_max_length": -5}, "query_max_length is -5"),
        ({"passage_max_length": 0}, "passage_max_length is 0"),
        ({"passage_max_length": 2, "pooling": "cls"}, "2 tokens - 2 of a text's are special"),
    ],
)
def test_what_an_encoder_cannot_do_is_said_of_the_option(encoder_folder, wrong, found):
    with pytest.raises(ArgumentError, match=found):
        load_encoder(encoder_folder, EncoderOptions(**wrong))


def test_sentence_transformers_reads_the_stored_pooling(encoder_folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(encoder_folder, device="cpu").save(str(tmp_path / "st"))  # mean pooling
    stored = load_encoder(str(tmp_path / "st"), EncoderOptions(device="cpu"))
    pooled = load_encoder(encoder_folder, EncoderOptions(pooling="mean", device="cpu"))
    torch.testing.assert_close(
        stored.encode_queries(TEXTS), pooled.encode_queries(TEXTS), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        stored.encode_passages(TEXTS), pooled.encode_passages(TEXTS), atol=1e-5, rtol=1e-4
    )


def test_an_encoder_that_is_not_there_is_refused_in_one_line(tmp_path):
    for pooling in (None, "cls"):
        with pytest.raises(ModelError, match="does not load") as refused:
            load_encoder(str(tmp_path / "absent"), EncoderOptions(pooling=pooling, device="cpu"))
        assert "\n" not in str(refused.value)


def test_bm25_leaves_jax_and_its_memory_alone(tmp_path):
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("there = True\n")
    (tmp_path / "jax" / "lax.py").write_text("raise SystemExit('JAX was called')\n")
    code = "import reranker_ft.mine.retrieve, jax; assert jax.there"
    paths = [str(tmp_path), str(Path(__file__).parents[3]), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == 0

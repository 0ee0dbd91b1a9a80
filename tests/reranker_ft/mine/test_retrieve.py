"""Words and BM25: what ranks how high."""

import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from reranker_ft.errors import ArgumentError
from reranker_ft.mine.retrieve import BM25, lexical_tokens

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


def test_bm25_leaves_jax_and_its_memory_alone(tmp_path):
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("there = True\n")
    (tmp_path / "jax" / "lax.py").write_text("raise SystemExit('JAX was called')\n")
    code = "import reranker_ft.mine.retrieve, jax; assert jax.there"
    paths = [str(tmp_path), str(Path(__file__).parents[3]), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == 0

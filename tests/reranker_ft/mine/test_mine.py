"""Hard negatives: never a positive, from the range of ranks, seeded, below the margin."""

import json

import numpy as np
import pytest

from reranker_ft.data.examples import ExampleFiles
from reranker_ft.data.instructions import Instructions
from reranker_ft.errors import ArgumentError, DataError
from reranker_ft.mine import mine as mine_module
from reranker_ft.mine.mine import MiningOptions, distinct, mine_file, parse_ranks, read_pool
from reranker_ft.mine.retrieve import BM25
from reranker_ft.score.reranker import Reranker
from tests.reranker_ft.conftest import toy_rows


class FixedRanking:
    """Gives the whole pool in one order to every query."""

    def __init__(self, pool):
        self.pool = pool

    def search(self, queries, top_k):
        for _ in queries:
            yield np.arange(len(self.pool))[:top_k]


class NumberReranker:
    """Scores a passage by the number after its last space; keeps what it was asked."""

    def __init__(self):
        self.calls = []
        self.instructions = Instructions()

    instruct = Reranker.instruct

    def score_pairs(self, pairs, *, normalize):
        assert normalize is False
        import torch

        self.calls.append(list(pairs))
        return torch.tensor([float(passage.split()[-1]) for _, passage in pairs])


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def pool_file(tmp_path):
    """60 passages "passage 0" to "passage 59"."""
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps({"text": f"passage {i}"}) + "\n" for i in range(60)))
    return path


def test_the_range_of_ranks_is_respected_and_no_positive_comes(tmp_path, write_jsonl, pool_file):
    data = write_jsonl([{"query": f"q{i}", "pos": [f"passage {i}"], "id": i} for i in range(20)])
    report = mine_file(
        data,
        tmp_path / "mined.jsonl",
        MiningOptions(ranks=(5, 15), negatives=9),
        FixedRanking,
        candidate_pool=pool_file,
    )
    rows = read(tmp_path / "mined.jsonl")
    assert [(row["query"], row["id"]) for row in rows] == [(f"q{i}", i) for i in range(20)]
    for i, row in enumerate(rows):
        ranks = [int(text.split()[1]) for text in row["neg"]]
        assert set(ranks) <= set(range(5, 15)) - {i}
        assert len(set(ranks)) == len(ranks) == 9
    assert report.to_dict() == {
        "queries": 20,
        "pool": 60,
        "mined": 180,
        "filled": 0,
        "guarded": 0,
        "short": 0,
        "output": str(tmp_path / "mined.jsonl"),
    }


def test_positives_differ_in_white_space_and_stand_on_other_lines(tmp_path, write_jsonl):
    data = write_jsonl(
        [
            {"query": "red apple", "pos": ["a  red apple"], "neg": ["red  apple pie"]},
            {"query": "red apple ", "pos": ["the red\tapple"], "neg": ["a red apple", "Red apple"]},
        ]
    )
    options = MiningOptions(ranks=(0, 10), negatives=5)
    mine_file(data, tmp_path / "mined.jsonl", options, BM25)
    for row in read(tmp_path / "mined.jsonl"):
        assert sorted(row["neg"]) == ["Red apple", "red  apple pie"]


def test_the_query_itself_is_no_negative(tmp_path, write_jsonl):
    rows = [{"query": "red apple", "pos": ["a fruit"], "neg": ["red  apple", "apple tree"]}]
    options = MiningOptions(ranks=(0, 10), negatives=5)
    mine_file(write_jsonl(rows), tmp_path / "mined.jsonl", options, BM25)
    assert read(tmp_path / "mined.jsonl")[0]["neg"] == ["apple tree"]


def test_equal_seeds_draw_equally_and_chunks_do_not_matter(
    tmp_path, write_jsonl, pool_file, monkeypatch
):
    data = write_jsonl([{"query": f"q{i}", "pos": ["yes"]} for i in range(10)])

    def mined(name, seed):
        mine_file(
            data,
            tmp_path / name,
            MiningOptions(ranks=(0, 40), negatives=5, seed=seed),
            FixedRanking,
            candidate_pool=pool_file,
        )
        return (tmp_path / name).read_bytes()

    first = mined("a.jsonl", 0)
    assert mined("b.jsonl", 1) != first
    monkeypatch.setattr(mine_module, "CHUNK_QUERIES", 3)
    assert mined("c.jsonl", 0) == first
    rows = read(tmp_path / "a.jsonl")
    assert rows[0]["neg"] != rows[1]["neg"]  # same ranking, another draw


def test_missing_negatives_are_filled_at_random_below_the_range(tmp_path, write_jsonl, pool_file):
    data = write_jsonl([{"query": "q", "pos": ["passage 3"]}])

    def mined(**options):
        report = mine_file(
            data,
            tmp_path / "mined.jsonl",
            MiningOptions(ranks=(2, 5), negatives=10, **options),
            FixedRanking,
            candidate_pool=pool_file,
            overwrite=True,
        )
        [row] = read(tmp_path / "mined.jsonl")
        return report, [int(text.split()[1]) for text in row["neg"]]

    report, ranks = mined()
    assert (report.mined, report.filled, report.short) == (2, 8, 0)
    assert set(ranks[:2]) == {2, 4}
    assert min(ranks[2:]) >= 5  # The best two ranks, left out on purpose, do not come back.
    assert len(set(ranks)) == 10
    report, ranks = mined(fill_random=False)
    assert (report.mined, report.filled, report.short) == (2, 0, 1)
    assert set(ranks) == {2, 4}


def test_the_fill_finds_all_that_is_left_below_the_range(tmp_path, write_jsonl, pool_file):
    data = write_jsonl([{"query": f"q{i}", "pos": [f"passage {i}"]} for i in range(8)])
    report = mine_file(
        data,
        tmp_path / "mined.jsonl",
        MiningOptions(ranks=(48, 50), negatives=12),
        FixedRanking,
        candidate_pool=pool_file,
    )
    assert (report.mined, report.filled, report.short) == (16, 80, 0)
    for row in read(tmp_path / "mined.jsonl"):
        assert sorted(int(text.split()[1]) for text in row["neg"]) == list(range(48, 60))


@pytest.mark.parametrize(("tries", "found"), [(1000, 4), (3, 0)])
def test_the_fill_goes_on_where_the_guard_refuses(
    tmp_path, write_jsonl, pool_file, monkeypatch, tries, found
):
    monkeypatch.setattr(mine_module, "GUARDED_RANDOM", tries)

    class BestLast(FixedRanking):
        def search(self, queries, top_k):
            yield np.arange(60)[::-1][:top_k]

    guard = NumberReranker()
    report = mine_file(
        write_jsonl([{"query": "q", "pos": ["yes 3"]}]),
        tmp_path / "mined.jsonl",
        MiningOptions(ranks=(0, 2), negatives=4),
        BestLast,
        candidate_pool=pool_file,
        reranker=guard,
    )
    # Of 60 passages four pass, and two stand in the range.
    assert (report.filled, report.short) == (found, found < 4)
    assert sum(map(len, guard.calls)) - 1 <= 2 + tries


def test_the_guard_keeps_negatives_a_margin_below_every_positive(tmp_path, write_jsonl, pool_file):
    data = write_jsonl(
        [
            {"query": "one positive", "pos": ["yes 30"]},
            {"query": "two positives", "pos": ["yes 50", "yes 12"]},
        ]
    )
    guard = NumberReranker()
    report = mine_file(
        data,
        tmp_path / "mined.jsonl",
        MiningOptions(ranks=(0, 60), negatives=20, margin=2.5),
        FixedRanking,
        candidate_pool=pool_file,
        reranker=guard,
    )
    numbers = [[int(t.split()[1]) for t in row["neg"]] for row in read(tmp_path / "mined.jsonl")]
    assert len(numbers[0]) == 20
    assert max(numbers[0]) <= 27
    assert sorted(numbers[1]) == list(range(10))  # 12 - 2.5 leaves 0 to 9
    assert (report.short, report.mined) == (1, 30)
    pairs = [pair for call in guard.calls for pair in call]
    assert len(pairs) == len(set(pairs))  # nothing is scored twice
    assert {query for query, _ in guard.calls[1]} == {"one positive", "two positives"}
    assert report.guarded == len(pairs) - 3 - 30


def test_the_guard_scores_no_more_than_it_needs(tmp_path, write_jsonl, pool_file):
    guard = NumberReranker()
    mine_file(
        write_jsonl([{"query": "q", "pos": ["yes 1000"]}]),
        tmp_path / "mined.jsonl",
        MiningOptions(ranks=(0, 60), negatives=7),
        FixedRanking,
        candidate_pool=pool_file,
        reranker=guard,
    )
    assert [len(call) for call in guard.calls] == [1, 7]


def test_mining_with_bm25_and_a_real_guard(tmp_path, write_jsonl, model_folders):
    data = write_jsonl(toy_rows(12))
    reranker = Reranker(model_folders(), devices="cpu")
    options = MiningOptions(ranks=(0, 50), negatives=4, margin=0.01)
    mine_file(data, tmp_path / "mined.jsonl", options, BM25, reranker=reranker)
    rows = read(tmp_path / "mined.jsonl")
    assert any(row["neg"] for row in rows)
    for row in rows:
        lowest = min(reranker.compute_score([(row["query"], text) for text in row["pos"]]))
        scores = reranker.compute_score([(row["query"], text) for text in row["neg"]])
        assert all(score <= lowest - 0.01 + 1e-5 for score in scores)
    assert len(ExampleFiles([tmp_path / "mined.jsonl"])) == 12


def test_other_fields_stay_and_stale_scores_go(tmp_path, write_jsonl):
    row = {"id": "x", "query": "red apple", "pos": ["a"], "neg": ["red"], "prompt": "查询"}
    scores = {"pos_scores": [1.5], "neg_scores": [0.5]}
    mine_file(
        write_jsonl([{**row, **scores}]),
        tmp_path / "mined.jsonl",
        MiningOptions(ranks=(0, 5)),
        BM25,
    )
    assert read(tmp_path / "mined.jsonl") == [{**row, "pos_scores": [1.5]}]
    assert "查询" in (tmp_path / "mined.jsonl").read_text(encoding="utf-8")


def test_pools_are_json_or_plain_lines(tmp_path):
    (tmp_path / "pool.txt").write_text("first passage\n\n second \r\n{}\n")
    assert list(read_pool(tmp_path / "pool.txt")) == ["first passage", "second", "{}"]
    (tmp_path / "pool.jsonl").write_text('{"text": "a"}\n{"passage": "b"}\n["c"]\nnot json\n')
    with pytest.raises(DataError, match=r"3 problems(.|\n)*pool.jsonl:2: no \"text\""):
        list(read_pool(tmp_path / "pool.jsonl"))
    (tmp_path / "half.jsonl").write_text('{"text": "a\\ud800"}\n')
    with pytest.raises(DataError, match=r"half.jsonl:1: .* half of a character"):
        list(read_pool(tmp_path / "half.jsonl"))
    assert distinct(iter(["a b", " ", "a  b", "c"])) == ["a b", "c"]
    (tmp_path / "pool.txt").write_text("first\n", encoding="utf-8-sig")
    with pytest.raises(DataError, match=r"pool.txt:1: .*byte order mark"):
        list(read_pool(tmp_path / "pool.txt"))


def test_nothing_is_written_over_or_left_behind(tmp_path, write_jsonl):
    data = write_jsonl(toy_rows(3))
    before = data.read_bytes()
    with pytest.raises(ArgumentError, match="exists"):
        mine_file(data, data, MiningOptions(), BM25)

    class Breaks(FixedRanking):
        def search(self, queries, top_k):
            yield np.arange(2)
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        mine_file(data, tmp_path / "mined.jsonl", MiningOptions(), Breaks)
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]
    assert data.read_bytes() == before
    # The input may be replaced by its own output: it is read to its end first.
    mine_file(data, data, MiningOptions(ranks=(0, 9)), BM25, overwrite=True)
    assert [row["query"] for row in read(data)] == [row["query"] for row in toy_rows(3)]


@pytest.mark.parametrize("wrong", ["10", "a-b", "5-", "-3", "5-5", "9-2", ""])
def test_a_range_that_is_none_is_refused(wrong):
    with pytest.raises(ArgumentError, match="10-210"):
        MiningOptions(ranks=parse_ranks(wrong))
    with pytest.raises(ArgumentError, match="use 1 or more"):
        MiningOptions(negatives=0)


@pytest.mark.parametrize(
    ("wrong", "found"), [({"seed": -1}, "seed is -1"), ({"margin": float("nan")}, "margin is nan")]
)
def test_options_that_cannot_be_meant_are_refused(wrong, found):
    with pytest.raises(ArgumentError, match=found):
        MiningOptions(**wrong)

"""General text: what is read, what is asked of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cocktail.measure.tasks.examples import ExampleError
from cocktail.measure.unlabelled import (
    CANDIDATES,
    MOST,
    GeneralText,
    ranked_from,
    read_general,
    written_from,
)

PLAIN = """The red bird sings in the garden at dawn. It eats seeds of the tall grass there.

A stone bridge crosses the river near the city. Horses walk over it every morning.
Water falls from the northern hills in spring. The king drinks it from a cup of gold.
"""


def test_plain_text_is_a_passage_a_line(tmp_path: Path) -> None:
    path = tmp_path / "general.txt"
    path.write_text(PLAIN, encoding="utf-8")
    found = read_general(path)
    assert not found.queries
    assert [place for _, place in found.passages] == [f"{path}:{n}" for n in (1, 3, 4)]


def test_jsonl_has_texts_and_queries(tmp_path: Path) -> None:
    rows = [{"text": "one"}, {"query": "what is two?"}, {"query": "what is 3?", "text": "three"},
            {"text": "one"}]  # fmt: skip
    path = tmp_path / "general.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = read_general(path)
    assert [text for text, _ in found.queries] == ["what is two?", "what is 3?"]
    assert [text for text, _ in found.passages] == ["one", "three"]
    assert read_general(rows).passages[1] == ("three", "text 3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no text"),
        ('{"text": "a"}\nplain', ":2: is not a JSON object"),
        ('{"pos": ["a"]}', "neither 'text' nor 'query'"),
        ('{"text": 3}', "'text' is a int"),
        ('{"query": " "}', "'query' is empty"),
        ('{"text": "\\ud800"}', "lone surrogate"),
    ],
)
def test_what_is_no_general_text_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "general"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ExampleError, match=message) as caught:
        read_general(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ExampleError, match="cannot be read"):
        read_general(tmp_path / "nowhere")
    with pytest.raises(ExampleError, match="text 1: is a int"):
        read_general([3])  # type: ignore[list-item]


def test_queries_rank_what_bm25_finds() -> None:
    passages = [
        (f"the {word} stands here", f"p{i}")
        for i, word in enumerate(
            ("king", "bridge", "river", "garden", "horse", "bird", "stone", "fire", "city", "apple")
        )
    ]
    text = GeneralText((("where is the river?", "q1"),), tuple(passages))
    [example] = ranked_from(text, 0)
    assert example.passages[0] == "the river stands here"
    assert len(example.passages) == CANDIDATES
    assert example.place == "q1"


def test_sentences_become_queries_of_passages_without_them() -> None:
    found = ranked_from(read_general(list(filter(None, PLAIN.split("\n")))), 0)
    assert found
    for example in found:
        assert all(example.query not in passage for passage in example.passages)
        assert len(set(example.passages)) == len(example.passages)


def test_chinese_is_asked_by_its_characters() -> None:
    rows = [{"query": "蜜蜂怎样跳舞？"}, {"text": "蜜蜂用八字形的舞蹈告诉同伴花的方向。"},
            {"text": "茶园在山的北坡。"}, {"text": "古桥有三个桥洞。"}]  # fmt: skip
    [example] = ranked_from(read_general(rows), 0)
    assert example.passages[0].startswith("蜜蜂")


@pytest.mark.parametrize("rows", [["one", "two"], ["one", "two", "three", "four"]])
def test_too_little_to_rank_is_refused(rows: list[str]) -> None:
    with pytest.raises(ExampleError, match="general text has"):
        ranked_from(read_general(rows), 0)


def test_long_files_are_drawn_from_by_the_seed() -> None:
    rows: list[Any] = [f"word{i} and word{i + 1} are here. More of word{i}." for i in range(300)]
    text = read_general(rows)
    one, other = written_from(text, 0, reads=False), written_from(text, 1, reads=False)
    assert len(one) == len(other) == MOST
    assert one != other
    assert written_from(text, 0, reads=False) == one
    assert len(ranked_from(text, 0)) == MOST
    halves = written_from(text, 0, reads=True)
    assert {half.input + half.output for half in halves} == {whole.output for whole in one}

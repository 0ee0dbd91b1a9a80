"""Instructions around queries and passages."""

import json

import pytest

from reranker_ft.data.instructions import Instructions
from reranker_ft.errors import ArgumentError


def line(**fields):
    return json.dumps(fields).encode()


def test_instructions_go_around_texts_and_a_line_has_its_own():
    instructions = Instructions("find:", "{} {}\\n", "read:", "<{}>{}")
    assert instructions.of_query("q") == "find: q\n"
    assert instructions.of_query("q", "seek:") == "seek: q\n"
    assert instructions.of_passage("p") == "<read:>p"
    assert Instructions().of_query("q") == "q"
    for template in ("{}", "{} {} {}", "no place", "{a}{b}"):
        with pytest.raises(ArgumentError, match="has two places"):
            Instructions(query_format=template)

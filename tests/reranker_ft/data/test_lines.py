"""Lines of files: decoded, parsed, counted."""

import pytest

from reranker_ft.data.lines import lone_surrogate, parse_json, parsed_lines, refuse_unwritable
from reranker_ft.errors import DataError, Problems


def test_lines_come_with_number_and_offset_and_broken_ones_are_counted(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"a": 1}\n\n  \n{broken\n"\xff"\n[2]')
    problems = Problems()
    found = list(parsed_lines(path, parse_json, problems))
    assert found == [(1, 0, {"a": 1}), (4, 13, None), (5, 21, None), (6, 25, [2])]
    for _, offset, content in found:
        if content is not None:
            assert parse_json(path.read_bytes()[offset:].split(b"\n")[0]) == content
    with pytest.raises(DataError, match="2 problems") as refused:
        problems.refuse()
    assert f"{path}:4: broken JSON" in str(refused.value)
    assert f"{path}:5: byte 1 of the line is not UTF-8" in str(refused.value)


def test_no_problems_are_not_refused():
    Problems().refuse()


def test_half_a_character_is_found():
    assert lone_surrogate("whole \N{PANDA FACE}") is None
    assert lone_surrogate("half \ud83d of one") == "\ud83d"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"a": NaN}', "NaN"),
        (b'{"a": [1e999]}', "infinite"),
        (rb'{"a": {"b": "\ud83d"}}', "half of a character"),
    ],
)
def test_what_json_cannot_hold_is_refused_at_any_depth(line, found):
    with pytest.raises(ValueError, match=found):
        refuse_unwritable(line, parse_json(line))


def test_a_byte_order_mark_is_refused():
    with pytest.raises(ValueError, match="byte order mark"):
        parse_json(b"\xef\xbb\xbf{}")

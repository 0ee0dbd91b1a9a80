"""Pictures of results."""

import pytest

from reranker_ft.errors import ArgumentError
from reranker_ft.evaluate.picture import check_picture_format, draw_comparison


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_picture_is_drawn_and_replaces_nothing(results, tmp_path, suffix, magic):
    path = tmp_path / f"comparison{suffix}"
    draw_comparison(results, path)
    assert path.read_bytes().startswith(magic)
    with pytest.raises(ArgumentError, match="exists"):
        draw_comparison(results, path)
    with pytest.raises(ArgumentError, match="not measured"):
        draw_comparison(results, path, metric="accuracy", overwrite=True)
    with pytest.raises(ArgumentError, match="suffix says the format"):
        check_picture_format("comparison.docx")

"""Progress bars appear where they are wanted."""

import pytest

from reranker_ft.progress import byte_bar, progress_bar


@pytest.mark.parametrize("shown", [True, False])
def test_a_bar_is_drawn_only_if_shown(shown, capsys):
    with progress_bar(3, "counting", shown=shown, unit="pair") as bar:
        bar.update(3)
    drawn = capsys.readouterr().err
    assert ("counting" in drawn and "3/3" in drawn) is shown
    assert bool(drawn) is shown


def test_bytes_of_all_files_are_counted(tmp_path):
    for name, size in (("a", 700), ("b", 323)):
        (tmp_path / name).write_bytes(b"x" * size)
    with byte_bar(sorted(tmp_path.iterdir()), "reading", shown=False) as bar:
        assert bar.total == 1023

"""Progress appears where it is wanted: bars on a terminal, lines elsewhere."""

import pytest

from reranker_ft.progress import byte_bar, duration, on_terminal, progress_bar


@pytest.mark.parametrize("shown", [True, False])
def test_a_bar_is_drawn_only_if_shown(shown, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress_bar(3, "counting", shown=shown, unit="pairs") as bar:
        bar.update(3)
    drawn = capsys.readouterr().err
    assert ("counting" in drawn and "3/3" in drawn) is shown
    assert bool(drawn) is shown


def test_bytes_of_all_files_are_counted(tmp_path):
    for name, size in (("a", 700), ("b", 323)):
        (tmp_path / name).write_bytes(b"x" * size)
    with byte_bar(sorted(tmp_path.iterdir()), "reading", shown=False) as bar:
        assert bar.total == 1023


def test_without_a_terminal_a_line_appears_every_half_minute(capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    with progress_bar(1000, "scoring", shown=True, unit="pairs") as bar:
        for _ in range(8):
            now[0] += 10
            bar.update(100)
        bar.set_postfix_str("loss 0.5", refresh=False)
        now[0] += 10
        bar.update(100)
    assert capsys.readouterr().err.splitlines() == [
        "scoring: 300 of 1,000 pairs, 70 s left, 30 s so far",
        "scoring: 600 of 1,000 pairs, 40 s left, 60 s so far",
        "scoring: 900 of 1,000 pairs, 10 s left, 90 s so far, loss 0.5",
    ]


def test_what_is_short_says_nothing_in_a_log(capsys):
    with progress_bar(3, "counting", shown=True) as bar:
        bar.update(3)
    with progress_bar(None, "counting", shown=True):
        pass
    assert capsys.readouterr().err == ""


def test_a_notebook_draws_bars(monkeypatch):
    class ZMQInteractiveShell:
        pass

    class IPython:
        get_ipython = ZMQInteractiveShell

    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    assert not on_terminal()
    monkeypatch.setitem(__import__("sys").modules, "IPython", IPython)
    assert on_terminal()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (89, "89 s"), (91, "2 min"), (3599, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_a_time_is_said_in_two_units_at_most(seconds, said):
    assert duration(seconds) == said

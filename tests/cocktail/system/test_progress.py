"""Bars on a terminal, lines elsewhere, and nothing where it is not wanted."""

from __future__ import annotations

import pytest

from cocktail.system.progress import byte_progress, progress_bar


def test_without_a_terminal_a_line_appears_every_half_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    with progress_bar(total=24, desc="searching", unit=" mixes", shown=True, mininterval=0) as bar:
        for _ in range(7):
            now[0] += 20
            bar.set_postfix_str("best loss 0.5")
            bar.update(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "searching: 4 of 24 mixes, 4 min left, 40 s so far, best loss 0.5"
    assert len(lines) == 3
    with byte_progress(10**9, "mixing", shown=True) as advance:
        now[0] += 60
        advance(25 * 10**7)
    assert capsys.readouterr().err == "mixing: 250MB of 1.00GB, 3 min left, 60 s so far\n"


def test_a_bar_is_drawn_on_a_terminal_and_only_if_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for shown in (True, False):
        with progress_bar(total=3, desc="counting", shown=shown) as bar:
            bar.update(3)
        assert ("counting" in capsys.readouterr().err) is shown

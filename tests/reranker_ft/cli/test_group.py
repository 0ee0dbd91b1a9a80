"""Whatever ends a command is one line on stderr."""

import os
import signal
import sys

import pytest
from click.testing import CliRunner

from reranker_ft.cli.main import main
from reranker_ft.errors import RerankerError
from tests.reranker_ft.conftest import toy_rows


def run(*arguments, input=None, code=0):
    """Runs a command and returns its result, once the exit code is as expected."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], input=input)
    assert result.exit_code == code, result.output
    if result.exception is not None:
        assert isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["evaluate", "absent", "--data", "absent.jsonl"], "absent.jsonl does not exist"),
        (["score", "./absent"], "./absent does not load"),
        (["distil", "./absent", "--input_file", "a", "--output_file", "b"], "does not load"),
        (["mine", "--input_file", "a", "--output_file", "b"], "a does not exist"),
        (["check", "absent.jsonl"], "absent.jsonl does not exist"),
    ],
)
def test_what_is_refused_is_one_line_on_stderr(arguments, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, code=1)
    [line] = [line for line in result.stderr.splitlines() if line.startswith("reranker-ft: ")]
    assert found in line
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_one_line(monkeypatch, write_jsonl):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    for name in [
        n for n in sys.modules if n in ("reranker_ft.mine.mine", "reranker_ft.mine.retrieve")
    ]:
        monkeypatch.delitem(sys.modules, name)
    data = write_jsonl(toy_rows(1))
    result = run("mine", "--input_file", data, "--output_file", data.parent / "out", code=1)
    assert "pip install '.[train]' in a clone" in result.stderr


def test_ctrl_c_is_one_line(monkeypatch, write_jsonl):
    import reranker_ft.train.check

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(reranker_ft.train.check, "check_data", interrupted)
    result = run("check", write_jsonl(toy_rows(1)), code=130)
    assert (result.stdout, result.stderr) == (
        "",
        "reranker-ft: interrupted - nothing was written - run the same command to start anew\n",
    )


def test_sigterm_is_one_line_and_leaves_no_half_written_file(
    model_folders, write_jsonl, tmp_path, monkeypatch
):
    from reranker_ft.score.reranker import Reranker

    def ended(*_, **__):
        assert len(list(tmp_path.iterdir())) == 2  # the output is on its way
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Reranker, "score_pairs", ended)
    data = write_jsonl([{"query": "red", "passage": "apple"}])
    files = ["--data", data, "--output", tmp_path / "scores.jsonl"]
    result = run("score", model_folders(), *files, "--devices", "cpu", code=143)
    assert (result.stdout, result.stderr) == ("", "reranker-ft: terminated\n")
    assert list(tmp_path.iterdir()) == [data]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_the_system_refuses_is_one_line(monkeypatch, write_jsonl):
    import reranker_ft.train.check

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reranker_ft.train.check, "check_data", full)
    result = run("check", write_jsonl(toy_rows(1)), code=1)
    assert result.stderr == (
        "reranker-ft: the system gave up (No space left on device) - look there, then run the "
        "command again\n"
    )


def test_a_warning_of_ours_is_a_line_and_that_of_others_stays_theirs(monkeypatch, write_jsonl):
    import warnings

    import reranker_ft.train.check

    def warned(*_, **__):
        warnings.warn("of others", stacklevel=1)
        warnings.warn("of ours", stacklevel=2)
        raise RerankerError("the end")

    monkeypatch.setattr(reranker_ft.train.check, "check_data", warned)
    others = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda text, *_: others.append(str(text)))
        lines = run("check", write_jsonl(toy_rows(1)), code=1).stderr.splitlines()
    assert lines == ["reranker-ft: of ours", "reranker-ft: the end"]
    assert others == ["of others"]

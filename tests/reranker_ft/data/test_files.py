"""Outputs: whole or absent, and nothing lost that stands at their name."""

import os
import stat

import pytest

from reranker_ft.data.files import existing_file, new_folder, new_text_file, refuse_existing
from reranker_ft.errors import ArgumentError


def write(path, text="new"):
    with new_text_file(path, overwrite=True) as file:
        file.write(text)


@pytest.mark.parametrize("way", ["absolute", "relative", "twice"])
def test_a_link_stays_and_leads_to_the_new_content(tmp_path, way):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "scores.jsonl", tmp_path / "scores.jsonl"
    target.write_text("old")
    link.symlink_to("far/scores.jsonl" if way == "relative" else target)
    if way == "twice":
        link, first = tmp_path / "again.jsonl", link
        link.symlink_to(first)
    write(link)
    assert link.is_symlink()
    assert target.read_text() == link.read_text() == "new"
    assert list((tmp_path / "far").iterdir()) == [target]


def test_a_link_to_nothing_yet_is_written_through(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    write(link)
    assert (tmp_path / "target").read_text() == "new"
    link.unlink()
    link.symlink_to(tmp_path / "absent" / "target")
    with pytest.raises(ArgumentError, match="absent does not exist"):
        write(link)


def test_what_is_no_file_is_refused_and_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "round").symlink_to(tmp_path / "round")
    for name, found in (("pipe", "neither"), ("folder", "is a folder"), ("round", "neither")):
        for overwrite in (False, True):
            with pytest.raises(ArgumentError, match=found) as refused:
                refuse_existing(tmp_path / name, overwrite=overwrite)
            assert "\n" not in str(refused.value)
    with pytest.raises(ArgumentError, match="/dev/null is neither"):
        refuse_existing("/dev/null", overwrite=True)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe", "round"]


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, found in (("pipe", "is a pipe"), ("absent", "does not exist"), ("", "is a folder")):
        with pytest.raises(ArgumentError, match=found):
            existing_file(tmp_path / name)


def test_a_folder_is_written_through_a_link_too(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "old").touch()
    (tmp_path / "link").symlink_to("target")
    with new_folder(tmp_path / "link", overwrite=True) as folder:
        (folder / "new").touch()
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]

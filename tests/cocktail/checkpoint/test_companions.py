"""Which files beside the weights go into a mix, and what is said of those that do not."""

from __future__ import annotations

import json

import pytest

from cocktail.checkpoint.companions import companion_files, left_behind
from cocktail.checkpoint.hub import needed_files
from cocktail.checkpoint.resolve import resolve
from tests.cocktail.checkpoints import Save, weights


@pytest.mark.parametrize(
    "names", [("source.spm", "target.spm", "vocab.json"), ("bpe.codes", "vocab.txt")]
)
def test_all_files_of_a_tokenizer(save: Save, names: tuple[str, ...]) -> None:
    donor, other = save("a", weights(0)), save("b", weights(1))
    for folder in (donor, other):
        for name in names:
            (folder / name).write_text('{"a": 0}')
    assert {*names, "config.json"} == set(companion_files(resolve(donor)))
    given = companion_files(resolve(donor), other)
    assert {given[name] for name in names} == {other / name for name in names}
    assert set(names) <= set(needed_files([*names, "config.json", "model.safetensors"]))


def test_a_module_without_files_is_not_left_behind(save: Save) -> None:
    folder = save("a", weights(0))
    for name in ("1_Normalize", "runs", "notes"):
        (folder / name).mkdir()
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    assert left_behind(resolve(folder)) == ["not part of the mix, left behind: notes/"]

"""Which files of a repository are fetched, and which texts are ids of the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from cocktail.checkpoint.hub import hub_digests, needed_files, parse_identifier


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("org/name", ("org/name", None)),
        ("org/name@v1.0", ("org/name", "v1.0")),
        ("name", ("name", None)),
        ("org/name@refs/pr/3", ("org/name", "refs/pr/3")),
        ("./folder", None),
        ("a/b/c", None),
        ("/org/name", None),
        ("org/na me", None),
        ("org/name@", None),
    ],
)
def test_identifiers(text: str, found: tuple[str, str | None] | None) -> None:
    assert parse_identifier(text) == found


@pytest.mark.parametrize(
    ("files", "left"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["pytorch_model.bin"]),
        (["pytorch_model.bin", "tf_model.h5", "onnx/m.onnx"], ["tf_model.h5", "onnx/m.onnx"]),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
             "model.safetensors.index.json", "consolidated.safetensors"],
            ["consolidated.safetensors"],
        ),
        (["sparse_linear.pt", "optimizer.pt", "pytorch_model.bin"], ["optimizer.pt"]),
        (["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"],
         ["adapter_model.bin"]),
        (["2_Dense/config.json", "2_Dense/model.safetensors", "data/model.safetensors"],
         ["data/model.safetensors"]),
    ],
)  # fmt: skip
def test_one_format_of_the_weights(files: list[str], left: list[str]) -> None:
    assert set(needed_files([*files, "config.json"])) == {*files, "config.json"} - set(left)


def test_digests_are_the_names_of_linked_blobs(tmp_path: Path) -> None:
    blob, snapshot = tmp_path / ("a" * 64), tmp_path / "snapshot"
    (snapshot / "1_Dense").mkdir(parents=True)
    blob.touch()
    (snapshot / "1_Dense" / "model.safetensors").symlink_to(blob)
    (snapshot / "config.json").touch()
    assert hub_digests(snapshot) == {"1_Dense/model.safetensors": "a" * 64}

"""Files and paths that cannot be used are refused in one line that says why."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cocktail.checkpoint.resolve import resolve
from cocktail.errors import CheckpointError
from cocktail.plan.plan import build_plan
from cocktail.recipe.recipe import make_recipe
from tests.cocktail.checkpoints import CONFIG, Save, streamed, weights


def pickled(folder: Path, state: object) -> Path:
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def refusal(reference: str | Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve(reference)
    message = str(caught.value)
    message.encode()
    assert "\n" not in message
    return message


def test_parameters_that_want_gradients_are_mixed_by_any_method(tmp_path: Path) -> None:
    models = [
        pickled(
            tmp_path / str(seed),
            {name: torch.nn.Parameter(tensor) for name, tensor in weights(seed).items()},
        )
        for seed in (0, 1)
    ]
    recipe = make_recipe(models, (1.0,), base_model=models[0], merge_method="task_arithmetic")
    mixed, _ = streamed(build_plan(recipe))
    torch.testing.assert_close(mixed, weights(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.to_sparse(), "tensor 'a' is sparse"),
        (lambda tensor: tensor.to("meta"), "tensor 'a' is without data"),
        (
            lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
            "tensor 'a' is quantised",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_all_their_elements(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    assert message in refusal(pickled(tmp_path / "a", {"a": change(torch.eye(3))}))


@pytest.mark.parametrize(
    ("kept", "message"),
    [(0, "is empty"), (3, "cannot be read as tensors ("), (400, "is cut off"), (-9, "is cut off")],
)
def test_what_is_left_of_a_pickle(tmp_path: Path, kept: int, message: str) -> None:
    folder = pickled(tmp_path / "a", weights(0))
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:kept])
    found = refusal(folder)
    assert message in found
    assert "()" not in found


def test_an_index_with_an_empty_file_name(save: Save) -> None:
    folder = save("a", weights(0))
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a.weight": ""}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names '' - shards must lie beside their index" in refusal(folder)


def test_a_name_with_half_a_character(save: Save, tmp_path: Path) -> None:
    folder = save("a", weights(0))
    header = json.dumps({"\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    data = struct.pack("<Q", len(header)) + header.encode() + bytes(4)
    (folder / "model.safetensors").write_bytes(data)
    assert r"the name of tensor '\ud800' is not text" in refusal(folder)
    assert r"the name of tensor '\ud800'" in refusal(
        pickled(tmp_path / "b", {"\ud800": torch.ones(1)})
    )


def test_paths_that_name_nothing(tmp_path: Path) -> None:
    assert "~nosuchuser/x: does not exist" in refusal("~nosuchuser/x")
    assert "~nosuchuser/x+~nosuchuser/y: does not" in refusal("~nosuchuser/x+~nosuchuser/y")
    assert "does not exist" in refusal("/" + "a" * 300)
    (tmp_path / "file").touch()
    assert "is a file" in refusal(tmp_path / "file")


def test_a_path_that_is_not_utf_8(save: Save) -> None:
    folder = save("n\udcff", weights(0))
    assert "is not valid UTF-8" in refusal(folder)

"""The output folder: nothing is lost that is needed, and one model stands there at the end."""

import json
import shutil

import pytest

from reranker_ft.errors import ArgumentError
from reranker_ft.model.load import load_cross_encoder
from reranker_ft.run import main
from reranker_ft.train.output_folder import check_output
from tests.reranker_ft.conftest import refusals, small, toy_rows


@pytest.fixture
def data(write_jsonl):
    return write_jsonl(toy_rows(8))


@pytest.fixture
def output(tmp_path):
    """A folder as an earlier run left it."""
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("model.safetensors", "history.json"):
        (folder / name).write_text("old")
    return folder


def left(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--lr_scheduler_type", "cosine_with_min_lr"], "min_lr"),
        (["--optim_args", "foo"], "training cannot begin"),
        (["--lr_scheduler_kwargs", '{"none_such": 1}'], "none_such"),
    ],
)
def test_what_cannot_be_made_leaves_the_old_output_alone(
    model_folders, data, output, capsys, flags, found
):
    before = left(output)
    flags = [*flags, "--overwrite_output_dir", "--eval_data", data]
    assert main(small(model_folders("bert"), data, output, *flags)) == 2
    (line,) = refusals(capsys)
    assert found in line
    assert left(output) == before


def test_a_folder_without_permission_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    for output in (tmp_path / "out", tmp_path / "deep" / "out"):
        with pytest.raises(ArgumentError, match=f"{tmp_path} does not permit it"):
            check_output(output, "model", [], overwrite=False, resuming=False)
    monkeypatch.undo()
    check_output(tmp_path / "out", "model", [], overwrite=False, resuming=False)


def test_a_first_step_that_fails_leaves_the_old_output_alone(
    model_folders, data, output, monkeypatch
):
    def fail(*_, **__):
        raise RuntimeError("no step")

    before = left(output)
    monkeypatch.setattr("reranker_ft.train.trainer.RerankerTrainer.compute_loss", fail)
    with pytest.raises(RuntimeError, match="no step"):
        main(
            small(
                model_folders("bert"), data, output, "--overwrite_output_dir", "--eval_data", data
            )
        )
    assert left(output) == before


def test_what_the_run_reads_is_not_removed(model_folders, data, output, capsys):
    checkpoint = output / "checkpoint-2"
    shutil.copytree(model_folders("bert"), checkpoint)
    arguments = small(checkpoint, data, output, "--overwrite_output_dir")
    assert main(arguments) == 2
    assert f"{checkpoint} is read by this run" in capsys.readouterr().err
    inside = checkpoint / "train.jsonl"
    shutil.copy(data, inside)
    assert main(small(model_folders("bert"), inside, output, "--overwrite_output_dir")) == 2
    assert f"{inside} is read by this run" in capsys.readouterr().err
    assert main([*arguments, "--model_name_or_path", str(model_folders("bert"))]) == 0
    assert not checkpoint.exists()


def test_files_named_like_a_model_s_stay(model_folders, data, output):
    names = ["model.train.json", "modeling.json", "adapter_model.notes.json", "checkpoint-2.txt"]
    for name in names:
        shutil.copy(data, output / name)
    evaluated = ["--overwrite_output_dir", "--eval_data", output / names[1]]
    assert main(small(model_folders("bert"), output / names[0], output, *evaluated)) == 0
    assert all((output / name).read_text() == data.read_text() for name in names)
    assert json.loads((output / "history.json").read_text())


@pytest.mark.parametrize("merged_first", [True, False])
def test_adapters_and_a_whole_model_do_not_stand_side_by_side(
    model_folders, data, tmp_path, merged_first
):
    output = tmp_path / "out"
    lora = ["--use_lora", "--lora_rank", 2, "--save_strategy", "steps", "--save_steps", 1]
    again = ["--num_train_epochs", 2, "--resume_from_checkpoint", "True"]
    merged = ["--save_merged_lora_model"]
    first, second = (merged, []) if merged_first else ([], merged)
    assert main(small(model_folders("bert"), data, output, *lora, *first)) == 0
    assert main(small(model_folders("bert"), data, output, *lora, *again, *second)) == 0
    kinds = {"model.safetensors", "adapter_model.safetensors", "adapter_config.json"}
    found = {path.name for path in output.iterdir()} & kinds
    assert found == (kinds - {"model.safetensors"} if merged_first else {"model.safetensors"})
    load_cross_encoder(output)

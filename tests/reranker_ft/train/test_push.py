"""A fine-tune arrives on the Hub, or on a stand-in for it, without the user's examples."""

import os
import subprocess
import sys

from tests.hub import standing_in
from tests.reranker_ft.conftest import small, toy_rows


def test_a_fine_tune_is_pushed_with_the_flags_of_transformers(model_folders, write_jsonl, tmp_path):
    data, dev = write_jsonl(toy_rows(8)), write_jsonl(toy_rows(5), "dev.jsonl")
    more = ["--eval_data", dev, "--push_to_hub", "True", "--hub_model_id", "org/tuned"]
    words = small(model_folders("bert"), data, tmp_path / "out", *more)
    with standing_in() as hub:
        call = [sys.executable, "-m", "reranker_ft.run"]
        environment = {**os.environ, **hub.environment()}
        done = subprocess.run([*call, *words], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert "pushed: org/tuned" in done.stderr
        pushed = hub.files["org/tuned"]
        assert pushed["model.safetensors"] == (tmp_path / "out/model.safetensors").read_bytes()
        assert {"config.json", "tokenizer.json", "README.md"} <= set(pushed)
        assert not [name for name in pushed if name.endswith(".jsonl")]
        hub.refuses = True
        words[words.index(str(tmp_path / "out"))] = str(tmp_path / "other")
        done = subprocess.run([*call, *words], capture_output=True, text=True, env=environment)
        assert done.returncode == 1
        assert f"hf upload org/tuned {tmp_path / 'other'}" in done.stderr
        assert (tmp_path / "other" / "model.safetensors").is_file()


def test_tensorboard_gets_the_real_events(model_folders, write_jsonl, tmp_path):
    import pytest

    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from reranker_ft.run import main

    data, dev = write_jsonl(toy_rows(8)), write_jsonl(toy_rows(5), "dev.jsonl")
    logs = tmp_path / "logs"
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(logs)
    try:
        words = small(
            model_folders("bert"), data, tmp_path / "out", "--eval_data", dev, "--logging_steps", 1
        )
        words[words.index("none")] = "tensorboard"
        assert main(words) == 0
    finally:
        del os.environ["TENSORBOARD_LOGGING_DIR"]
    (folder,) = {path.parent for path in logs.rglob("events.*")}
    events = EventAccumulator(str(folder)).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"train/loss", "eval/ndcg@10", "train/score_spread"} <= scalars

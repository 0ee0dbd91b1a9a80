"""Opening checkpoints: every layout that is read, every contradiction that is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file

from cocktail.checkpoint.model import MAIN
from cocktail.checkpoint.resolve import resolve
from cocktail.errors import CheckpointError
from tests.cocktail.checkpoints import CONFIG, Save, weights


def test_single_file(save: Save) -> None:
    checkpoint = resolve(save("a", weights(0)))
    assert dict(checkpoint).keys() == weights(0).keys()
    assert checkpoint.commit is None
    assert checkpoint.config["hidden_size"] == 4


def shard(folder: Path) -> Path:
    """Split a folder's single file in two."""
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, name in enumerate(weights(0)):
        file = f"model-0000{1 + number % 2}-of-00002.safetensors"
        weight_map[name] = file
    for file in set(weight_map.values()):
        chosen = {name: weights(0)[name] for name in weight_map if weight_map[name] == file}
        save_file(chosen, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def edit_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    value = json.loads(path.read_text())
    change(value["weight_map"])
    path.write_text(json.dumps(value))


def test_shards(save: Save) -> None:
    assert dict(resolve(shard(save("a", weights(0))))).keys() == weights(0).keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(x="model-00009-of-00002.safetensors"), "1 of 3 shards are missing"),
        (lambda m: m.update(x="../a/model-00001-of-00002.safetensors"), "lie beside their index"),
        (lambda m: m.update(x="/etc/passwd"), "lie beside their index"),
        (lambda m: m.update(x="model-00001-of-00002.safetensors"), "which no shard holds"),
        (lambda m: m.pop("encoder.layer.0.scale"), "which the index places elsewhere"),
        (lambda m: m.update(x=3), "no weight_map"),
    ],
)
def test_refuses_contradicting_index(
    save: Save, change: Callable[[dict[str, str]], object], message: str
) -> None:
    folder = shard(save("a", weights(0)))
    edit_index(folder, change)
    with pytest.raises(CheckpointError, match=message):
        resolve(folder)


def pickled(folder: Path, state: object, **options: object) -> Path:
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin", **options)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights(tmp_path: Path, zipped: bool) -> None:
    folder = pickled(tmp_path / "a", weights(0), _use_new_zipfile_serialization=zipped)
    assert {name: info.shape for name, info in resolve(folder)} == {
        name: tuple(tensor.shape) for name, tensor in weights(0).items()
    }


def test_pickled_tied_weights_are_one_tensor(tmp_path: Path) -> None:
    shared = torch.ones(3, 2)
    folder = pickled(tmp_path / "a", {"embed.weight": shared, "lm_head.weight": shared})
    part = resolve(folder).parts[MAIN]
    assert list(part.tensors) == ["embed.weight"]
    assert part.aliases == {"lm_head.weight": "embed.weight"}


class Malicious:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("executed",))


@pytest.mark.parametrize("state", [{"a": Malicious()}, [1], {"a": 3}, {1: torch.ones(1)}])
def test_pickled_anything_else_is_refused(
    tmp_path: Path, state: object, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pickled(tmp_path / "a", state)
    with pytest.raises(CheckpointError, match=r"weights_only=True|a checkpoint"):
        resolve(folder)
    assert "executed" not in capsys.readouterr().out


def test_pickled_garbage_is_refused(tmp_path: Path) -> None:
    folder = pickled(tmp_path / "a", {})
    for content in (b"", b"PK\x03\x04garbage", pickle.dumps({"a": 1})[:5], b"\0" * 100):
        (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"is empty|is cut off|cannot be read as"):
            resolve(folder)


def test_safetensors_come_before_pickles(save: Save) -> None:
    folder = save("a", weights(0))
    torch.save({"other": torch.ones(1)}, folder / "pytorch_model.bin")
    assert dict(resolve(folder)).keys() == weights(0).keys()


def test_tensorflow_names_of_norms(save: Save) -> None:
    folder = save("a", {"LayerNorm.gamma": torch.ones(1), "LayerNorm.beta": torch.ones(1)})
    assert dict(resolve(folder)).keys() == {"LayerNorm.weight", "LayerNorm.bias"}


def test_refuses_what_is_no_model(tmp_path: Path, save: Save) -> None:
    with pytest.raises(CheckpointError, match="does not exist - a model is a folder"):
        resolve(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        resolve(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="has no weights"):
        resolve(tmp_path / "empty")
    (tmp_path / "empty" / "adapter_config.json").touch()
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: is not valid JSON"):
        resolve(tmp_path / "empty")
    folder = save("a", weights(0))
    (folder / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        resolve(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        resolve(folder)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([{"path": True}], "cannot be understood"),
        ([{"path": "0_Transformer"}], "0_Transformer: does not exist, but modules.json says"),
        ([{"path": "../other"}], "modules must lie inside"),
        ([], "lists no module"),
        ({"path": ""}, "cannot be understood"),
    ],
)
def test_refuses_broken_modules(save: Save, modules: object, message: str) -> None:
    folder = save("a", weights(0))
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match=message):
        resolve(folder)


def test_side_tensors_are_taken_or_refused_by_name(save: Save) -> None:
    folder = save("a", weights(0))
    torch.save({"weight": torch.ones(1, 4), "bias": torch.ones(1)}, folder / "sparse_linear.pt")
    torch.save({"ignored": 1}, folder / "training_args.bin")
    assert set(resolve(folder).parts) == {MAIN, "sparse_linear.pt"}
    torch.save({"weight": torch.ones(1)}, folder / "my_head.pt")
    with pytest.raises(CheckpointError, match=r"my_head\.pt: is a tensor file with no known place"):
        resolve(folder)


def hub_cache(root: Path, files: dict[str, bytes]) -> str:
    """Lay out a model as the Hub's cache does, with blobs and links."""
    commit = "c" * 40
    repo = root / "models--org--name"
    (repo / "blobs").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for number, (name, content) in enumerate(files.items()):
        blob = repo / "blobs" / f"{number:064x}"
        blob.write_bytes(content)
        (snapshot / name).symlink_to(blob)
    return commit


def test_hub_id_from_the_cache_without_a_connection(
    tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save("a", weights(0))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    commit = hub_cache(tmp_path / "hub", files)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for reference in ("org/name", "org/name@main", f"org/name@{commit}"):
        checkpoint = resolve(reference)
        assert checkpoint.commit == commit
        assert dict(checkpoint).keys() == weights(0).keys()
    with pytest.raises(CheckpointError, match="the Hub's cache does not hold it"):
        resolve("org/other")


class FakeHub(BaseHTTPRequestHandler):
    """As much of the Hub's interface as fetching one model takes, on this machine."""

    files: ClassVar[dict[str, bytes]] = {}
    fetched: ClassVar[list[str]] = []
    commit = "d" * 40

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        status, body = 404, b"{}"
        if path.startswith("/api/models/org/name/tree/"):
            status, body = (
                200,
                json.dumps(
                    [
                        {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                        for name, content in self.files.items()
                    ]
                ).encode(),
            )
        elif path.startswith("/api/models/org/name"):
            siblings = [{"rfilename": name} for name in self.files]
            value = {"id": "org/name", "sha": self.commit, "siblings": siblings}
            status, body = 200, json.dumps(value).encode()
        elif path.startswith("/org/name/resolve/"):
            name = path.split("/", 5)[5]
            status, body = 200, self.files[name]
            if with_body:
                self.fetched.append(name)
        self.send_response(status)
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("cached", [True, False])
def test_hub_id_without_a_connection(
    tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    """Not in offline mode: the connection fails, with whatever the HTTP library raises."""
    folder = save("a", weights(0))
    files = {path.name: path.read_bytes() for path in folder.iterdir()} if cached else {}
    hub_cache(tmp_path / "hub", files)
    environment = {
        **os.environ,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "0",
    }
    name = "org/name" if cached else "org/other"
    arguments = [sys.executable, "-m", "cocktail", "inspect", name]
    process = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    if cached:
        assert process.returncode == 0
        assert "c" * 40 in process.stdout
    else:
        assert process.returncode == 1
        assert "the Hub's cache does not hold it" in process.stderr
        assert "Traceback" not in process.stderr


FETCH = """
import json, sys
from cocktail.checkpoint.resolve import resolve
from cocktail.errors import CheckpointError
from cocktail.checkpoint.hub import hub_digests
found = resolve("org/name")
print(json.dumps([found.commit, sorted(dict(found)), hub_digests(found.folder)]))
try:
    resolve("org/absent")
except CheckpointError as error:
    print(error)
"""


def test_hub_id_over_the_network(tmp_path: Path, save: Save) -> None:
    folder = save("a", weights(0))
    FakeHub.files = {path.name: path.read_bytes() for path in folder.iterdir()} | {
        "tokenizer.json": b"{}",
        "pytorch_model.bin": b"the same weights again",
        "onnx/model.onnx": b"and again",
        "1_Pooling/config.json": b"{ }",
        "0_Transformer/config.json": b"{  }",
        "0_Transformer/vocab.txt": b"[PAD]",
        "data/notes.txt": b"not the model's",
    }
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        process = subprocess.run(
            [sys.executable, "-c", FETCH], env=environment, capture_output=True, text=True
        )
        server.shutdown()
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    commit, names, digests = json.loads(lines[0])
    assert commit == FakeHub.commit
    assert names == sorted(weights(0))
    assert (
        digests["model.safetensors"]
        == hashlib.sha256(FakeHub.files["model.safetensors"]).hexdigest()
    )
    assert set(FakeHub.fetched) == {
        "model.safetensors", "config.json", "tokenizer.json", "1_Pooling/config.json",
        "0_Transformer/config.json", "0_Transformer/vocab.txt",
    }  # fmt: skip
    assert "org/absent: the Hub refused" in lines[1]

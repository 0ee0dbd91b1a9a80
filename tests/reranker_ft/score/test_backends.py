"""Scores of another engine are those of torch, and what it does not take is refused in a line."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForSequenceClassification, ModernBertConfig

from reranker_ft import FlagLLMReranker, Reranker
from reranker_ft.cli.main import main
from reranker_ft.errors import ArgumentError, ModelError
from reranker_ft.model import precision
from reranker_ft.model.fast import openvino as engine
from tests.reranker_ft.conftest import (
    make_byte_tokenizer,
    make_decoder,
    make_tokenizer,
    save,
    toy_pairs,
)

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None,
    reason="openvino is not installed: pip install '.[openvino]'",
)
PAIRS = toy_pairs(6)


def make_modernbert() -> torch.nn.Module:
    """Two layers, the second with a window of 8 tokens."""
    tokenizer = make_tokenizer("bert")
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, num_labels=1, max_position_embeddings=64, local_attention=8,
        global_attn_every_n_layers=2, initializer_range=0.2, pad_token_id=0, cls_token_id=2,
        sep_token_id=3, bos_token_id=2, eos_token_id=3, attn_implementation="sdpa",
    )  # fmt: skip
    return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.fixture
def folder(model_folders, tmp_path):
    """`folder(kind)`: a tiny reranker, ModernBERT among them."""

    def make(kind: str):
        if kind == "modernbert":
            tokenizer = make_tokenizer("bert")
            tokenizer.model_input_names = ["input_ids", "attention_mask"]
            return save(tmp_path / kind, make_modernbert(), tokenizer)
        return model_folders(kind)

    return make


@needs_openvino
@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "modernbert"])
def test_scores_are_those_of_torch(folder, kind):
    ours = Reranker(folder(kind), devices="cpu")
    found = Reranker(folder(kind), backend="openvino", micro_batch_tokens=100)
    for pairs in (PAIRS, PAIRS[3:4], [(q, p * 40) for q, p in PAIRS[:7]]):  # the last are cut
        expected = ours.compute_score(pairs)
        assert found.compute_score(pairs) == pytest.approx(expected, abs=1e-5)
        shorter = found.compute_score(pairs, max_length=24)
        assert shorter == pytest.approx(ours.compute_score(pairs, max_length=24), abs=1e-5)
    assert [rank.position for rank in found.rank("what is red", ["green", "red", "a river"])] == [
        rank.position for rank in ours.rank("what is red", ["green", "red", "a river"])
    ]
    assert found.compute_score([]) == []


@needs_openvino
def test_it_is_openvino_that_scores(model_folders):
    reranker = Reranker(model_folders(), backend="openvino", devices=["cpu", "cpu"])
    expected = reranker.compute_score(PAIRS)
    for model in reranker._replicas:
        for weight in model.parameters():
            weight.data = torch.zeros_like(weight)  # OpenVINO reads those that were there
    assert reranker.compute_score(PAIRS) == expected
    for model in reranker._replicas:
        engine._kept.pop(model)
    assert set(reranker.compute_score(PAIRS)) == {0.0}


@needs_openvino
def test_half_precision_is_asked_of_openvino(model_folders, monkeypatch):
    monkeypatch.setattr(precision, "cpu_computes_in_bf16", lambda: True)
    asked = []
    compiled = engine._Compiled
    monkeypatch.setattr(
        engine, "_Compiled", lambda *given: asked.append(given[-1]) or compiled(*given)
    )
    exact = Reranker(model_folders(), backend="openvino").compute_score(PAIRS)
    reranker = Reranker(model_folders(), backend="openvino", use_fp16=True)
    assert asked == ["f32", "bf16"]
    assert reranker.compute_score(PAIRS) == pytest.approx(exact, rel=0.02, abs=0.03)
    assert reranker.model.dtype == torch.float32


@needs_openvino
def test_nothing_is_said_and_the_model_can_be_saved(model_folders, tmp_path, recwarn, capfd):
    reranker = Reranker(model_folders(), backend="openvino")
    assert not recwarn.list
    assert capfd.readouterr().err == ""
    reranker.save(tmp_path / "saved")
    expected = Reranker(model_folders(), devices="cpu").compute_score(PAIRS)
    assert Reranker(tmp_path / "saved").compute_score(PAIRS) == pytest.approx(expected, abs=1e-6)


REPORTING = """
import sys
import openvino_telemetry
sent = []
for name in ("start_session", "send_event"):
    setattr(openvino_telemetry.Telemetry, name, lambda *given, **_: sent.append(given))
from reranker_ft import Reranker
Reranker(sys.argv[1], backend="openvino").compute_score(["a", "b"])
assert sys.modules["openvino_telemetry"] is openvino_telemetry
assert not sent, sent
"""


SIGNALLED = """
import gc, signal, subprocess, sys
from reranker_ft import Reranker
first, second = (Reranker(sys.argv[1], backend="openvino") for _ in range(2))
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGCHLD, lambda *_: None)
for _ in range(3):
    subprocess.run([sys.executable, "-c", ""], check=True)
"""


@needs_openvino
def test_signals_are_handled_when_the_models_are_gone(model_folders):
    """A core that goes puts back the stack for signals that it found, of one that went before."""
    subprocess.run([sys.executable, "-c", SIGNALLED, str(model_folders())], check=True)


@needs_openvino
def test_nothing_is_reported_over_the_network(model_folders):
    """OpenVINO would, when it is imported and when it converts."""
    pytest.importorskip("openvino_telemetry")
    subprocess.run([sys.executable, "-c", REPORTING, str(model_folders())], check=True)


@needs_openvino
def test_a_forward_that_tracing_does_not_see_is_refused(model_folders, monkeypatch):
    converted = engine._converted

    class OfOneShape(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *tensors):
            return self.inner(*tensors) * (2 if len(tensors[0]) == 2 else 1)

    monkeypatch.setattr(engine, "_converted", lambda m, example: converted(OfOneShape(m), example))
    with pytest.raises(ModelError, match="gives other scores than torch for BertFor"):
        Reranker(model_folders(), backend="openvino")


@needs_openvino
def test_what_openvino_does_not_take_is_one_line(model_folders, monkeypatch):
    def fails(*_):
        raise RuntimeError("no such\noperation")

    monkeypatch.setattr(engine, "_converted", fails)
    with pytest.raises(ModelError, match=r"does not take BertFor.*\(no such operation\)") as raised:
        Reranker(model_folders(), backend="openvino")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"backend": "onnx"}, "backend is 'onnx' - there are torch, openvino"),
        ({"backend": "openvino", "devices": "meta"}, "meta"),
        ({"backend": "openvino", "devices": ["cpu", "no"]}, "device 'no' is unknown"),
    ],
)
def test_arguments_that_make_no_sense(model_folders, options, found):
    with pytest.raises(ArgumentError, match=found):
        Reranker(model_folders(), **options)


def test_other_devices_are_refused(model_folders, monkeypatch):
    from reranker_ft.score import backends

    monkeypatch.setattr(backends, "parse_devices", lambda _: [torch.device("cuda:0")])
    with pytest.raises(ArgumentError, match="the device 'cuda:0' - it runs on CPUs here"):
        Reranker(model_folders(), backend="openvino", devices="cuda:0")


def test_language_models_that_answer_are_refused(tmp_path):
    folder = save(tmp_path / "m", make_decoder(head=False), make_byte_tokenizer())
    with pytest.raises(ModelError, match="LlamaForCausalLM scores by its answer to a prompt"):
        FlagLLMReranker(folder, backend="openvino")


def test_without_openvino_the_extra_is_named(model_folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ArgumentError, match=r"not installed - .*'\.\[openvino\]'"):
        Reranker(model_folders(), backend="openvino")


@needs_openvino
def test_the_command_scores_with_it(model_folders, write_jsonl):
    data = write_jsonl([{"query": q, "passage": p} for q, p in PAIRS])
    printed = [
        CliRunner().invoke(main, ["score", str(model_folders()), "--data", str(data), *more])
        for more in (["--devices", "cpu"], ["--backend", "openvino"])
    ]
    assert [result.exit_code for result in printed] == [0, 0]
    ours, found = ([json.loads(x)["score"] for x in r.stdout.splitlines()] for r in printed)
    assert found == pytest.approx(ours, abs=1e-5)

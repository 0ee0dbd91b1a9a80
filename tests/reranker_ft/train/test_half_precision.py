"""Training with products in bf16 on a CPU: fp32 weights, one cast a step, equal but for rounding.

No test depends on what the processor of the machine is fast in.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from reranker_ft.model import precision
from reranker_ft.model.forward import forward_logits
from reranker_ft.run import main
from reranker_ft.train import hardware
from reranker_ft.train.flags import parse
from tests.reranker_ft.conftest import (
    make_byte_tokenizer,
    make_decoder,
    make_model,
    save,
    small,
    toy_rows,
)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU would be taken")
STEPS = [
    *("--optim", "sgd", "--learning_rate", "0.05", "--lr_scheduler_type", "constant"),
    *("--per_device_train_batch_size", "4", "--micro_batch_tokens", "100", "--logging_steps", "1"),
]
INPUTS = {
    "input_ids": torch.randint(5, 90, (4, 9), generator=torch.Generator().manual_seed(0)),
    "attention_mask": torch.tensor([[1] * 9, [1] * 9, [1] * 6 + [0] * 3, [1] * 4 + [0] * 5]),
}


@pytest.fixture
def fast_in_bf16(monkeypatch):
    monkeypatch.setattr(hardware, "cpu_computes_in_bf16", lambda: True)


@pytest.fixture
def data(write_jsonl):
    return write_jsonl(toy_rows(12))


def losses(output):
    entries = json.loads((output / "history.json").read_text())
    return [entry["loss"] for entry in entries if "loss" in entry]


@pytest.mark.parametrize("flag", ["--fp16", "--bf16"])
def test_both_flags_mean_bf16_there(fast_in_bf16, flag):
    args = parse([*small("m", "d", "o"), flag])[2]
    assert (args.fp16, args.bf16, args.notes) == (False, True, [])


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("bert", []),
        ("xlm-roberta", ["--gradient_accumulation_steps", "2"]),
        ("bert", ["--gradient_checkpointing", "True"]),
    ],
)
def test_only_rounding_changes(fast_in_bf16, model_folders, data, tmp_path, kind, more):
    model = model_folders(kind)
    evaluated = [*STEPS, *more, "--eval_data", data]
    assert main(small(model, data, tmp_path / "fp32", *evaluated)) == 0
    assert main(small(model, data, tmp_path / "bf16", *evaluated, "--bf16")) == 0
    assert losses(tmp_path / "bf16") != losses(tmp_path / "fp32")
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "fp32"), abs=1e-2)
    start, exact, found = (
        load_file(folder / "model.safetensors")
        for folder in (model, tmp_path / "fp32", tmp_path / "bf16")
    )
    assert {weight.dtype for weight in found.values()} == {torch.float32}
    moved = sum((exact[name] - start[name]).square().sum() for name in exact).sqrt()
    apart = sum((exact[name] - found[name]).square().sum() for name in exact).sqrt()
    assert 0 < apart < 0.05 * moved


def test_decoders_train_in_it(fast_in_bf16, data, tmp_path):
    model = save(tmp_path / "model", make_decoder(pad_token_id=2), make_byte_tokenizer())
    assert main(small(model, data, tmp_path / "fp32", *STEPS)) == 0
    assert main(small(model, data, tmp_path / "bf16", *STEPS, "--fp16")) == 0
    assert losses(tmp_path / "bf16") != losses(tmp_path / "fp32")
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "fp32"), abs=1e-2)


def test_a_run_goes_on_from_its_checkpoint(fast_in_bf16, model_folders, data, tmp_path):
    saving = [*STEPS, "--bf16", "--save_strategy", "steps", "--save_steps", "1"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    model = model_folders("bert", dropout=0.1)
    assert main(small(model, data, whole, *saving, "--max_steps", "3")) == 0
    assert main(small(model, data, stopped, *saving, "--max_steps", "2")) == 0
    checkpoint = load_file(stopped / "checkpoint-2" / "model.safetensors")
    assert {weight.dtype for weight in checkpoint.values()} == {torch.float32}
    again = [*saving, "--max_steps", "3", "--resume_from_checkpoint", "True"]
    assert main(small(model, data, stopped, *again)) == 0
    expected, found = (load_file(f / "model.safetensors") for f in (whole, stopped))
    for name, weight in expected.items():
        assert torch.equal(weight, found[name]), name


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_each_weight_is_cast_once_and_what_adds_up_stays_in_fp32(dropout):
    model = make_model("bert", dropout=dropout).train()

    def casts(forwards):
        activities = [torch.profiler.ProfilerActivity.CPU]
        with (
            torch.profiler.profile(activities=activities) as profiled,
            precision.products_in_bf16(model),
        ):
            scores = torch.cat([forward_logits(model, INPUTS) for _ in range(forwards)])
        return [event.name for event in profiled.events()].count("aten::_to_copy"), scores

    linears = [m for m in model.bert.encoder.layer.modules() if isinstance(m, torch.nn.Linear)]
    once, _ = casts(1)
    thrice, scores = casts(3)
    # Two further forwards cast activations, and none of the weights and biases.
    assert thrice <= 3 * once - 2 * 2 * len(linears)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())  # a head in bf16 has no more digits
    scores.sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    assert "forward" not in vars(model.classifier)


def test_dropout_in_it_is_that_of_fp32():
    """The masks are drawn alike, and attention computes in fp32."""
    model = make_model("bert", dropout=0.1).train()
    found = []
    for half in (False, True):
        torch.manual_seed(3)
        model.zero_grad()
        if half:
            with precision.products_in_bf16(model):
                scores = forward_logits(model, INPUTS)
        else:
            scores = forward_logits(model, INPUTS)
        scores.square().sum().backward()
        found.append(
            (scores.detach(), model.bert.encoder.layer[0].attention.self.query.weight.grad)
        )
    (exact, gradient), (scores, other) = found
    assert not torch.equal(scores, exact)
    torch.testing.assert_close(scores, exact, rtol=0.02, atol=0.03)
    assert (other - gradient).norm() < 0.05 * gradient.norm()

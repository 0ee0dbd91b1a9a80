"""What computes in bf16, and a model of unknown layers in it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification, ModernBertConfig

from reranker_ft.model import precision
from reranker_ft.model.forward import forward_logits

INTEL = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 avx512f {}\nbugs\t\t: \n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {}\n"


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize(
    ("info", "if_faster", "if_slower"),
    [
        (INTEL.format("amx_bf16 amx_tile avx512_bf16"), True, True),
        (INTEL.format("avx512_bf16"), True, False),
        (INTEL.format("avx512_vnni not_avx512_bf16"), False, False),
        (ARM.format("i8mm bf16"), True, False),
        (ARM.format("i8mm"), False, False),
        ("", False, False),
    ],
)
def test_flags_say_whether_it_has_bf16_and_a_product_whether_it_pays(
    info, if_faster, if_slower, tmp_path, monkeypatch
):
    file = tmp_path / "cpuinfo"
    file.write_text(info)
    monkeypatch.setattr(precision, "_CPU_INFO", file)
    for measured, expected in ((True, if_faster), (False, if_slower)):
        monkeypatch.setattr(precision, "_is_faster_in_bf16", lambda measured=measured: measured)
        assert precision.cpu_computes_in_bf16.__wrapped__() is expected


def test_the_product_is_measured_in_both(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(clock))
    assert precision._is_faster_in_bf16() is False  # equally fast is not worth it


def test_a_system_that_does_not_say_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "_CPU_INFO", tmp_path / "absent")
    assert precision.cpu_computes_in_bf16.__wrapped__() is False


def test_other_layers_run_in_bf16_and_their_head_in_fp32():
    config = ModernBertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, num_labels=1, pad_token_id=0, cls_token_id=1, sep_token_id=2,
        bos_token_id=1, eos_token_id=2, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    ids = torch.randint(3, 50, (6, 9))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        expected = forward_logits(model, inputs)
        half = precision.in_half_precision(model, torch.device("cpu"), torch.bfloat16)
        scores = forward_logits(half, inputs)
    assert model.model.layers[0].mlp.Wi.weight.dtype == torch.bfloat16
    assert not torch.equal(scores, scores.bfloat16().float())  # a head in bf16 has no more digits
    torch.testing.assert_close(scores, expected, rtol=0.02, atol=0.02)

"""What a GPU's kernels are asked, answered on a CPU by a stand-in with their signature."""

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from reranker_ft.model import forward
from reranker_ft.model.fast import varlen
from reranker_ft.model.fast.packed import PackedRow, packs
from reranker_ft.model.fast.varlen import Bounds, agrees, attention_by_sequence, gpu_kernel
from reranker_ft.model.forward import forward_logits
from tests.reranker_ft.model.fast.test_packed import (
    FAMILIES,
    SIZES,
    SLIDING,
    TEXTS,
    alone,
    build,
    padded,
)


def from_top_left(
    query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, scale: float | None
) -> Tensor:
    """As some kernels count: the first tokens of what asks and is asked stand at one place."""
    asks, starts = bounds.asking.diff().tolist(), bounds.asked[:-1].tolist()
    kept = torch.cat(
        [torch.arange(start, start + count) for start, count in zip(starts, asks, strict=True)]
    )
    own = Bounds.of(asks, asks, query.device)
    return attention_by_sequence(query, key[kept], value[kept], own, scale)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Bounds]:
    """Language models on the CPU are attended by the stand-in; what it is asked."""
    seen: list[Bounds] = []

    def kernel(
        query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, scale: float | None
    ) -> Tensor:
        seen.append(bounds)
        assert query.shape[0] == bounds.asking[-1] and key.shape[0] == bounds.asked[-1]
        return attention_by_sequence(query, key, value, bounds, scale)

    monkeypatch.setattr(forward, "gpu_kernel", lambda _: kernel)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_each_text_scores_as_alone(family: str, calls: list[Bounds]) -> None:
    model = build(family, **FAMILIES[family])
    scores = forward_logits(model, padded(TEXTS))
    torch.testing.assert_close(scores, alone(model, TEXTS), rtol=1e-5, atol=1e-5)
    assert len(calls) == SIZES["num_hidden_layers"]  # one call a layer


def test_a_head_at_the_last_token_reads_the_row_too(calls: list[Bounds]) -> None:
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**SIZES, num_labels=1)
    model = transformers.Qwen3ForSequenceClassification(config).eval()
    expected = torch.cat([model(input_ids=torch.tensor([text])).logits[0] for text in TEXTS])
    scores = forward_logits(model, padded(TEXTS, left=False))
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    assert calls


def test_texts_longer_than_a_window_are_padded(calls: list[Bounds]) -> None:
    model = build("Mistral", **SLIDING["Mistral"])
    scores = forward_logits(model, padded(TEXTS))
    torch.testing.assert_close(scores, alone(model, TEXTS), rtol=1e-5, atol=1e-5)
    assert not calls


def test_a_node_asks_its_ancestors_and_itself() -> None:
    row = PackedRow.of([np.array(text) for text in TEXTS[:3]])
    places, bounds = row.nodes
    # 1 .. 9, then what follows it in each text.
    assert row.tokens == [*range(1, 10), 20, 21, 20, 21, 22, 10, 11, 12]
    shared = list(range(9))
    expected = [*shared, *shared, 9, 10, *shared, 11, 12, 13, *shared, 14, 15, 16]
    assert places.tolist() == expected
    assert bounds.asking.tolist() == [0, 9, 11, 14, 17]
    assert bounds.asked.tolist() == [0, 9, 20, 32, 44]
    assert bounds.asking.dtype == bounds.asked.dtype == torch.int32
    assert (bounds.longest_asking, bounds.longest_asked) == (9, 12)


def test_a_kernel_is_taken_only_if_it_agrees() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(tokens, heads, 8, generator=generator).bfloat16()
        for tokens, heads in ((12, 4), (22, 2), (22, 2))
    )

    def broken(*_: Any) -> Tensor:
        raise RuntimeError("no kernel image is available")

    def rounded(*given: Any) -> Tensor:
        return attention_by_sequence(*given).bfloat16()

    assert agrees(rounded, query, key, value)
    assert not agrees(from_top_left, query, key, value)
    assert not agrees(broken, query, key, value)


def test_a_model_on_a_cpu_has_no_kernel() -> None:
    model = build("Llama").bfloat16()
    assert gpu_kernel(model) is None and packs(model)


def on_a_gpu(*widths: int, **settings: Any) -> Any:
    """What a language model on a GPU says of itself."""
    config = types.SimpleNamespace(num_attention_heads=4, num_key_value_heads=2)
    config.v_head_dim = settings.pop("v_head_dim", None)
    said = {"dtype": torch.bfloat16, "training": False, "device": torch.device("cuda", 0)}
    parameter = types.SimpleNamespace(device=settings.pop("other_device", said["device"]))
    modules = [types.SimpleNamespace(head_dim=width) for width in widths]
    return types.SimpleNamespace(
        config=config,
        parameters=lambda: [parameter],
        modules=lambda: [*modules, types.SimpleNamespace()],
        **said | settings,
    )


def test_what_is_unusual_on_a_gpu_stays_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(varlen, "_kernel_of", lambda *given: asked.append(given) or from_top_left)
    assert gpu_kernel(on_a_gpu(64, 64)) is from_top_left
    assert asked == [(torch.device("cuda", 0), torch.bfloat16, 4, 2, 64)]
    for unusual in (
        on_a_gpu(64, 128),
        on_a_gpu(),
        on_a_gpu(64, v_head_dim=32),
        on_a_gpu(64, training=True),
        on_a_gpu(64, dtype=torch.float32),
        on_a_gpu(64, other_device=torch.device("cuda", 1)),
    ):
        assert gpu_kernel(unusual) is None
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: True)
    assert gpu_kernel(on_a_gpu(64)) is None


def test_kernels_are_called_by_their_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(12, 4, 8), torch.randn(22, 2, 8)
    bounds = Bounds.of([5, 3, 4], [5, 8, 9], query.device)

    def flash(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> Tensor:
        assert causal and not dropout_p
        own = Bounds(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return attention_by_sequence(q, k, v, own, softmax_scale)

    def of_torch(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> Tensor:
        assert window_size == (-1, 0) and enable_gqa
        own = Bounds(cu_seq_q, cu_seq_k, max_q, max_k)
        return attention_by_sequence(query, key, value, own, scale)

    installed = {"flash_attn": "flash_attn_varlen_func", "torch.nn.attention.varlen": "varlen_attn"}
    for (module, name), kernel in zip(installed.items(), (flash, of_torch), strict=True):
        fake = types.ModuleType(module)
        fake.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
        setattr(fake, name, kernel)
        monkeypatch.setitem(sys.modules, module, fake)
    kernels = list(varlen._kernels())
    assert len(kernels) == 2
    expected = attention_by_sequence(query, key, key, bounds, 0.3)
    for kernel in kernels:
        assert torch.equal(kernel(query, key, key, bounds, 0.3), expected)

"""Adapters that change experts: what PEFT would merge is what is mixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    __version__,
)

from cocktail.errors import CheckpointError, PlanError
from tests.cocktail.checkpoint.adapter.conftest import Train, assert_close, mix, plan_of

SIZES: dict[str, Any] = {
    "vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32, "pad_token_id": 1,
    "bos_token_id": 0, "eos_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip
together = pytest.mark.skipif(
    __version__.startswith("4."), reason="transformers 4 holds each of these experts by itself"
)
BOTH = ["mlp.experts.gate_up_proj", "experts.down_proj"]


def qwen() -> PreTrainedModel:
    return seeded(
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(**SIZES, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=12),
    )


def mixtral() -> PreTrainedModel:
    return seeded(
        MixtralForCausalLM,
        MixtralConfig(**SIZES, num_local_experts=3, intermediate_size=12),
    )


def gpt_oss() -> PreTrainedModel:
    """Its matrices are (in, out), and those of ``down_proj`` square."""
    return seeded(
        GptOssForCausalLM,
        GptOssConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2, intermediate_size=16),
    )


def seeded(kind: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    return kind(config).eval()


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


@pytest.mark.parametrize(
    "build",
    [pytest.param(qwen, marks=together), pytest.param(mixtral, marks=together), gpt_oss],
)
@pytest.mark.parametrize(
    "options",
    [
        {"target_parameters": BOTH},
        {"target_parameters": BOTH[:1], "use_rslora": True},
        {"target_parameters": BOTH, "rank_pattern": {"experts.down_proj": 2}},
    ],
    ids=["both", "one", "ranks"],
)
def test_mixes_as_the_merged_model_does(
    train: Train, tmp_path: Path, build: Any, options: dict[str, Any]
) -> None:
    trained = train("lora", build, target_modules=["q_proj"], **options)
    mix([trained.pair, trained.base], [0.5, 0.5], tmp_path / "adapted")
    mix([trained.merged, trained.base], [0.5, 0.5], tmp_path / "merged")
    assert_close(weights(tmp_path / "adapted"), weights(tmp_path / "merged"))
    moved = weights(trained.base)
    assert any(
        "experts" in name and not torch.equal(tensor, moved[name])
        for name, tensor in weights(tmp_path / "adapted").items()
    )


@together
def test_a_base_that_stores_its_experts_together(train: Train, tmp_path: Path) -> None:
    trained = train("lora", qwen, target_modules=["q_proj"], target_parameters=BOTH)
    together = tmp_path / "together"
    AutoModelForCausalLM.from_pretrained(trained.base).save_pretrained(
        together, save_original_format=False
    )
    mix([f"{together}+{trained.adapter}", str(together)], [1.0, 0.0], tmp_path / "adapted")
    assert_close(weights(tmp_path / "adapted"), weights(trained.merged))


@together
def test_another_number_of_experts_is_refused(train: Train, tmp_path: Path) -> None:
    trained = train("lora", qwen, target_modules=["q_proj"], target_parameters=BOTH)
    other = Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12)
    seeded(Qwen3MoeForCausalLM, other).save_pretrained(tmp_path / "other")
    with pytest.raises((CheckpointError, PlanError), match=r"A \[12, 16\] and B \[24, 12\]"):
        plan_of([f"{tmp_path / 'other'}+{trained.adapter}", str(tmp_path / "other")], [0.5, 0.5])


def test_a_base_without_experts_is_refused(train: Train, tmp_path: Path) -> None:
    trained = train("lora", qwen, target_modules=["q_proj"], target_parameters=BOTH)
    dense = tmp_path / "dense"
    seeded(Qwen3ForCausalLM, Qwen3Config(**SIZES, intermediate_size=12)).save_pretrained(dense)
    with pytest.raises((CheckpointError, PlanError), match=r"which .*dense lacks"):
        plan_of([f"{dense}+{trained.adapter}", str(dense)], [0.5, 0.5])

"""Adapters trained by PEFT on tiny models, and what PEFT makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from cocktail.pipeline import checked_plan, mix_to_folder
from cocktail.plan.plan import Plan, build_plan
from cocktail.recipe.recipe import make_recipe
from tests.cocktail.checkpoints import load
from tests.cocktail.tiny import BERT, tokenizer

GPT2 = GPT2Config(
    vocab_size=24, n_positions=32, n_embd=32, n_layer=2, n_head=2, pad_token_id=1,
    bos_token_id=0, eos_token_id=2, initializer_range=0.3,
)  # fmt: skip
LINEAR = ["query", "value", "dense"]


@dataclass
class Trained:
    """An adapter, its base, and the same merged by PEFT and saved as a whole model."""

    base: str
    adapter: str
    merged: str

    @property
    def pair(self) -> str:
        return f"{self.base}+{self.adapter}"


Train = Callable[..., Trained]


def reranker() -> PreTrainedModel:
    torch.manual_seed(1)
    return BertForSequenceClassification(BertConfig(**BERT, num_labels=1)).eval()


def gpt2() -> PreTrainedModel:
    torch.manual_seed(1)
    return GPT2LMHeadModel(GPT2).eval()


def shake(model: torch.nn.Module, seed: int) -> None:
    """Move what an adapter trains, so that B is not zero and magnitudes are not the norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += 0.1 * noise


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """``train("name", model, LoraConfig options)``: the base is saved once, adapters beside it."""

    def make(
        name: str,
        build: Callable[[], PreTrainedModel] = reranker,
        *,
        seed: int = 0,
        load_base: Callable[[str], PreTrainedModel] | None = None,
        **options: Any,
    ) -> Trained:
        base, adapter, merged = tmp_path / "base", tmp_path / name, tmp_path / f"{name}-merged"
        if not base.exists():
            build().save_pretrained(base)
            tokenizer("bert").save_pretrained(base)
        model = (load_base or type(build()).from_pretrained)(str(base)).eval()
        options = {"r": 4, "lora_alpha": 6, "target_modules": LINEAR} | options
        peft = get_peft_model(model, LoraConfig(**options))
        shake(peft, seed)
        peft.save_pretrained(adapter, save_embedding_layers=False)
        again = (load_base or type(build()).from_pretrained)(str(base)).eval()
        whole = PeftModel.from_pretrained(again, str(adapter)).merge_and_unload()
        whole.save_pretrained(merged)
        tokenizer("bert").save_pretrained(merged)
        return Trained(str(base), str(adapter), str(merged))

    return make


def plan_of(models: list[str], numbers: list[float], **options: Any) -> Plan:
    return build_plan(make_recipe(models, numbers, **options))


def mix(models: list[str], numbers: list[float], output: Path, **options: Any) -> Any:
    plan = checked_plan(make_recipe(models, numbers, **options), output)
    mix_to_folder(plan, output, progress=False)
    return load(output)


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-6, msg=name)


def encoder() -> PreTrainedModel:
    torch.manual_seed(1)
    return BertModel(BertConfig(**BERT)).eval()


def masked() -> PreTrainedModel:
    torch.manual_seed(1)
    return BertForMaskedLM(BertConfig(**BERT)).eval()


def as_reranker(folder: str) -> PreTrainedModel:
    torch.manual_seed(2)  # the head is drawn at random, the same one for both
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)

"""What a model class keeps under two names is stored once; what only shares memory stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cocktail.checkpoint.model import MAIN
from cocktail.checkpoint.resolve import resolve
from cocktail.errors import PlanError
from cocktail.plan.plan import Plan, build_plan
from cocktail.recipe.recipe import make_recipe
from tests.cocktail.checkpoints import CONFIG, Save, streamed, weights
from tests.cocktail.tiny import FAMILIES

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "is_encoder_decoder": True,
}
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def plan(*models: Path) -> Plan:
    return build_plan(make_recipe(models, (0.5, 0.5)))


def names(made: Plan) -> set[str]:
    return {tensor.name for tensor in made.tensors}


def pickled(folder: Path, state: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return folder


def llama(seed: int) -> dict[str, torch.Tensor]:
    return {f"model.{name}": tensor for name, tensor in weights(seed).items()} | {
        "model.embed_tokens.weight": torch.full((10, 4), float(seed))
    }


def t5(seed: int) -> dict[str, torch.Tensor]:
    return {
        "shared.weight": torch.full((10, 4), float(seed)),
        "encoder.block.0.layer.0.weight": torch.full((4, 4), float(seed)),
        "decoder.block.0.layer.0.weight": torch.full((4, 4), float(seed)),
    }


def test_layers_that_share_memory_in_a_pickle_are_all_written(tmp_path: Path) -> None:
    models = []
    for seed in (0, 1):
        state = weights(seed)
        state["encoder.layer.1.output.dense.weight"] = state["encoder.layer.0.output.dense.weight"]
        models.append(pickled(tmp_path / str(seed), state, tie_word_embeddings=True))
    mixed, _ = streamed(plan(*models))
    assert set(mixed) == set(state)
    assert torch.equal(
        mixed["encoder.layer.0.output.dense.weight"], mixed["encoder.layer.1.output.dense.weight"]
    )


@pytest.mark.parametrize("first", ["lm_head.weight", "model.embed_tokens.weight"])
def test_a_tied_pickle_keeps_the_input_embedding(tmp_path: Path, first: str) -> None:
    shared = torch.ones(10, 4)
    state = {first: shared, "lm_head.weight": shared, "model.embed_tokens.weight": shared}
    part = resolve(pickled(tmp_path / "a", state, tie_word_embeddings=True, **LLAMA)).parts[MAIN]
    assert {name: info.name for name, info in part.tensors.items()} == {
        "model.embed_tokens.weight": "model.embed_tokens.weight"
    }
    assert part.aliases == {"lm_head.weight": "model.embed_tokens.weight"}


def real(family: str, seed: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and config of a tiny model, for which its class is asked."""
    torch.manual_seed(seed)
    model = FAMILIES[family][1]()
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    return dict(model.state_dict()), config


def test_a_class_that_does_not_tie_by_itself_keeps_the_head(tmp_path: Path) -> None:
    models = []
    for seed in (0, 1):
        state, config = real("llama", seed)
        config.pop("tie_word_embeddings")
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
        models.append(pickled(tmp_path / str(seed), state, **config))
    assert "lm_head.weight" in names(plan(*models))


def test_a_silent_config_of_an_untied_class_does_not_go_with_a_tied_one(save: Save) -> None:
    state = llama(0)
    silent = save(
        "silent", state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()}, **LLAMA
    )
    tied = save("tied", llama(1), tie_word_embeddings=True, **LLAMA)
    for models in ((silent, tied), (tied, silent)):
        with pytest.raises(
            PlanError, match=r"tied ties its output embedding to the input, .*silent"
        ):
            plan(*models)


def test_a_silent_config_of_an_untied_class_needs_its_head(save: Save) -> None:
    with pytest.raises(PlanError, match="no ingredient has a head for decoder models"):
        plan(*(save(name, llama(0), **LLAMA) for name in "ab"))


@pytest.mark.parametrize("is_pickled", [True, False])
def test_copies_of_a_shared_embedding_are_no_reason_to_refuse(
    save: Save, tmp_path: Path, is_pickled: bool
) -> None:
    state, config = real("t5", 0)
    other, _ = real("t5", 1)
    for table in (state, other):
        for name in COPIES:
            del table[name]
        table["lm_head.weight"] = torch.ones_like(table["shared.weight"])
    copies = dict.fromkeys(COPIES, state["shared.weight"])
    if is_pickled:
        first = pickled(tmp_path / "first", state | copies, **config)
    else:
        first = save("first", state | {k: t.clone() for k, t in copies.items()}, **config)
    second = save("second", other, **config)
    assert names(plan(first, second)) == names(plan(second, first)) == set(state)


def test_another_embedding_of_the_encoder_is_no_copy(save: Save) -> None:
    config = T5 | {"tie_word_embeddings": True}
    other = save("other", t5(0) | {COPIES[0]: torch.ones(10, 4)}, **config)
    with pytest.raises(PlanError, match=r"lacks 1 tensor.*encoder\.embed_tokens"):
        plan(other, save("plain", t5(1), **config))


def masked(seed: int) -> dict[str, torch.Tensor]:
    state = {f"bert.{name}": tensor for name, tensor in weights(seed).items()}
    return state | {"cls.predictions.bias": torch.full((10,), float(seed))}


@pytest.mark.parametrize(("tie", "refused"), [(True, False), (False, True)])
def test_the_decoder_of_a_masked_model_is_a_copy_where_the_config_ties_it(
    save: Save, tie: bool, refused: bool
) -> None:
    config = {"architectures": ["BertForMaskedLM"], "tie_word_embeddings": tie}
    state = masked(0)
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"] * 1
    state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"] * 1
    models = save("stored", state, **config), save("plain", masked(1), **config)
    if refused:
        with pytest.raises(PlanError, match=r"lacks 2 tensors.*predictions\.decoder"):
            plan(*models)
    else:
        assert names(plan(*models)) == set(masked(0))

"""A mix loads, or is refused for a true reason, whatever way base and fine-tune were saved.

``pytest tests/cocktail/checkpoint/test_architecture.py -s`` prints the table of the sweep.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from cocktail.checkpoint.architecture import architecture_of, default_ties, looks_loadable
from cocktail.errors import CocktailError
from cocktail.pipeline import checked_plan, mix_to_folder
from cocktail.recipe.recipe import make_recipe
from tests.cocktail.architectures import bare_class, build, names

WEIGHTS = (0.25, 0.75)
State = dict[str, torch.Tensor]


def moved(model: PreTrainedModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # What does not require a gradient is computed from the config, and not saved.
        for parameter in filter(lambda each: each.requires_grad, model.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def stored(folder: Path) -> State:
    return load_file(folder / "model.safetensors")


def clone(folder: Path, name: str) -> Path:
    copy = folder.with_name(name)
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    return copy


def plain(base: Path) -> Path:
    return base


def bare(base: Path) -> Path:
    """As the class without a head saves the same transformer, with the config of that class."""
    model = BUILT[base]
    made = bare_class(model)
    copy = base.with_name("bare")
    shutil.rmtree(copy, ignore_errors=True)
    assert made is not None
    getattr(model, model.base_model_prefix).save_pretrained(copy)
    return copy


def wrapped(base: Path) -> Path:
    copy = clone(base, "wrapped")
    state = {f"module._orig_mod.{name}": tensor for name, tensor in stored(copy).items()}
    save_file(state, copy / "model.safetensors", {"format": "pt"})
    return copy


def custom(base: Path) -> Path:
    """Under a name that only the model's own training code knows."""
    copy = clone(base, "custom")
    state = {f"my_ranker.{name}": tensor for name, tensor in stored(copy).items()}
    save_file(state, copy / "model.safetensors", {"format": "pt"})
    return copy


def pickled(base: Path) -> Path:
    """With ties, which a state dict stores twice."""
    copy = clone(base, "pickled")
    (copy / "model.safetensors").unlink()
    state = stored(base)
    asked = architecture_of(json.loads((base / "config.json").read_text()))
    assert asked is not None
    for name, own in asked.ties.items():
        if own in state and name not in state:
            state[name] = state[own]
    torch.save(state, copy / "pytorch_model.bin")
    return copy


def sharded(base: Path) -> Path:
    copy = base.with_name("sharded")
    shutil.rmtree(copy, ignore_errors=True)
    BUILT[base].save_pretrained(copy, max_shard_size="8KB")
    return copy


VARIANTS: dict[str, Callable[[Path], Path]] = {
    "alike": plain, "without head": bare, "sharded": sharded, ".bin": pickled,
    "wrapped": wrapped, "own wrapper": custom,
}  # fmt: skip
BUILT: dict[Path, PreTrainedModel] = {}


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Base and fine-tune of one architecture."""
    torch.manual_seed(0)
    model = build(request.param)
    tuned, base = tmp_path / "tuned", tmp_path / "base"
    moved(model, 1)
    model.save_pretrained(base)
    BUILT[base] = build(request.param)
    BUILT[base].load_state_dict(model.state_dict())
    moved(model, 2)
    model.save_pretrained(tuned)
    BUILT[tuned] = model
    yield base, tuned
    BUILT.clear()
    gc.collect()


def expected(base: Path, tuned: Path, *, without: bool) -> State:
    """The weighted sum by the names of the class; what the base lacks is the fine-tune's alone."""
    ours, theirs = BUILT[base].state_dict(), BUILT[tuned].state_dict()
    prefix = f"{BUILT[tuned].base_model_prefix}."
    own = architecture_of(json.loads((tuned / "config.json").read_text()))
    assert own is not None
    alone = {n for n in theirs if without and not own.ties.get(n, n).startswith(prefix)}
    return {
        name: tensor
        if name in alone or not tensor.is_floating_point()
        else WEIGHTS[0] * ours[name] + WEIGHTS[1] * tensor
        for name, tensor in theirs.items()
    }


def outcome(base: Path, tuned: Path, variant: str, out: Path) -> str:
    """``ok``, or why the mix was refused; fails where it loads as anything else than the sum."""
    if variant == "without head" and bare_class(BUILT[tuned]) is None:
        return "-"
    other = VARIANTS[variant](base)
    recipe = make_recipe([str(other), str(tuned)], WEIGHTS, head="copy")
    shutil.rmtree(out, ignore_errors=True)
    try:
        mix_to_folder(checked_plan(recipe, out), out, progress=False, sync=False)
    except CocktailError as error:
        return str(error)
    loaded, info = type(BUILT[tuned]).from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"], (variant, sorted(info["missing_keys"])[:4])
    assert not info["unexpected_keys"], (variant, sorted(info["unexpected_keys"])[:4])
    wanted = expected(base, tuned, without=variant == "without head")
    found = loaded.state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            found[name], tensor, atol=1e-6, rtol=1e-5, msg=f"{variant}: {name}"
        )
    return "ok"


TABLE: list[tuple[str, list[str]]] = []


@pytest.mark.parametrize("pair", names(), indirect=True, ids=names())
def test_a_mix_of_what_was_saved_otherwise_loads(
    pair: tuple[Path, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    found = [outcome(*pair, variant, tmp_path / "out") for variant in VARIANTS]
    TABLE.append((type(BUILT[pair[1]]).__name__, found))
    refused = [reason for reason in found if reason not in ("ok", "-")]
    assert not refused


def test_the_sweep_covers_sixty_architectures() -> None:
    assert len(names()) >= 60
    for name, found in TABLE:
        os.write(1, f"{name:<36} {'  '.join(f'{word:.8}' for word in found)}\n".encode())


def test_what_the_class_says() -> None:
    whisper = architecture_of(
        {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]}
    )
    assert whisper is not None
    assert whisper.own_of("proj_out.weight") == "decoder.embed_tokens.weight"
    assert (whisper.prefix, whisper.has_prefix) == ("model.", True)
    assert architecture_of({"model_type": "bert", "architectures": ["Unknown"]}) is None
    assert architecture_of({"model_type": "bert", "hidden_size": "wide"}) is None
    assert architecture_of({"model_type": "bert", "auto_map": {}}) is None


@pytest.mark.parametrize(
    ("names", "model_type", "looks"),
    [
        (["embeddings.a", "encoder.layer.0.a"], "bert", True),
        (["bert.embeddings.a", "bert.encoder.layer.0.a"], "bert", True),
        (["model.embed_tokens.a", "model.layers.0.a"], "llama", True),
        (["model.model.layers.0.a"], "llama", False),
        (["ranker.bert.encoder.layer.0.a"], "bert", False),
        (["encoder.embeddings.a", "encoder.encoder.layer.0.a"], "bert", False),
        (["embeddings.a", "encoder.layer.1.a"], "bert", False),  # one layer too many
        (["anything.layers.0.a"], "a_type_of_custom_code", True),
    ],
)
def test_a_look_at_names(names: list[str], model_type: str, looks: bool) -> None:
    assert looks_loadable(names, {"model_type": model_type, "num_hidden_layers": 1}) is looks


@pytest.mark.parametrize(
    ("model_type", "ties"), [("llama", False), ("gpt2", True), ("t5", True), ("unheard_of", None)]
)
def test_what_a_silent_config_means(model_type: str, ties: bool | None) -> None:
    assert default_ties({"model_type": model_type}) is ties

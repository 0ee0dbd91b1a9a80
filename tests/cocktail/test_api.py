"""mix_models: LM_Cocktail's call, on every kind, equal to mixing state dicts by hand."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from cocktail import CocktailError, mix_models, mix_models_by_layers
from cocktail.write.verify import verify

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
}
SMALL_T5 = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 24, "d_kv": 8, "vocab_size": 50}
CASES: dict[str, tuple[str, type[PreTrainedModel], Callable[[], PretrainedConfig]]] = {
    "bert reranker": (
        "reranker", BertForSequenceClassification, lambda: BertConfig(**SMALL, num_labels=1)
    ),
    "roberta reranker": (
        "reranker", RobertaForSequenceClassification, lambda: RobertaConfig(**SMALL, num_labels=1)
    ),
    "bert encoder": ("encoder", BertModel, lambda: BertConfig(**SMALL)),
    "llama": (
        "decoder", LlamaForCausalLM, lambda: LlamaConfig(**SMALL, tie_word_embeddings=False)
    ),
    "tied llama": (
        "decoder", LlamaForCausalLM, lambda: LlamaConfig(**SMALL, tie_word_embeddings=True)
    ),
    "t5": ("encoder-decoder", T5ForConditionalGeneration, lambda: T5Config(**SMALL_T5)),
}  # fmt: skip


def make(
    cls: type[PreTrainedModel], config: PretrainedConfig, seed: int, folder: Path
) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = cls(config).eval()
    # Fresh norms and biases are all alike, which would hide a mix-up.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return model


def equal(model: PreTrainedModel, expected: dict[str, torch.Tensor]) -> bool:
    state = model.state_dict()
    return state.keys() == expected.keys() and all(
        torch.equal(state[name], tensor) for name, tensor in expected.items()
    )


@pytest.mark.parametrize("case", CASES)
def test_equals_mixing_by_hand(case: str, tmp_path: Path) -> None:
    kind, cls, config = CASES[case]
    models = [make(cls, config(), seed, tmp_path / f"m{seed}") for seed in range(2)]
    first, second = (model.state_dict() for model in models)
    expected = {
        name: t * 0.3 + second[name] * 0.7 if t.is_floating_point() else t
        for name, t in first.items()
    }
    paths = [str(tmp_path / "m0"), str(tmp_path / "m1")]
    in_memory = mix_models(paths, kind, [0.3, 0.7], progress=False)
    assert type(in_memory) is cls
    assert not in_memory.training
    assert equal(in_memory, expected)
    written = mix_models_by_layers(
        model_names_or_paths=paths,
        model_type=kind,
        weights=[0.3, 0.7],
        output_path=str(tmp_path / "out"),
        progress=False,
    )
    assert equal(written, expected)
    assert equal(cls.from_pretrained(tmp_path / "out").eval(), expected)


def test_a_model_that_was_written_may_be_changed_and_saved_over_its_files(tmp_path: Path) -> None:
    """Weights mapped from them would not last: safetensors before 0.8 writes into the old file."""
    kind, cls, config = CASES["bert reranker"]
    for seed in range(2):
        make(cls, config(), seed, tmp_path / f"m{seed}")
    out = tmp_path / "out"
    model = mix_models([tmp_path / "m0", tmp_path / "m1"], kind, [0.5, 0.5], out, progress=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert [v.state for v in verify(out, progress=False)] == ["same"] * 3
    changed = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(out)
    assert equal(model, changed)
    assert equal(cls.from_pretrained(out).eval(), changed)


def test_dtype(tmp_path: Path) -> None:
    for seed in range(2):
        make(BertModel, BertConfig(**SMALL), seed, tmp_path / f"m{seed}")
    paths = [tmp_path / "m0", tmp_path / "m1"]
    model = mix_models(
        paths, "encoder", [0.5, 0.5], tmp_path / "out", dtype=torch.bfloat16, progress=False
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_a_masked_language_model_as_base(tmp_path: Path) -> None:
    """The usual base of an encoder has a head that its fine-tune has not, and a prefix."""
    base = make(BertForMaskedLM, BertConfig(**SMALL), 0, tmp_path / "base").state_dict()
    tuned = make(BertModel, BertConfig(**SMALL), 1, tmp_path / "tuned").state_dict()
    paths = [tmp_path / "base", tmp_path / "tuned"]
    with pytest.raises(CocktailError, match="--head copy, or leave it out with --head drop"):
        mix_models(paths, "encoder", [0.5, 0.5], progress=False)
    mix_models(paths, "encoder", [0.5, 0.5], tmp_path / "out", head="drop", progress=False)
    # The config names no class that would start from a random head.
    assert AutoConfig.from_pretrained(tmp_path / "out").architectures == ["BertModel"]
    mixed = mix_models(paths[::-1], "encoder", [0.5, 0.5], head="drop", progress=False)
    assert isinstance(mixed, BertModel)
    assert equal(
        mixed,
        {
            name: tensor * 0.5 + base[f"bert.{name}"] * 0.5
            for name, tensor in tuned.items()
            if not name.startswith("pooler")
        },
    )


def test_no_model_is_left_with_random_weights(tmp_path: Path) -> None:
    for seed in range(2):
        make(BertModel, BertConfig(**SMALL), seed, tmp_path / f"m{seed}")
    with pytest.raises(CocktailError, match="would lose its head or get a random one"):
        mix_models([tmp_path / "m0", tmp_path / "m1"], "reranker", [0.5, 0.5], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_the_class_wants_but_nobody_has_leave_nothing_on_disk(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for seed in range(2):
        folder = tmp_path / f"m{seed}"
        make(BertModel, BertConfig(**SMALL), seed, folder)
        state = load_file(folder / "model.safetensors")
        del state["encoder.layer.1.output.dense.weight"]
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CocktailError, match="has weights that no ingredient has"):
        mix_models([tmp_path / "m0", tmp_path / "m1"], "encoder", [0.5, 0.5], tmp_path / "out")
    assert not (tmp_path / "out").exists()


CUSTOM_CODE = """
from transformers import BertConfig, BertModel
class MyConfig(BertConfig):
    model_type = "mine"
class MyModel(BertModel):
    config_class = MyConfig
"""


def test_custom_code_is_copied_and_run_only_when_trusted(tmp_path: Path) -> None:
    for seed in range(2):
        folder = tmp_path / f"m{seed}"
        make(BertModel, BertConfig(**SMALL), seed, folder)
        (folder / "modeling_mine.py").write_text(CUSTOM_CODE)
        config = json.loads((folder / "config.json").read_text())
        names = {"AutoConfig": "modeling_mine.MyConfig", "AutoModel": "modeling_mine.MyModel"}
        config |= {"model_type": "mine", "architectures": ["MyModel"], "auto_map": names}
        (folder / "config.json").write_text(json.dumps(config))
    paths, out = [tmp_path / "m0", tmp_path / "m1"], tmp_path / "out"
    with pytest.raises(CocktailError, match="trust_remote_code"):
        mix_models(paths, "encoder", [0.5, 0.5], out, progress=False)
    assert not out.exists()
    mixed = mix_models(paths, "encoder", [0.5, 0.5], out, trust_remote_code=True, progress=False)
    assert type(mixed).__name__ == "MyModel"
    loaded = AutoModel.from_pretrained(out, trust_remote_code=True)
    assert equal(loaded, mixed.state_dict())


@pytest.mark.parametrize("output", [None, "out"])
def test_what_cannot_be_built_is_refused_before_anything_is_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str | None
) -> None:
    for module in ("api", "pipeline"):
        monkeypatch.setattr(f"cocktail.{module}.stream", lambda *_, **__: pytest.fail("mixed"))
    for seed in range(2):
        folder = tmp_path / f"m{seed}"
        make(BertModel, BertConfig(**SMALL), seed, folder)
        config = json.loads((folder / "config.json").read_text()) | {"model_type": "unheard-of"}
        (folder / "config.json").write_text(json.dumps(config))
    place = None if output is None else tmp_path / output
    with pytest.raises(CocktailError, match="transformers cannot build it as encoder"):
        mix_models([tmp_path / "m0", tmp_path / "m1"], "encoder", [0.5, 0.5], place, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m0", "m1"]


LM_COCKTAIL = """
import sys
from LM_Cocktail import mix_models
mix_models(sys.argv[1:3], "reranker", [0.3, 0.7], sys.argv[3])
"""


def test_equals_lm_cocktail(tmp_path: Path) -> None:
    python = os.environ.get("LM_COCKTAIL_PYTHON")
    if python is None:
        pytest.skip("LM_COCKTAIL_PYTHON names no interpreter with LM_Cocktail 0.0.4")
    from safetensors.torch import load_file

    for seed in range(2):
        config = BertConfig(**SMALL, num_labels=1)
        make(BertForSequenceClassification, config, seed, tmp_path / f"m{seed}")
    paths = [str(tmp_path / "m0"), str(tmp_path / "m1")]
    subprocess.run([python, "-c", LM_COCKTAIL, *paths, str(tmp_path / "theirs")], check=True)
    mix_models(paths, "reranker", [0.3, 0.7], tmp_path / "ours", progress=False)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())

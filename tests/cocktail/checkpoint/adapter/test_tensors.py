"""Adapters as ingredients: what PEFT would merge is what is mixed, without merging."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
)

from cocktail.checkpoint.hub import needed_files
from cocktail.checkpoint.pooling import pooling_mode
from cocktail.checkpoint.resolve import resolve
from cocktail.cli.main import main
from cocktail.errors import CheckpointError, PlanError
from cocktail.measure.memory import BARE_RUNTIME_BYTES, RUNTIME_BYTES, peak_memory
from cocktail.pipeline import checked_plan
from cocktail.recipe.recipe import make_recipe
from cocktail.tensors.lowrank import TILE
from cocktail.write.modules import write_modules
from cocktail.write.verify import verify
from tests.cocktail.architectures import build
from tests.cocktail.checkpoint.adapter.conftest import (
    Train,
    as_reranker,
    assert_close,
    encoder,
    gpt2,
    masked,
    mix,
    plan_of,
    reranker,
)
from tests.cocktail.checkpoint.test_whole import hub_cache
from tests.cocktail.checkpoints import load, streamed
from tests.cocktail.tiny import BERT, tokenizer

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {r"0.attention.self.query": 2, "output.dense": 6},
        "alpha_pattern": {r"^bert.encoder.layer.1.attention.self.(query|value)": 16},
        "use_rslora": True,
    },
    "all biases": {"bias": "all"},
    "own biases": {"bias": "lora_only", "lora_bias": True},
    "a trained head": {"task_type": "SEQ_CLS"},
    "embeddings": {"target_modules": ["query", "word_embeddings"]},
    "dora": {"use_dora": True},
    "dora, embeddings": {"use_dora": True, "target_modules": ["query", "word_embeddings"]},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_mixes_as_the_merged_model_does(
    train: Train, tmp_path: Path, options: dict[str, Any]
) -> None:
    trained = train("adapter", **options)
    before, merged = load_file(f"{trained.base}/model.safetensors"), load(Path(trained.merged))
    moved = [name for name in merged if not torch.equal(before[name], merged[name])]
    assert len(moved) >= 3
    found = mix([trained.base, trained.adapter], [0.3, 0.7], tmp_path / "x")
    assert_close(found, mix([trained.base, trained.merged], [0.3, 0.7], tmp_path / "y"))
    assert_close(mix([trained.base, trained.pair], [0, 1], tmp_path / "z"), merged)


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize(
    "targets", [["c_attn", "c_proj", "c_fc"], ["attn.c_proj"], ["attn.c_proj", "wte"]]
)
def test_layers_that_keep_their_weights_the_other_way_round(
    train: Train, tmp_path: Path, targets: list[str], use_dora: bool
) -> None:
    trained = train("adapter", gpt2, target_modules=targets, use_dora=use_dora)
    assert_close(
        mix([trained.base, trained.adapter], [0.3, 0.7], tmp_path / "x"),
        mix([trained.base, trained.merged], [0.3, 0.7], tmp_path / "y"),
    )


def test_a_square_layer_is_told_by_its_type_not_by_the_config(train: Train, tmp_path: Path) -> None:
    """PEFT's flag is that of the layer it wrapped last."""
    trained = train("adapter", gpt2, target_modules=["attn.c_proj"])
    config = json.loads(Path(trained.adapter, "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is True
    config["fan_in_fan_out"] = False
    Path(trained.adapter, "adapter_config.json").write_text(json.dumps(config))
    found = mix([trained.base, trained.adapter], [0, 1], tmp_path / "x")
    assert_close(found, load(Path(trained.merged)))


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_two_adapters_of_one_base(train: Train, tmp_path: Path, method: str) -> None:
    one = train("one", target_modules=["query", "value"])
    two = train("two", seed=1, use_dora=True)
    options: dict[str, Any] = {}
    if method == "ties":
        options = {"merge_method": "ties", "base_model": one.base, "parameters": {"density": 0.5}}
    assert_close(
        mix([one.adapter, two.adapter], [0.5, 0.5], tmp_path / "x", **options),
        mix([one.merged, two.merged], [0.5, 0.5], tmp_path / "y", **options),
    )


def test_a_bfloat16_base_gives_a_bfloat16_mix(train: Train, tmp_path: Path) -> None:
    trained = train("adapter", lambda: reranker().to(torch.bfloat16))
    state = load_file(f"{trained.base}/model.safetensors")
    adapter = load_file(f"{trained.adapter}/adapter_model.safetensors")
    stem = "bert.encoder.layer.1.attention.self.query"
    a, b = (adapter[f"base_model.model.{stem}.lora_{m}.weight"].float() for m in "AB")
    exact = state[f"{stem}.weight"].float() + 6 / 4 * b @ a
    found = mix([trained.base, trained.adapter], [0, 1], tmp_path / "x")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    # Only the last step rounds; PEFT rounds the change to bf16 before it adds it.
    assert torch.equal(found[f"{stem}.weight"], exact.to(torch.bfloat16))
    half = mix([trained.base, trained.adapter], [0.5, 0.5], tmp_path / "y")
    expected = (state[f"{stem}.weight"].float() * 0.5 + exact * 0.5).to(torch.bfloat16)
    torch.testing.assert_close(half[f"{stem}.weight"], expected, atol=1e-7, rtol=2**-8)


@pytest.mark.parametrize("use_dora", [False, True])
def test_blocks_and_threads_change_nothing(train: Train, use_dora: bool) -> None:
    """Matrices of several tiles; neither their rows nor their tiles end where a block does."""
    sizes = {**BERT, "intermediate_size": 2000, "vocab_size": 3000}

    def wide() -> PreTrainedModel:
        torch.manual_seed(1)
        return BertForSequenceClassification(BertConfig(**sizes, num_labels=1)).eval()

    trained = train("adapter", wide, use_dora=use_dora, target_modules=["dense", "word_embeddings"])
    plan = plan_of([trained.base, trained.adapter], [0.25, 0.75])
    expected, digests = streamed(plan, threads=1)
    for block, threads in ((1 << 18, 4), (1000, 3), (333, 1)):
        found, others = streamed(plan, threads=threads, block=block)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert others == digests
    changed, _ = streamed(plan_of([trained.base, trained.adapter], [0, 1]), block=1000)
    merged = load(Path(trained.merged))
    assert_close({name: flat.view(merged[name].shape) for name, flat in changed.items()}, merged)


def test_verify_reads_base_and_adapter_again(train: Train, tmp_path: Path) -> None:
    trained = train("adapter", use_dora=True, task_type="SEQ_CLS")
    mix([trained.base, trained.adapter], [0.5, 0.5], tmp_path / "x")
    assert [v.state for v in verify(tmp_path / "x", progress=False)] == ["same"] * 3
    # Another base in the adapter's config does not change what was mixed.
    path = Path(trained.adapter, "adapter_config.json")
    path.write_text(path.read_text().replace(trained.base, trained.merged))
    assert [v.state for v in verify(tmp_path / "x", progress=False)] == ["same"] * 3
    file = Path(trained.adapter, "adapter_model.safetensors")
    tensors = load_file(file)
    next(t for name, t in tensors.items() if "lora_B" in name).add_(0.01)
    save_file(tensors, file)
    states = [v.state for v in verify(tmp_path / "x", progress=False)]
    assert states == ["same", "same", "different"]


def test_the_head_that_an_adapter_trained_comes_along(train: Train, tmp_path: Path) -> None:
    """Its base is an encoder without head and without prefix."""
    one = train("one", encoder, load_base=as_reranker, task_type="SEQ_CLS")
    two = train("two", encoder, load_base=as_reranker, task_type="SEQ_CLS", seed=1)
    checkpoint = resolve(one.adapter)
    assert checkpoint.config["architectures"] == ["BertForSequenceClassification"]
    assert checkpoint.config["id2label"] == {"0": "LABEL_0"}
    found = mix([one.adapter, two.adapter], [0.4, 0.6], tmp_path / "x")
    assert_close(found, mix([one.merged, two.merged], [0.4, 0.6], tmp_path / "y"))
    model, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "x", output_loading_info=True
    )
    assert model.config.num_labels == 1
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    found = mix([one.base, one.adapter], [0.4, 0.6], tmp_path / "z", head="copy")
    assert torch.equal(found["classifier.weight"], load(Path(one.merged))["classifier.weight"])
    with pytest.raises(PlanError, match=r"only .* has the head 'classifier'"):
        plan_of([one.base, one.adapter], [0.4, 0.6])


def test_the_pretraining_head_gives_way_to_the_trained_one(train: Train, tmp_path: Path) -> None:
    trained = train(
        "adapter", masked, load_base=as_reranker, task_type="SEQ_CLS", target_modules=["query"],
        modules_to_save=["pooler"],
    )  # fmt: skip
    other = trained.merged
    plan = plan_of([trained.adapter, other], [0.5, 0.5])
    assert any("pretraining head (cls." in note for note in plan.notes)
    found = mix([trained.adapter, other], [0.5, 0.5], tmp_path / "x")
    assert_close(found, load(Path(other)))


def test_companions_are_the_adapters_own_first(train: Train, tmp_path: Path) -> None:
    trained = train("adapter", encoder, load_base=as_reranker, task_type="SEQ_CLS")
    base, adapter = Path(trained.base), Path(trained.adapter)
    (base / "LICENSE").write_text("the base's")
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    other = tokenizer("bert")
    other.model_max_length = 77
    other.save_pretrained(adapter)
    (base / "vocab.txt").write_text("of the other tokenizer")
    for leftover in ("training_args.bin", "history.png", "optimizer.pt"):
        (adapter / leftover).write_bytes(b"leftover")
    checkpoint = resolve(adapter)
    assert not (checkpoint.folder / "vocab.txt").exists()
    plan = plan_of([trained.adapter, trained.adapter], [0.5, 0.5])
    assert not any("training_args.bin" in note for note in plan.notes)
    mix([trained.adapter, trained.adapter], [0.5, 0.5], tmp_path / "x")
    files = {path.name for path in (tmp_path / "x").iterdir()}
    files.discard("special_tokens_map.json")  # the adapter's own, which transformers 4 writes
    assert files == {
        "LICENSE", "README.md", "cocktail.json", "config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    config = json.loads((tmp_path / "x" / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 77
    assert "license: mit" in (tmp_path / "x" / "README.md").read_text()
    assert not any(path.is_symlink() for path in (tmp_path / "x").iterdir())


def test_the_view_lasts_as_long_as_the_checkpoint(train: Train) -> None:
    checkpoint = resolve(train("adapter").adapter)
    folder = checkpoint.folder
    assert (folder / "config.json").is_file()
    del checkpoint
    assert not folder.exists()


def test_a_killed_run_s_view_is_cleared_by_the_next(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = train("adapter").adapter
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = tmp_path / "cocktail-adapter-xyz-999999991"
    dead.mkdir()
    (dead / ".lock").touch()
    alive = resolve(adapter)
    assert not dead.exists()
    other = resolve(adapter)
    assert alive.folder != other.folder
    assert alive.folder.is_dir()


def test_neither_source_is_written_to(train: Train) -> None:
    trained = train("adapter")
    for place in (trained.base, trained.adapter):
        recipe = make_recipe([trained.pair, trained.pair], [0.5, 0.5])
        with pytest.raises(PlanError, match=r"the output .* lies in the ingredient"):
            checked_plan(recipe, Path(place) / "mix")


def test_references(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train("adapter")
    assert resolve(trained.pair).origins == {
        trained.base: Path(trained.base),
        trained.adapter: Path(trained.adapter),
    }
    plain = tmp_path / "a+b"
    reranker().save_pretrained(plain)
    assert resolve(plain).adaption is None
    assert resolve(f"{plain}+{trained.adapter}").adaption is not None
    # The name in the adapter's config counts from the current folder.
    path = Path(trained.adapter, "adapter_config.json")
    path.write_text(path.read_text().replace(trained.base, "base"))
    monkeypatch.chdir(tmp_path)
    assert resolve("adapter").pinned == "base+adapter"
    assert resolve("base+adapter").pinned == "base+adapter"
    monkeypatch.chdir("/")
    with pytest.raises(CheckpointError, match=r"the base of .*adapter cannot be opened: base"):
        resolve(trained.adapter)


def test_a_pickled_adapter_and_a_pickled_base(train: Train, tmp_path: Path) -> None:
    trained = train("adapter", bias="lora_only")
    for folder, stem, new in (
        (trained.base, "model", "pytorch_model"),
        (trained.adapter, "adapter_model", "adapter_model"),
    ):
        file = Path(folder, f"{stem}.safetensors")
        torch.save(load_file(file), Path(folder, f"{new}.bin"))
        file.unlink()
    found = mix([trained.base, trained.adapter], [0, 1], tmp_path / "x")
    assert_close(found, load(Path(trained.merged)))


def test_modules_of_sentence_transformers_beside_an_adapter(train: Train, tmp_path: Path) -> None:
    trained = train("adapter", encoder)
    write_modules(Path(trained.adapter), "mean", 32)
    mix([trained.adapter, trained.adapter], [0.5, 0.5], tmp_path / "x")
    assert pooling_mode(resolve(tmp_path / "x")) == "mean"
    assert_close(load(tmp_path / "x"), load(Path(trained.merged)))


def test_an_adapter_of_the_bare_model_on_a_base_with_a_head(train: Train) -> None:
    trained = train(
        "adapter", masked, load_base=BertModel.from_pretrained, target_modules=["query", "key"]
    )
    checkpoint = resolve(trained.adapter)
    assert checkpoint.config["architectures"] == ["BertForMaskedLM"]
    assert dict(checkpoint).keys() == dict(resolve(trained.base)).keys()
    run = CliRunner().invoke(main, ["diff", trained.adapter, trained.merged, "--json"])
    assert json.loads(run.output)["distance"] < 1e-6


@pytest.mark.parametrize("target", ["wte", "c_attn"])
def test_trained_embeddings_of_a_tied_base(train: Train, tmp_path: Path, target: str) -> None:
    """Low-rank changes reach both uses, as in PEFT; an embedding trained alone is refused."""
    trained = train("adapter", gpt2, target_modules=[target])
    file = Path(trained.adapter, "adapter_model.safetensors")
    embedding = load_file(f"{trained.base}/model.safetensors")["transformer.wte.weight"]
    layer = "base_layer." if target == "wte" else ""
    stored = {f"base_model.model.transformer.wte.{layer}weight": embedding}
    save_file(load_file(file) | stored, file)
    assert_close(
        mix([trained.base, trained.adapter], [0, 1], tmp_path / "x"), load(Path(trained.merged))
    )
    embedding[3] += 1
    save_file(load_file(file) | stored, file)
    with pytest.raises(CheckpointError, match=r"changes only transformer\.wte\.weight"):
        resolve(trained.adapter)


def test_a_pinned_adapter_from_the_hub(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train("adapter")
    files = {path.name: path.read_bytes() for path in Path(trained.adapter).iterdir()}
    commit = hub_cache(tmp_path / "hub", files)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    mix([trained.base, f"{trained.base}+org/name@main"], [0.5, 0.5], tmp_path / "x")
    record = json.loads((tmp_path / "x" / "cocktail.json").read_text())
    assert record["ingredients"][1]["opened"] == f"{trained.base}+org/name@{commit}"
    assert [v.state for v in verify(tmp_path / "x", progress=False)] == ["same"] * 3
    assert resolve("org/name").pinned == f"{trained.base}+org/name@{commit}"


def test_what_is_fetched_of_an_adapter() -> None:
    files = ["adapter_config.json", "adapter_model.bin", "tokenizer.json", "training_args.bin"]
    assert needed_files(files) == files[:3]
    files.insert(2, "adapter_model.safetensors")
    assert needed_files(files) == ["adapter_config.json", *files[2:4]]


def test_the_plan_counts_what_is_held(train: Train) -> None:
    trained = train("adapter")
    ours = plan_of([trained.base, trained.adapter], [0.5, 0.5])
    merged = plan_of([trained.base, trained.merged], [0.5, 0.5])
    held = Path(trained.adapter, "adapter_model.safetensors").stat().st_size
    extra = peak_memory(ours, 2) - RUNTIME_BYTES
    extra -= peak_memory(merged, 2) - BARE_RUNTIME_BYTES  # merged, it takes no torch
    tiles = 2 * (4 * 4 + 4) * TILE * 8  # at most, for ranks below the width of these layers
    assert 0.9 * held < extra < held + tiles


def test_a_vision_language_model_whose_modules_are_called_otherwise(
    train: Train, tmp_path: Path
) -> None:
    """transformers renames what it loads; the adapter has the names of today, files have others."""
    trained = train(
        "lora",
        lambda: build("LlavaForConditionalGeneration"),
        target_modules=["q_proj", "v_proj", "linear_1"],
    )
    found = mix([trained.pair, trained.base], [1.0, 0.0], tmp_path / "out")
    assert_close(found, load(Path(trained.merged)))

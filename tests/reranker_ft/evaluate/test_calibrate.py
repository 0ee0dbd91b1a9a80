"""Calibration: the fit against scikit-learn's, what it is worth, and models that have it."""

import json

import numpy as np
import pytest
import torch
from scipy.special import expit
from sentence_transformers import CrossEncoder
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForSequenceClassification

from reranker_ft.errors import ArgumentError, DataError, ModelError
from reranker_ft.evaluate import calibrate
from reranker_ft.evaluate.calibrate import calibrate_reranker, fit, fit_queries, reliability
from reranker_ft.score.reranker import Reranker
from tests.reranker_ft.conftest import (
    WORDS,
    make_byte_tokenizer,
    make_decoder,
    make_model,
    make_tokenizer,
    save,
)

OPTIONS = {"devices": "cpu", "max_length": 48}


def drawn(queries: int, *, scale: float = 0.7, offset: float = -3.0, seed: int = 0):
    """Scores, and labels that a logistic model of them draws."""
    random = np.random.default_rng(seed)
    scores = [random.normal(3, 2, 8) for _ in range(queries)]
    return scores, [(random.random(8) < expit(scale * s + offset)).astype(int) for s in scores]


def judged_by(model, count: int = 40) -> list[dict[str, object]]:
    """Rows whose labels are drawn by a logistic model of the scores of ``model``."""
    random = np.random.default_rng(3)
    reranker = Reranker(model, **OPTIONS)
    rows = []
    for i in range(count):
        query = f"what is {WORDS[i % len(WORDS)]} {i}"
        texts = [f"{WORDS[(3 * i + 5 * k) % len(WORDS)]} is {k} {i}" for k in range(6)]
        scores = np.array(reranker.compute_score([(query, text) for text in texts]))
        chances = expit(3 * (scores - scores.mean()) / scores.std())
        good = random.random(len(texts)) < chances
        good[scores.argmax()], good[scores.argmin()] = True, False
        rows.append(
            {
                "query": query,
                "pos": [text for text, is_good in zip(texts, good, strict=True) if is_good],
                "neg": [text for text, is_good in zip(texts, good, strict=True) if not is_good],
            }
        )
    return rows


def test_the_fit_is_that_of_scikit_learn():
    scores, labels = (np.concatenate(parts) for parts in drawn(60))
    positives, negatives = labels.sum(), (1 - labels).sum()
    target = np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    # A soft target is a positive and a negative of these weights.
    found = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        np.tile(scores, 2)[:, None],
        np.repeat([1, 0], len(scores)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    expected = (found.coef_.item(), found.intercept_.item())
    assert fit(scores, labels > 0) == pytest.approx(expected, rel=1e-4)


def test_a_separable_fit_is_finite():
    scale, offset = fit(np.array([-2.0, -1.0, 1.0, 2.0]), np.array([False, False, True, True]))
    assert 0 < scale < 10
    assert offset == pytest.approx(0, abs=1e-6)


def test_what_a_fit_is_worth():
    scores, labels = drawn(300)
    found = fit_queries([f"q{i}" for i in range(300)], scores, labels)
    assert (found.scale, found.offset) == pytest.approx((0.7, -3.0), rel=0.1)
    assert found.before.ece.low > 0.4
    assert found.after.ece.low <= found.after.ece.mean < 0.05
    assert found.after.ece.high < found.before.ece.low
    assert found.after.f1.mean > found.before.f1.mean
    assert (found.queries, found.pairs) == (300, 2400)
    assert found.positives == sum(map(sum, labels))


def test_equal_queries_stay_in_one_fold(monkeypatch):
    scores, labels = drawn(15)
    fitted = []
    monkeypatch.setattr(calibrate, "fit", lambda s, r: fitted.append(len(s)) or fit(s, r))
    fit_queries(["one"] * 6 + [f"q{i}" for i in range(9)], scores, labels)
    assert fitted[0] == 15 * 8
    assert sorted(120 - others for others in fitted[1:]) == [16, 16, 16, 16, 56]


def test_reliability_by_hand():
    probabilities = [np.array([0.95, 0.15]), np.array([0.85, 0.55])]
    relevant = [np.array([True, False]), np.array([True, False])]
    found = reliability(probabilities, relevant)
    assert found.ece.mean == pytest.approx((0.05 + 0.15 + 0.15 + 0.55) / 4)
    assert found.f1.mean == pytest.approx(2 * 2 / (2 * 2 + 1))
    nothing = reliability([np.array([0.1]), np.array([0.2])], [np.array([False])] * 2)
    assert nothing.f1.mean == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, y: ([-row for row in s], y), "the fitted scale is -"),
        (lambda s, y: (s[:9], y[:9]), "9 different queries"),
        (lambda s, y: (s, [np.ones_like(row) for row in y]), "0 other passages"),
        (lambda s, y: ([np.ones_like(row) for row in s], y), "spread by 0"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(change, message):
    scores, labels = change(*drawn(20))
    with pytest.raises(DataError, match=message):
        fit_queries([f"q{i}" for i in range(len(scores))], scores, labels)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_every_tool_gives_the_calibrated_scores(kind, write_jsonl, tmp_path):
    model = save(tmp_path / "model", make_model(kind), make_tokenizer(kind))
    (model / "README.md").write_text("# A card\n")
    (model / "checkpoint-3").mkdir()
    (model / "pytorch_model.bin").write_bytes(b"old")
    before = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    rows = judged_by(model)
    output = tmp_path / "calibrated"
    found = calibrate_reranker(model, write_jsonl(rows), output, reranker_options=OPTIONS)
    assert {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()} == before
    assert (output / "README.md").read_text() == "# A card\n"
    assert not (output / "checkpoint-3").exists()
    assert not (output / "pytorch_model.bin").exists()
    assert "pytorch_model.bin" in found.notes[0]
    assert json.loads((output / "calibration.json").read_text())["scale"] == found.scale
    pairs = [(row["query"], text) for row in rows for text in row["pos"] + row["neg"]]
    raw = np.array(Reranker(model, **OPTIONS).compute_score(pairs))
    expected = found.scale * raw + found.offset
    scores = np.array(Reranker(output, **OPTIONS).compute_score(pairs))
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    assert (np.argsort(scores) == np.argsort(raw)).mean() > 0.99  # but for ties in fp32
    probabilities = CrossEncoder(str(output), device="cpu", max_length=48).predict(pairs)
    np.testing.assert_allclose(probabilities, expit(expected), atol=1e-4)
    loaded = AutoModelForSequenceClassification.from_pretrained(output)
    assert type(loaded.config) is type(make_model(kind).config)
    # The probabilities are what the cross-validation says they are.
    labels = [int(text in row["pos"]) for row in rows for text in row["pos"] + row["neg"]]
    assert np.mean(probabilities) == pytest.approx(np.mean(labels), abs=0.02)
    assert found.after.ece.mean < found.before.ece.mean


def test_a_head_in_half_precision_keeps_its_dtype_and_says_so(write_jsonl, tmp_path):
    model = save(tmp_path / "m", make_model("bert").to(torch.bfloat16), make_tokenizer("bert"))
    found = calibrate_reranker(
        model, write_jsonl(judged_by(model)), tmp_path / "out", reranker_options=OPTIONS
    )
    assert "bfloat16" in found.notes[0]
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.classifier.weight.dtype == torch.bfloat16


def test_a_model_without_an_offset_is_fitted_and_not_written(write_jsonl, tmp_path):
    decoder = make_decoder(pad_token_id=2)
    model = save(tmp_path / "decoder", decoder, make_byte_tokenizer())
    data = write_jsonl(judged_by(model))
    with pytest.raises(ModelError, match="no heads of one logit with a bias"):
        calibrate_reranker(model, data, tmp_path / "out", reranker_options=OPTIONS)
    assert not (tmp_path / "out").exists()
    assert calibrate_reranker(model, data, reranker_options=OPTIONS).output is None


def test_scores_that_are_not_the_heads_leave_nothing_behind(
    model_folders, write_jsonl, tmp_path, monkeypatch
):
    data = write_jsonl(judged_by(model_folders("bert")))
    monkeypatch.setattr(calibrate, "fold_into", lambda *_: None)
    with pytest.raises(ModelError, match="gives scores that are off by"):
        calibrate_reranker(model_folders("bert"), data, tmp_path / "out", reranker_options=OPTIONS)
    assert not list(tmp_path.glob("*out*"))


def test_the_output_is_another_folder(model_folders, write_jsonl, tmp_path):
    model = model_folders("bert")
    data = write_jsonl(judged_by(model))
    for output in (model, model / "inside"):
        with pytest.raises(ArgumentError, match="overlap"):
            calibrate_reranker(model, data, output, overwrite=True, reranker_options=OPTIONS)
    (tmp_path / "there").mkdir()
    with pytest.raises(ArgumentError, match="exists"):
        calibrate_reranker(model, data, tmp_path / "there", reranker_options=OPTIONS)


def calibrated_scores(model, rows, write_jsonl, output):
    """The fit, and the scores of a model before and after it was written."""
    found = calibrate_reranker(model, write_jsonl(rows), output, reranker_options=OPTIONS)
    pairs = [(row["query"], text) for row in rows for text in row["pos"] + row["neg"]]
    before, after = (
        np.array(Reranker(each, **OPTIONS).compute_score(pairs)) for each in (model, output)
    )
    return found, before, after


def test_the_last_dense_layer_of_a_stack_is_its_head(write_jsonl, tmp_path):
    modules = pytest.importorskip("sentence_transformers.base.modules")
    from sentence_transformers.sentence_transformer.modules import Pooling

    save(tmp_path / "body", make_model("bert").bert, make_tokenizer("bert"))
    stack = [
        modules.Transformer(str(tmp_path / "body")),
        Pooling(32, pooling_mode="mean"),
        modules.Dense(32, 16),
        modules.Dense(16, 1, activation_function=None, module_output_name="scores"),
    ]
    identity = torch.nn.Identity()
    CrossEncoder(modules=stack, device="cpu", activation_fn=identity).save_pretrained(
        str(tmp_path / "stack")
    )
    found, before, after = calibrated_scores(
        tmp_path / "stack", judged_by(tmp_path / "stack"), write_jsonl, tmp_path / "out"
    )
    np.testing.assert_allclose(after, found.scale * before + found.offset, rtol=1e-4, atol=1e-4)


def test_the_head_that_an_adapter_brings_is_changed(write_jsonl, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = save(tmp_path / "base", make_model("bert"), make_tokenizer("bert"))
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
    adapted = get_peft_model(AutoModelForSequenceClassification.from_pretrained(base), config)
    save(tmp_path / "adapter", adapted, make_tokenizer("bert"))
    found, before, after = calibrated_scores(
        tmp_path / "adapter", judged_by(tmp_path / "adapter"), write_jsonl, tmp_path / "out"
    )
    np.testing.assert_allclose(after, found.scale * before + found.offset, rtol=1e-4, atol=1e-4)

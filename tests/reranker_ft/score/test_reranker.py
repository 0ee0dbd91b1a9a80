"""The Reranker: FlagReranker's interface, equal scores, memory, devices, saving."""

import importlib.util
import inspect
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from reranker_ft.errors import ArgumentError, ModelError
from reranker_ft.model import precision
from reranker_ft.score import reranker as score_module
from reranker_ft.score.reranker import FlagReranker, Reranker
from tests.reranker_ft.conftest import MAX_POSITIONS, make_model, make_tokenizer, toy_rows

KINDS = ["bert", "roberta", "xlm-roberta"]
PAIRS = [(row["query"], text) for row in toy_rows(7) for text in row["pos"] + row["neg"]]


def reference_scores(folder, pairs) -> list[float]:
    """One padded forward a pair, by transformers alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [
            model(**tokenizer(*pair, return_tensors="pt", truncation="only_second")).logits.item()
            for pair in pairs
        ]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_transformers_in_the_order_of_the_input(model_folders, kind):
    folder = model_folders(kind)
    got = Reranker(folder, devices="cpu", micro_batch_tokens=40).compute_score(PAIRS)
    assert isinstance(got, list)
    assert got == pytest.approx(reference_scores(folder, PAIRS), abs=1e-5)
    assert np.std(got) > 0.01  # else any order would do


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_crossencoder(model_folders, kind):
    folder = model_folders(kind)
    theirs = CrossEncoder(str(folder), device="cpu").predict(
        PAIRS, activation_fn=torch.nn.Identity()
    )
    assert Reranker(folder, devices="cpu").compute_score(PAIRS) == pytest.approx(theirs, abs=1e-4)


@pytest.mark.skipif(
    importlib.util.find_spec("FlagEmbedding") is None, reason="FlagEmbedding is not installed"
)
@pytest.mark.parametrize("options", [{}, {"normalize": True}, {"max_length": 20}])
def test_scores_equal_flagreranker(model_folders, options):
    from FlagEmbedding import FlagReranker as Theirs

    arguments = {"devices": "cpu", "max_length": MAX_POSITIONS, **options}
    theirs = Theirs(str(model_folders()), **arguments).compute_score(PAIRS)
    ours = FlagReranker(str(model_folders()), **arguments).compute_score(PAIRS)
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_one_pair_is_a_list_of_one_and_nothing_is_nothing(model_folders):
    reranker = Reranker(model_folders(), devices="cpu")
    [alone] = reranker.compute_score(["what is red", "the red apple"])
    assert reranker.compute_score(("what is red", "the red apple")) == [alone]
    assert reranker.compute_score([["what is red", "the red apple"]]) == [alone]
    assert reranker.compute_score([]) == []
    assert reranker.rank("what is red", []) == []


@pytest.mark.parametrize(
    "pairs", [["alone"], [["a", "b", "c"]], [["a", None]], [["a", "b"], "cd"], [["a"]], [None]]
)
def test_what_is_no_pair_is_refused(model_folders, pairs):
    with pytest.raises(ArgumentError, match=r"pair \d is .* both strings"):
        Reranker(model_folders(), devices="cpu").compute_score(pairs)


def test_half_of_a_character_is_refused(model_folders):
    with pytest.raises(ArgumentError, match=r"pair 1 is .* half of a character"):
        Reranker(model_folders(), devices="cpu").compute_score([("a", "b"), ("a", "b\ud800")])


@pytest.mark.parametrize("pairs", ["ab", None, 3])
def test_what_is_no_list_is_refused(model_folders, pairs):
    with pytest.raises(ArgumentError, match="is not a list of pairs"):
        Reranker(model_folders(), devices="cpu").compute_score(pairs)


@pytest.mark.parametrize("name", ["batch_size", "max_length", "query_max_length"])
def test_a_length_of_nothing_is_not_the_default(model_folders, name):
    with pytest.raises(ArgumentError, match=f"{name} is 0"):
        Reranker(model_folders(), devices="cpu").compute_score([("a", "b")], **{name: 0})


@pytest.mark.parametrize("name", ["batch_size", "micro_batch_tokens"])
@pytest.mark.parametrize("value", [0, -3])
def test_a_limit_of_nothing_is_refused_before_anything_loads(name, value):
    with pytest.raises(ArgumentError, match=f"{name} is {value}"):
        Reranker("./absent", devices="cpu", **{name: value})


def test_a_decoder_without_a_padding_token_in_its_config_scores_as_one_pair_at_a_time(tmp_path):
    torch.manual_seed(0)
    tokenizer = make_tokenizer("bert")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, **sizes, **heads)
    assert config.pad_token_id is None
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scores = Reranker(tmp_path, devices="cpu").compute_score(PAIRS)
    assert scores == pytest.approx(reference_scores(tmp_path, PAIRS), abs=1e-5)


def test_arguments_of_a_call_go_before_those_of_the_constructor(model_folders):
    reranker = Reranker(model_folders(), devices="cpu", normalize=True, max_length=10)
    raw = reranker.compute_score(PAIRS, normalize=False)
    sigmoid = reranker.compute_score(PAIRS)
    assert sigmoid == pytest.approx((1 / (1 + np.exp(-np.array(raw)))).tolist())
    whole = reranker.compute_score(PAIRS, normalize=False, max_length=MAX_POSITIONS)
    assert whole != pytest.approx(raw, abs=1e-4)
    assert reranker.compute_score(PAIRS, batch_size=1) == pytest.approx(sigmoid, abs=1e-6)


def test_max_length_stays_within_the_positions(model_folders):
    pairs = [("red", "stone " * 500)]
    for kind in KINDS:
        reranker = Reranker(model_folders(kind), devices="cpu", max_length=4096)
        expected = reference_scores(model_folders(kind), pairs)
        assert reranker.compute_score(pairs) == pytest.approx(expected, abs=1e-5)


def test_instructions_are_put_before_the_texts(model_folders):
    plain = Reranker(model_folders(), devices="cpu")
    instructed = Reranker(
        model_folders(),
        devices="cpu",
        query_instruction_for_rerank="what is",
        query_instruction_format="{} {}",
        passage_instruction_for_rerank="the",
        passage_instruction_format="{}\\n{}",
    )
    got = instructed.compute_score(["red", "apple"])
    assert got == plain.compute_score(["what is red", "the\napple"])
    assert got != plain.compute_score(["red", "apple"])


def test_rank_sorts_by_score_and_keeps_the_order_of_ties(model_folders):
    reranker = Reranker(model_folders(), devices="cpu")
    documents = ["the red apple", "a blue river", "the red apple", "stone"]
    ranked = reranker.rank("what is red", documents)
    scores = reranker.compute_score([("what is red", document) for document in documents])
    assert [r.score for r in ranked] == sorted(scores, reverse=True)
    assert all(r.document == documents[r.position] for r in ranked)
    assert [r.position for r in ranked if r.document == "the red apple"] == [0, 2]
    assert reranker.rank("what is red", documents, top_k=2) == ranked[:2]
    with pytest.raises(ArgumentError, match="top_k is 0"):
        reranker.rank("what is red", documents, top_k=0)


def test_windows_and_devices_change_nothing(model_folders, monkeypatch):
    expected = Reranker(model_folders(), devices="cpu").compute_score(PAIRS)
    shared = Reranker(model_folders(), devices=["cpu", "cpu", "cpu"])
    assert shared.compute_score(PAIRS) == pytest.approx(expected, abs=1e-5)
    assert shared.compute_score(PAIRS[:2]) == pytest.approx(expected[:2], abs=1e-5)
    monkeypatch.setattr(score_module, "WINDOW_PAIRS", 5)
    windowed = Reranker(model_folders(), devices="cpu")
    assert windowed.compute_score(PAIRS) == pytest.approx(expected, abs=1e-5)


def test_a_device_that_fails_stops_the_others(model_folders):
    """So does Ctrl-C, which would otherwise wait for all devices to finish their share."""
    shared = Reranker(model_folders(), devices=["cpu", "cpu"], micro_batch_tokens=1)
    first, second = shared._replicas
    failed = threading.Event()
    forwards = []

    def fail(*_):
        failed.set()
        raise RuntimeError("device lost")

    def slow(*_):
        forwards.append(failed.wait(10))
        time.sleep(0.05)

    first.register_forward_pre_hook(fail)
    second.register_forward_pre_hook(slow)
    with pytest.raises(RuntimeError, match="device lost"):
        shared.compute_score(PAIRS * 10)
    # One pair a forward: half of the pairs are the second device's share.
    assert len(forwards) < len(PAIRS)


def test_out_of_memory_halves_the_budget_and_scores_no_pair_twice(model_folders):
    reranker = Reranker(model_folders(), devices="cpu", micro_batch_tokens=400)
    expected = reranker.compute_score(PAIRS)
    forward = reranker.model.forward
    refused, done = [], []

    def forward_in_little_memory(*args, **inputs):
        rows, width = inputs["input_ids"].shape
        # The second forward that would fit fails too, so that finished work is at stake.
        if rows * width > 100 or (len(done) == 1 and len(refused) < 4):
            refused.append(rows * width)
            raise torch.OutOfMemoryError("no memory")
        done.append(rows)
        return forward(*args, **inputs)

    forward_in_little_memory.__signature__ = inspect.signature(forward)
    reranker.model.forward = forward_in_little_memory
    assert reranker.compute_score(PAIRS) == pytest.approx(expected, abs=1e-5)
    assert sum(done) == len(PAIRS)
    assert len(refused) >= 3


def test_half_precision_on_a_cpu_without_it_warns_and_stays_fp32(model_folders, monkeypatch):
    monkeypatch.setattr(precision, "cpu_computes_in_bf16", lambda: False)
    expected = Reranker(model_folders(), devices="cpu").compute_score(PAIRS)
    with pytest.warns(UserWarning, match="does not compute in bf16: scoring in fp32"):
        reranker = Reranker(model_folders(), use_fp16=True, devices="cpu")
    assert reranker.compute_score(PAIRS) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Reranker(model_folders(), devices="cpu")
    with pytest.raises(ArgumentError, match="both set"):
        Reranker(model_folders(), use_fp16=True, use_bf16=True, devices="cpu")


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("flag", ["use_fp16", "use_bf16"])
def test_half_precision_on_a_cpu_that_has_it_is_bf16(model_folders, monkeypatch, kind, flag):
    monkeypatch.setattr(precision, "cpu_computes_in_bf16", lambda: True)
    expected = Reranker(model_folders(kind), devices="cpu").compute_score(PAIRS)
    found = Reranker(model_folders(kind), devices=["cpu", "cpu"], **{flag: True})
    scores = found.compute_score(PAIRS)
    assert scores != expected
    assert scores == pytest.approx(expected, rel=0.02, abs=0.03)


def test_a_half_precision_checkpoint_is_scored_in_fp32(model_folders, tmp_path):
    make_model().half().save_pretrained(tmp_path)
    make_tokenizer("bert").save_pretrained(tmp_path)
    reranker = Reranker(tmp_path, devices="cpu")
    assert reranker.model.dtype == torch.float32
    expected = Reranker(model_folders(), devices="cpu").compute_score(PAIRS)
    assert reranker.compute_score(PAIRS) == pytest.approx(expected, abs=0.05)


def test_save_writes_what_transformers_loads_and_replaces_nothing(model_folders, tmp_path):
    reranker = Reranker(model_folders(), devices="cpu")
    reranker.save(tmp_path / "saved")
    assert Reranker(tmp_path / "saved", devices="cpu").compute_score(
        PAIRS
    ) == reranker.compute_score(PAIRS)
    (tmp_path / "saved" / "mine.txt").write_text("mine")
    with pytest.raises(ArgumentError, match="exists"):
        reranker.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "mine.txt").read_text() == "mine"
    reranker.save(tmp_path / "saved", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]
    assert not (tmp_path / "saved" / "mine.txt").exists()


def test_scores_that_are_no_numbers_are_refused(tmp_path):
    model = make_model()
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    model.save_pretrained(tmp_path)
    make_tokenizer("bert").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"{len(PAIRS)} of {len(PAIRS)} scores are NaN"):
        Reranker(tmp_path, devices="cpu").compute_score(PAIRS)

"""Pairs become token ids, and token ids padded inputs."""

import pytest
import torch

from reranker_ft.errors import ArgumentError, ModelError
from reranker_ft.model.pairs import PairEncoder
from tests.reranker_ft.conftest import (
    make_tokenizer,
    toy_pairs,
)

KINDS = ["bert", "roberta", "xlm-roberta"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_length", [12, 64])
def test_encodings_equal_the_tokenizer_s_pairs(kind, max_length):
    tokenizer = make_tokenizer(kind)
    pairs = toy_pairs()
    encodings = PairEncoder(tokenizer, max_length=max_length, query_max_length=6)(pairs)
    cut = [tokenizer.decode(ids[:6]) for ids in _ids(tokenizer, [query for query, _ in pairs])]
    for number, ((_, passage), query) in enumerate(zip(pairs, cut, strict=True)):
        expected = tokenizer(query, passage, truncation="only_second", max_length=max_length)
        assert encodings.ids(number).tolist() == expected["input_ids"]
        inputs = encodings.pad([number])
        assert "attention_mask" not in inputs
        if "token_type_ids" in expected:
            assert inputs["token_type_ids"].tolist() == [expected["token_type_ids"]]
        else:
            assert "token_type_ids" not in inputs


def _ids(tokenizer, texts):
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_equals_the_tokenizer_s(kind, side):
    tokenizer = make_tokenizer(kind)
    tokenizer.padding_side = side
    pairs = toy_pairs(2)
    encodings = PairEncoder(tokenizer, max_length=64, pad_to_multiple_of=8)(pairs)
    expected = tokenizer(
        [query for query, _ in pairs],
        [passage for _, passage in pairs],
        padding=True,
        pad_to_multiple_of=8,
        return_tensors="pt",
    )
    padded = encodings.pad(range(len(pairs)))
    assert padded.keys() == expected.keys()
    for name, tensor in padded.items():
        assert torch.equal(tensor, expected[name]), name


def test_only_the_passage_is_cut_and_the_query_is_capped():
    tokenizer = make_tokenizer("bert")
    long_query, long_passage = "red " * 50, "blue " * 50
    encoder = PairEncoder(tokenizer, max_length=40)
    red, blue = (_ids(tokenizer, [word])[0][0] for word in ("red", "blue"))

    def counts(encoder, query, passage):
        ids = encoder([(query, passage)]).ids(0).tolist()
        return ids.count(red), ids.count(blue), len(ids)

    assert counts(encoder, long_query, long_passage) == (30, 7, 40)
    assert counts(encoder, "red", long_passage) == (1, 36, 40)
    assert counts(encoder, long_query, "blue") == (30, 1, 34)
    # However long a query may be, a passage keeps one token.
    greedy = PairEncoder(tokenizer, max_length=40, query_max_length=1000)
    assert counts(greedy, long_query, long_passage) == (36, 1, 40)
    capped = PairEncoder(tokenizer, max_length=40, query_max_length=5, passage_max_length=10)
    assert counts(capped, long_query, long_passage) == (5, 10, 18)


def test_cut_lengths_are_those_of_the_encodings():
    tokenizer = make_tokenizer("roberta")
    pairs = [("red " * q, "blue " * p) for q in (1, 8, 30) for p in (1, 9, 50)]
    encoder = PairEncoder(tokenizer, max_length=24, query_max_length=10, passage_max_length=12)
    lengths = encoder.cut_lengths(
        encoder.text_lengths([query for query, _ in pairs]),
        encoder.text_lengths([passage for _, passage in pairs]),
    )
    assert lengths.tolist() == encoder(pairs).lengths.tolist()


def test_lengths_that_leave_no_room_are_refused():
    tokenizer = make_tokenizer("bert")
    with pytest.raises(ArgumentError, match="max_length is 4 - a pair takes 3 special tokens"):
        PairEncoder(tokenizer, max_length=4)
    with pytest.raises(ArgumentError, match="query_max_length is 0"):
        PairEncoder(tokenizer, query_max_length=0)


def test_a_tokenizer_that_builds_no_pair_is_refused():
    tokenizer = make_tokenizer("bert")
    tokenizer.backend_tokenizer.post_processor = type(tokenizer.backend_tokenizer.post_processor)(
        single="$A", pair="$B:1 $A", special_tokens=[]
    )
    with pytest.raises(ModelError, match="a cross-encoder reads query, then passage"):
        PairEncoder(tokenizer)


def test_padding_without_a_padding_token_is_refused():
    tokenizer = make_tokenizer("bert")
    tokenizer.pad_token = None
    encodings = PairEncoder(tokenizer)([("red", "blue"), ("red", "blue blue")])
    assert encodings.pad([0])["input_ids"].shape == (1, 5)
    with pytest.raises(ModelError, match="no padding token"):
        encodings.pad([0, 1])

"""Embeddings of texts, with each pooling."""

import pytest
import torch
from transformers import BertConfig, BertModel

from reranker_ft.data.instructions import Instructions
from reranker_ft.errors import ArgumentError, ModelError
from reranker_ft.mine.bi_encoder import EncoderOptions, PooledEncoder, load_encoder
from reranker_ft.model import precision
from tests.reranker_ft.conftest import MAX_POSITIONS, make_tokenizer

TEXTS = ["the red apple", "river", "what is the king of the north and where is the bridge"]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = make_tokenizer("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last_token"])
def test_pooled_embeddings_equal_unpadded_ones(encoder_folder, pooling):
    options = EncoderOptions(pooling=pooling, device="cpu", normalize=False)
    encoder = load_encoder(encoder_folder, options)
    assert isinstance(encoder, PooledEncoder)
    together = encoder.encode_passages(TEXTS)
    model, tokenizer = BertModel.from_pretrained(encoder_folder).eval(), make_tokenizer("bert")
    for text, vector in zip(TEXTS, together, strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        one = {"cls": hidden[0], "mean": hidden.mean(0), "last_token": hidden[-1]}[pooling]
        torch.testing.assert_close(vector, one, atol=1e-5, rtol=1e-4)


def test_pooled_encoder_normalizes_cuts_and_instructs(encoder_folder):
    options = EncoderOptions(
        pooling="mean",
        device="cpu",
        instructions=Instructions(query="what is", query_format="{} {}"),
        query_max_length=5,
    )
    encoder = load_encoder(encoder_folder, options)
    torch.testing.assert_close(encoder.encode_passages(TEXTS).norm(dim=1), torch.ones(3))
    plain = load_encoder(encoder_folder, EncoderOptions(pooling="mean", device="cpu"))
    torch.testing.assert_close(
        encoder.encode_queries(["red", "red apple and more"]),
        plain.encode_passages(["what is red", "what is red"]),
    )


def test_texts_are_cut_at_the_model_s_positions(encoder_folder, tmp_path):
    BertModel.from_pretrained(encoder_folder).save_pretrained(tmp_path)
    tokenizer = make_tokenizer("bert")
    tokenizer.model_max_length = 512  # more than the model has positions for
    tokenizer.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), EncoderOptions(pooling="mean", device="cpu"))
    whole, cut = (encoder.encode_passages(["red " * n]) for n in (200, MAX_POSITIONS - 2))
    torch.testing.assert_close(whole, cut)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"device": "foo"}, "device 'foo' is unknown"),
        ({"device": "meta"}, "'meta' does not work here"),
        ({"query_max_length": -5}, "query_max_length is -5"),
        ({"passage_max_length": 0}, "passage_max_length is 0"),
        ({"passage_max_length": 2, "pooling": "cls"}, "2 tokens - 2 of a text's are special"),
    ],
)
def test_what_an_encoder_cannot_do_is_said_of_the_option(encoder_folder, wrong, found):
    with pytest.raises(ArgumentError, match=found):
        load_encoder(encoder_folder, EncoderOptions(**wrong))


def test_sentence_transformers_reads_the_stored_pooling(encoder_folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(encoder_folder, device="cpu").save(str(tmp_path / "st"))  # mean pooling
    stored = load_encoder(str(tmp_path / "st"), EncoderOptions(device="cpu"))
    pooled = load_encoder(encoder_folder, EncoderOptions(pooling="mean", device="cpu"))
    torch.testing.assert_close(
        stored.encode_queries(TEXTS), pooled.encode_queries(TEXTS), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        stored.encode_passages(TEXTS), pooled.encode_passages(TEXTS), atol=1e-5, rtol=1e-4
    )


def test_an_encoder_that_is_not_there_is_refused_in_one_line(tmp_path):
    for pooling in (None, "cls"):
        with pytest.raises(ModelError, match="does not load") as refused:
            load_encoder(str(tmp_path / "absent"), EncoderOptions(pooling=pooling, device="cpu"))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("flag", ["use_fp16", "use_bf16"])
@pytest.mark.parametrize("pooling", ["mean", None])
def test_half_precision_on_a_cpu(encoder_folder, monkeypatch, flag, pooling):
    options = {"pooling": pooling, "device": "cpu"}
    exact = load_encoder(encoder_folder, EncoderOptions(**options)).encode_passages(TEXTS)
    monkeypatch.setattr(precision, "cpu_computes_in_bf16", lambda: True)
    half = load_encoder(encoder_folder, EncoderOptions(**options, **{flag: True}))
    found = half.encode_passages(TEXTS)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.02)
    monkeypatch.setattr(precision, "cpu_computes_in_bf16", lambda: False)
    with pytest.warns(UserWarning, match="does not compute in bf16: encoding in fp32"):
        same = load_encoder(encoder_folder, EncoderOptions(**options, **{flag: True}))
    assert torch.equal(same.encode_passages(TEXTS), exact)

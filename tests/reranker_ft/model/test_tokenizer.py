"""A tokenizer fitted to its model: padding, token types, separators, chat templates."""

import logging

import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from reranker_ft.errors import ModelError
from reranker_ft.model.pairs import PairTemplate
from reranker_ft.model.tokenizer import fit_tokenizer, separate_pairs
from reranker_ft.score.reranker import Reranker
from tests.reranker_ft.conftest import (
    make_byte_tokenizer,
    make_decoder,
    make_model,
    make_tokenizer,
    save,
)

SPLITS = [("what is red?", "blue"), ("what is", " red?blue"), ("what is red?b", "lue")]
PAIRS = [*SPLITS, ("a", "b" * 60), ("a much longer query than the others", "c")]


def each_alone(folder):
    """The scores that transformers gives one pair at a time, without any padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = [tokenizer(*pair, return_tensors="pt") for pair in PAIRS]
    with torch.no_grad():
        return [model(**each).logits.item() for each in inputs]


@pytest.mark.parametrize("known", [None, -1, 0])
def test_a_decoder_finds_the_end_of_a_text_whatever_its_config_calls_padding(tmp_path, known):
    """0 begins a text: taken for padding it would be harmless, and the real padding read."""
    folder = save(tmp_path / "m", make_decoder(pad_token_id=known), make_byte_tokenizer(begin=True))
    assert Reranker(folder, devices="cpu").compute_score(PAIRS) == pytest.approx(
        each_alone(folder), abs=1e-5
    )


def test_a_tokenizer_without_padding_pads_with_its_end_and_says_so(tmp_path, caplog):
    folder = save(tmp_path / "m", make_decoder(), make_byte_tokenizer(pad=None))
    with caplog.at_level(logging.WARNING):
        reranker = Reranker(folder, devices="cpu")
    assert "has no padding token: its tokenizer pads with '</s>'" in caplog.text
    assert reranker.compute_score(PAIRS) == pytest.approx(each_alone(folder), abs=1e-5)
    reranker.save(tmp_path / "saved")
    crossencoder = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    theirs = crossencoder.predict(PAIRS, activation_fn=torch.nn.Identity())
    assert theirs == pytest.approx(reranker.compute_score(PAIRS), abs=1e-5)


def test_the_padding_of_an_encoder_stays(tmp_path):
    """The positions of RoBERTa are counted from its padding token."""
    model, tokenizer = make_model("roberta"), make_tokenizer("roberta")
    tokenizer.pad_token = "</s>"
    fit_tokenizer("m", model, tokenizer)
    assert model.config.pad_token_id == 1


def test_what_pads_with_nothing_is_still_refused_where_it_pads(tmp_path):
    tokenizer = make_byte_tokenizer(pad=None)
    tokenizer.eos_token = None
    reranker = Reranker(save(tmp_path / "m", make_decoder(), tokenizer), devices="cpu")
    assert len(reranker.compute_score(PAIRS[:1])) == 1
    with pytest.raises(ModelError, match="no padding token"):
        reranker.compute_score(PAIRS)


SIZES = {
    **{"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 64, "max_position_embeddings": 66, "num_labels": 1},
}


@pytest.mark.parametrize(
    "model",
    [
        XLMRobertaForSequenceClassification(XLMRobertaConfig(**SIZES, type_vocab_size=1)),
        DistilBertForSequenceClassification(
            DistilBertConfig(vocab_size=200, dim=32, n_layers=2, n_heads=4, num_labels=1)
        ),
        make_decoder(),
    ],
    ids=["one type", "none", "decoder"],
)
def test_token_types_that_the_model_lacks_are_not_made(tmp_path, model):
    tokenizer = make_tokenizer("bert")
    assert "token_type_ids" in tokenizer("a", "b")
    reranker = Reranker(save(tmp_path / "m", model, tokenizer), devices="cpu")
    scores = reranker.compute_score(PAIRS)
    reranker.save(tmp_path / "saved")
    assert each_alone(tmp_path / "saved") == pytest.approx(scores, abs=1e-5)
    theirs = CrossEncoder(str(tmp_path / "saved"), device="cpu").predict(
        PAIRS, activation_fn=torch.nn.Identity()
    )
    assert theirs == pytest.approx(scores, abs=1e-5)


def test_token_types_that_the_model_has_stay():
    model, tokenizer = make_model("bert"), make_tokenizer("bert")
    fit_tokenizer("m", model, tokenizer)
    assert tokenizer("a", "b")["token_type_ids"][-1] == 1


@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize(("separator", "text"), [(None, "\n"), ("\\n", "\n"), (" => ", " => ")])
def test_a_separator_is_part_of_the_saved_tokenizer(tmp_path, begin, separator, text):
    plain = make_byte_tokenizer(begin=begin)
    separate_pairs("m", plain, separator, fresh=True).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    start = "<s>" if begin else ""
    assert loaded.decode(loaded("red", "blue")["input_ids"]) == f"{start}red{text}blue"
    assert loaded("red")["input_ids"] == plain("red")["input_ids"]
    assert (loaded.pad_token, loaded.eos_token, loaded.model_max_length) == ("<pad>", "</s>", 256)
    assert loaded.padding_side == plain.padding_side


def test_a_trained_model_gets_a_separator_only_if_one_is_named(tmp_path):
    folder = save(tmp_path / "m", make_decoder(), make_byte_tokenizer())
    assert len(set(Reranker(folder, devices="cpu").compute_score(SPLITS))) == 1
    separated = Reranker(folder, devices="cpu", sep_token="\\n")
    assert len(set(separated.compute_score(SPLITS))) == 3
    separated.save(tmp_path / "saved")
    again = Reranker(tmp_path / "saved", devices="cpu")
    assert again.compute_score(SPLITS) == separated.compute_score(SPLITS)


def test_a_tokenizer_that_separates_keeps_its_own_separator(caplog):
    tokenizer = make_tokenizer("roberta")
    assert separate_pairs("m", tokenizer, None, fresh=True) is tokenizer
    assert not caplog.text
    assert separate_pairs("m", tokenizer, "\n", fresh=True) is tokenizer
    assert "sep_token is not used" in caplog.text


def test_a_tokenizer_that_drops_white_space_separates_by_its_end():
    tokenizer = make_tokenizer("bert")
    tokenizer.backend_tokenizer.post_processor = None
    plain = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="[SEP]", pad_token="[PAD]"
    )
    if len(PairTemplate.of(plain).middle):
        pytest.skip("this version of transformers separates pairs by itself")
    separated = separate_pairs("m", plain, None, fresh=True)
    assert PairTemplate.of(separated).middle.tolist() == [plain.eos_token_id]
    with pytest.raises(ModelError, match="makes no token of the separator"):
        separate_pairs("m", plain, " ", fresh=True)


def test_a_chat_template_is_not_saved_with_a_reranker(tmp_path):
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    folder = save(tmp_path / "m", make_decoder(), tokenizer)
    reranker = Reranker(folder, devices="cpu")
    reranker.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "chat_template.jinja").exists()
    crossencoder = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    theirs = crossencoder.predict(PAIRS, activation_fn=torch.nn.Identity())
    assert theirs == pytest.approx(reranker.compute_score(PAIRS), abs=1e-5)

"""One forward pass, through the door to the shortcuts."""

import pytest

from reranker_ft.errors import ModelError
from reranker_ft.model.pairs import PairEncoder
from reranker_ft.model.scoring import score_encodings
from tests.reranker_ft.conftest import make_model, make_tokenizer


def test_a_model_with_several_logits_is_refused():
    encodings = PairEncoder(make_tokenizer("bert"))([("red", "blue")])
    with pytest.raises(ModelError, match="a reranker gives one score per pair"):
        score_encodings(make_model(num_labels=3), encodings)

"""cuDNN's attention is left out while this package runs a model, and comes back afterwards."""

import pytest
from torch.backends import cuda
from torch.nn.modules.module import register_module_forward_pre_hook

from reranker_ft.model.fast.attention import attention_without_plans
from reranker_ft.model.pairs import PairEncoder
from reranker_ft.model.scoring import score_encodings
from reranker_ft.run import main
from tests.reranker_ft.conftest import make_model, make_tokenizer, toy_rows


@pytest.fixture(autouse=True)
def cudnn_is_on():
    before = cuda.cudnn_sdp_enabled()
    cuda.enable_cudnn_sdp(True)
    yield
    cuda.enable_cudnn_sdp(before)


def test_what_the_caller_had_chosen_comes_back():
    with pytest.raises(RuntimeError, match="inside"), attention_without_plans():
        assert not cuda.cudnn_sdp_enabled()
        raise RuntimeError("inside")
    assert cuda.cudnn_sdp_enabled()
    cuda.enable_cudnn_sdp(False)
    with attention_without_plans():
        pass
    assert not cuda.cudnn_sdp_enabled()


@pytest.fixture
def seen():
    """Whether cuDNN's attention was on, whenever a module was called."""
    calls: list[bool] = []
    handle = register_module_forward_pre_hook(lambda *_: calls.append(cuda.cudnn_sdp_enabled()))
    yield calls
    handle.remove()


def test_scoring_goes_without(seen):
    encodings = PairEncoder(make_tokenizer("bert"))([("what", "this and that")])
    score_encodings(make_model("bert"), encodings)
    assert seen
    assert not any(seen)
    assert cuda.cudnn_sdp_enabled()


def test_training_goes_without_even_where_the_backward_attends_again(
    seen, model_folders, write_jsonl, tmp_path
):
    flags = ["--model_name_or_path", model_folders("bert"), "--output_dir", tmp_path / "out"]
    flags += ["--train_data", write_jsonl(toy_rows(4)), "--train_group_size", 2, "--max_steps", 1]
    flags += ["--gradient_checkpointing", True, "--per_device_train_batch_size", 2]
    assert main([*map(str, flags), "--report_to", "none"]) == 0
    assert seen
    assert not any(seen)
    assert cuda.cudnn_sdp_enabled()

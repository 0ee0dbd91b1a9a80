"""Scores of language models against what their families' own code computes, text for text."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reranker_ft import FlagLLMReranker, LayerWiseFlagLLMReranker, Reranker, RerankerError
from tests.language_models import PAIRS, make_language_model

LONG = [("who is the bird? " * 12, "the red bird flies over a river. " * 30), *PAIRS]
FLAG_PROMPT = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the "
    "query by providing a prediction of either 'Yes' or 'No'."
)


@torch.no_grad()
def last_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """(V,) logits at the last position of one text, alone and unpadded."""
    return model(input_ids=torch.tensor([ids])).logits[0, -1]


def flag_scores(model: Any, tokenizer: Any, pairs: Any, max_length: int) -> list[float]:
    """FlagEmbedding 1.4.2's FlagLLMReranker: parts tokenised one by one, the logit of Yes."""

    def ids(text: str, most: int | None = None) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"][:most]

    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    question = ids(FLAG_PROMPT)
    scores = []
    for query, passage in pairs:
        first = start + ids("A: " + query, max_length * 3 // 4)
        second = ids("\n") + ids("B: " + passage, max_length)
        room = max_length + len(ids("\n")) + len(question) - len(first)
        whole = first + second[:room] + ids("\n") + question
        scores.append(float(last_logits(model, whole)[ids("Yes")[0]]))
    return scores


def qwen_scores(model: Any, tokenizer: Any, pairs: Any, max_length: int) -> list[float]:
    """The snippet on Qwen3-Reranker's card, before its softmax: log-odds of yes and no."""
    prefix = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
        'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n"
    )
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    task = "Given a web search query, retrieve relevant passages that answer the query"
    before = tokenizer.encode(prefix, add_special_tokens=False)
    after = tokenizer.encode(suffix, add_special_tokens=False)
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    scores = []
    for query, passage in pairs:
        text = f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {passage}"
        room = max_length - len(before) - len(after)
        logits = last_logits(model, before + tokenizer.encode(text)[:room] + after)
        scores.append(float(logits[yes] - logits[no]))
    return scores


def mxbai_scores(model: Any, tokenizer: Any, pairs: Any, instruction: str | None) -> list[float]:
    """mxbai-rerank 0.1's MxbaiRerankV2: log-odds of 1 and 0."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    chat = (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n<|im_start|>user\n"
    )
    task = (
        "You are a search relevance expert who evaluates how well documents match search queries. "
        "For each query-document pair, carefully analyze the semantic relationship between them, "
        "then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\n"
        "Relevance:"
    )
    scores = []
    for query, passage in pairs:
        asked = f"query: {query}"
        if instruction:
            asked = f"instruction: {instruction}\n{asked}"
        middle = ids(asked) + ids("\n") + ids(f"document: {passage}")
        whole = ids(chat) + middle + ids("\n") + ids(task)
        logits = last_logits(model, whole + ids("<|im_end|>\n<|im_start|>assistant\n"))
        scores.append(float(logits[ids("1")[0]] - logits[ids("0")[0]]))
    return scores


@pytest.mark.parametrize("max_length", [512, 40])
@pytest.mark.parametrize(("kind", "start"), [("gemma", True), ("llama", False)])
def test_flag_llm_reranker_scores_as_flagembedding(
    tmp_path: Path, kind: str, start: bool, max_length: int
) -> None:
    model, tokenizer = make_language_model(tmp_path, kind, start=start)
    reranker = FlagLLMReranker(tmp_path, devices="cpu")
    scores = reranker.compute_score(LONG, max_length=max_length)
    expected = flag_scores(model, tokenizer, LONG, max_length)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 3) for score in scores}) == len(LONG)


def test_another_question_is_asked(tmp_path: Path) -> None:
    make_language_model(tmp_path, "llama")
    usual = FlagLLMReranker(tmp_path, devices="cpu")
    other = FlagLLMReranker(tmp_path, devices="cpu", prompt="Is it red?")
    asked = other.compute_score(PAIRS)
    assert asked != pytest.approx(usual.compute_score(PAIRS), abs=1e-3)
    assert usual.compute_score(PAIRS, prompt="Is it red?") == pytest.approx(asked, abs=1e-5)


@pytest.mark.parametrize("max_length", [512, 240])
def test_qwen3_rerankers_score_as_their_card_says(tmp_path: Path, max_length: int) -> None:
    folder = tmp_path / "Qwen3-Reranker-0.6B"
    model, tokenizer = make_language_model(folder, "qwen3")
    pairs = [("who is the bird?", "the red bird flies over a river. " * 30), *PAIRS]
    scores = Reranker(folder, devices="cpu", max_length=max_length).compute_score(pairs)
    expected = qwen_scores(model, tokenizer, pairs, max_length)
    assert scores == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("instruction", [None, "birds alone"])
def test_mxbai_rerankers_score_as_their_package(tmp_path: Path, instruction: str | None) -> None:
    folder = tmp_path / "mxbai-rerank-base-v2"
    model, tokenizer = make_language_model(folder, "qwen2")
    reranker = Reranker(folder, devices="cpu", query_instruction_for_rerank=instruction)
    expected = mxbai_scores(model, tokenizer, PAIRS, instruction)
    assert reranker.compute_score(PAIRS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("chat", [True, False])
def test_module_stacks_score_as_sentence_transformers(tmp_path: Path, chat: bool) -> None:
    pytest.importorskip("sentence_transformers.cross_encoder.modules")
    from sentence_transformers import CrossEncoder

    _, tokenizer = make_language_model(tmp_path / "lm", "qwen3")
    if chat:
        tokenizer.chat_template = (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
            "{% endfor %}<|im_start|>answer\n"
        )
        tokenizer.save_pretrained(tmp_path / "lm")
    theirs = CrossEncoder(
        str(tmp_path / "lm"),
        device="cpu",
        activation_fn=torch.nn.Identity(),
        prompts={"birds": "Find the bird."},
        default_prompt_name="birds",
    )
    theirs.save_pretrained(str(tmp_path / "stack"))
    ours = Reranker(tmp_path / "stack", devices="cpu").compute_score(PAIRS)
    assert ours == pytest.approx(theirs.predict(PAIRS).tolist(), abs=1e-5)


def test_a_pair_scores_in_a_batch_as_alone(tmp_path: Path) -> None:
    make_language_model(tmp_path, "llama")
    text = "<|im_start|>{query} | {passage}<|im_end|>\\nanswer:"
    reranker = Reranker(tmp_path, devices="cpu", prompt_template=text, max_length=128)
    together = reranker.compute_score(LONG)
    alone = [reranker.compute_score([pair])[0] for pair in LONG]
    assert together == pytest.approx(alone, abs=1e-5)
    encodings = reranker.encoder()(LONG)
    assert (encodings.lengths <= 128).all()
    whole = reranker.tokenizer.decode(encodings.ids(0))
    assert whole.startswith("<|im_start|>who is") and whole.endswith("<|im_end|>\nanswer:")


class Layered(torch.nn.Module):
    """Gives the logit of each layer that it is asked for, as MiniCPM's code does."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model
        self.config = model.config

    def forward(self, input_ids, attention_mask=None, cutoff_layers=None, position_ids=None):  # type: ignore[no-untyped-def]
        states = self.inner(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            output_hidden_states=True,
        ).hidden_states
        layers = cutoff_layers or [len(states) - 1]

        return SimpleNamespace(logits=[states[layer].sum(dim=2) for layer in layers])


def test_layerwise_models_score_at_the_layers_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = make_language_model(tmp_path, "llama")
    import reranker_ft.model.rerankers as loading

    layered = Layered(model)
    layered.get_input_embeddings = model.get_input_embeddings
    monkeypatch.setattr(loading, "load_language_model", lambda *_, **__: layered)
    reranker = LayerWiseFlagLLMReranker(tmp_path, devices="cpu", cutoff_layers=[1, 2])
    first, second = reranker.compute_score(PAIRS)
    ids = torch.tensor(reranker.encoder()(PAIRS[:1]).ids(0))
    states = model(input_ids=ids[None].long(), output_hidden_states=True).hidden_states
    assert first[0] == pytest.approx(float(states[1][0, -1].sum()), abs=1e-4)
    assert second[0] == pytest.approx(float(states[2][0, -1].sum()), abs=1e-4)
    assert reranker.compute_score(PAIRS, cutoff_layers=[2]) == pytest.approx(second, abs=1e-5)


def test_a_language_model_without_a_prompt_is_refused(tmp_path: Path) -> None:
    make_language_model(tmp_path, "llama")
    with pytest.raises(RerankerError, match="nothing with it says how it reranks"):
        Reranker(tmp_path, devices="cpu")
    with pytest.raises(RerankerError, match="each once"):
        Reranker(tmp_path, devices="cpu", prompt_template="Is it {query}?")
    with pytest.raises(RerankerError, match="same token"):
        Reranker(
            tmp_path,
            devices="cpu",
            prompt_template="{query} {passage}",
            yes_token="no",
            no_token="no",
        )

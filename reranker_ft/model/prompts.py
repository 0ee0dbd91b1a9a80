"""The texts that language models rerank with: what stands around a query and a passage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from reranker_ft.errors import ArgumentError, ModelError
from reranker_ft.model.pairs import Encodings, Pair, PairEncoder, PairTemplate, TokenIds
from reranker_ft.model.turns import turn

INSTRUCTION = "{instruction}"
QUERY = "{query}"
PASSAGE = "{passage}"


@dataclass(frozen=True)
class Prompt:
    """What a language model reads around a query and a passage, and the tokens that it answers.

    Attributes:
        name: Of the family, or ``own``.
        before: Texts before the query. The parts of ``before``, ``between`` and ``after`` become
            tokens one by one, unless ``joint``.
        query: Goes before the query, and counts as part of it.
        between: Texts between query and passage.
        passage: Goes before the passage, and counts as part of it.
        after: Texts after the passage.
        yes: Its first token is the answer of a relevant passage.
        no: Its first token is the other answer; ``None`` if the score is the logit of ``yes``.
        instruction: What ``{instruction}`` in the texts stands for.
        instructed: Stands in place of ``query`` where there is an instruction.
        joint: Tokens are made of the whole text at once, so that they may span two parts.
        start_token: ``always`` begins with the tokenizer's start token, ``usual`` if the tokenizer
            begins a text with it, and ``never``.
    """

    name: str
    before: tuple[str, ...]
    query: str
    between: tuple[str, ...]
    passage: str
    after: tuple[str, ...]
    yes: str
    no: str | None
    instruction: str | None = None
    instructed: str | None = None
    joint: bool = False
    start_token: str = "never"

    @property
    def has_instruction(self) -> bool:
        """Whether there is a place for an instruction."""
        return self.instructed is not None or any(INSTRUCTION in text for text in self.before)

    @property
    def lead(self) -> str:
        """What goes before the query."""
        instructed = self.instructed is not None and self.instruction is not None
        return self.filled(self.instructed or "") if instructed else self.query

    def filled(self, text: str) -> str:
        """Return a part of the prompt with its instruction in place."""
        return text.replace(INSTRUCTION, self.instruction or "")

    def to_dict(self) -> dict[str, Any]:
        """Return what ``from_dict`` makes the prompt of again, as JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Prompt:
        """Read a prompt from a config.

        Raises:
            ModelError: A field is missing, unknown or of another type.
        """
        try:
            values = dict(fields)
            for name in ("before", "between", "after"):
                values[name] = tuple(map(str, values[name]))
            return cls(**values)
        except (TypeError, KeyError, ValueError) as error:
            raise ModelError(
                f"the prompt in config.json cannot be read ({error}) - it has the fields of a "
                "prompt - train or convert the model again"
            ) from error


BGE = Prompt(
    name="bge-llm",
    before=(),
    query="A: ",
    between=("\n",),
    passage="B: ",
    after=(
        "\n",
        "Given a query A and a passage B, determine whether the passage contains an answer to the "
        "query by providing a prediction of either 'Yes' or 'No'.",
    ),
    yes="Yes",
    no=None,
    start_token="always",
)
"""bge-reranker-v2-gemma and -minicpm-layerwise, as FlagEmbedding 1.4 writes it."""

QWEN3 = Prompt(
    name="qwen3-reranker",
    before=(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
        'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n<Instruct>: {instruction}\n<Query>: ",
    ),
    query="",
    between=("\n<Document>: ",),
    passage="",
    after=("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",),
    yes="yes",
    no="no",
    instruction="Given a web search query, retrieve relevant passages that answer the query",
    joint=True,
)
"""Qwen3-Reranker (arXiv 2506.05176), as its model card writes it."""

MXBAI = Prompt(
    name="mxbai-rerank-v2",
    before=(
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n<|im_start|>user\n",
    ),
    query="query: ",
    between=("\n",),
    passage="document: ",
    after=(
        "\n",
        "You are a search relevance expert who evaluates how well documents match search queries. "
        "For each query-document pair, carefully analyze the semantic relationship between them, "
        "then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\n"
        "Relevance:",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    yes="1",
    no="0",
    instructed="instruction: {instruction}\nquery: ",
)
"""mxbai-rerank-base-v2 and -large-v2, as the package mxbai-rerank 0.1 writes it."""

FAMILIES: Mapping[str, Prompt] = {prompt.name: prompt for prompt in (BGE, QWEN3, MXBAI)}

# Parts of the names under which the families' models are published.
PUBLISHED = {
    "bge-reranker-v2-gemma": BGE,
    "bge-reranker-v2-minicpm": BGE,
    "qwen3-reranker": QWEN3,
    "mxbai-rerank-base-v2": MXBAI,
    "mxbai-rerank-large-v2": MXBAI,
}


def published_prompt(*names: str | None) -> Prompt | None:
    """Return the prompt of the family that one of these names belongs to, if any does."""
    for name in names:
        for part, prompt in PUBLISHED.items():
            if part in (name or "").lower():
                return prompt
    return None


def prompt_named(text: str, *, yes: str | None = None, no: str | None = None) -> Prompt:
    """Return the prompt of a family, or one made of a text with ``{query}`` and ``{passage}``.

    Args:
        text: ``bge-llm``, ``qwen3-reranker``, ``mxbai-rerank-v2``, or the text. ``\\n`` stands for
            a line break.
        yes: Answer of a relevant passage; the family's, or ``yes``.
        no: The other answer; the family's, or ``no`` - none if ``yes`` alone is given.

    Raises:
        ArgumentError: The text is neither.
    """
    if text in FAMILIES:
        prompt = FAMILIES[text]
        return prompt if yes is None else replace(prompt, yes=yes, no=no)
    if text.count(QUERY) != 1 or text.count(PASSAGE) != 1 or text.find(QUERY) > text.find(PASSAGE):
        raise ArgumentError(
            f"prompt_template is {text!r} - it is {', '.join(FAMILIES)}, or a text with {QUERY} "
            f"and then {PASSAGE}, each once - use one of these"
        )
    before, rest = text.replace("\\n", "\n").split(QUERY)
    between, after = rest.split(PASSAGE)
    return Prompt(
        name="own",
        before=(before,),
        query="",
        between=(between,),
        passage="",
        after=(after,),
        yes=yes or "yes",
        no=no if yes else "no",
        joint=True,
        start_token="usual",
    )


class PromptEncoder(PairEncoder):
    """Turn (query, passage) pairs into the tokens of a prompt.

    The query is capped and the passage cut to what is left; the prompt is never cut.

    Args:
        tokenizer: A transformers tokenizer.
        prompt: What stands around the two.
        left: Pad on the left, so that every text ends at the last position.
        lengths: ``max_length`` (prompt included), ``query_max_length``, ``passage_max_length`` and
            ``pad_to_multiple_of``, as for PairEncoder.

    Raises:
        ArgumentError: The lengths leave no room for a query token and a passage token.
        ModelError: The prompt is tokenised jointly and the tokenizer does not tell where its
            tokens stand in the text.
    """

    def __init__(
        self, tokenizer: Any, prompt: Prompt, *, left: bool = True, **lengths: Any
    ) -> None:
        if prompt.joint and not tokenizer.is_fast:
            raise ModelError(
                f"{type(tokenizer).__name__} does not tell where its tokens stand in a text - the "
                "passage of a prompt is cut by that - use the fast tokenizer"
            )
        super().__init__(tokenizer, template=_template(tokenizer, prompt), left=left, **lengths)
        self.prompt = prompt

    def __call__(self, pairs: Sequence[Pair]) -> Encodings:
        """Encode N pairs, order kept."""
        prompt = self.prompt
        if not prompt.joint:
            lead = prompt.lead
            return super().__call__([(lead + q, prompt.passage + p) for q, p in pairs])
        rows = self._encode_jointly(pairs)
        offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
        tokens = np.concatenate(rows) if rows else np.zeros(0, np.int32)
        return Encodings(tokens, None, offsets, self.padding)

    def _encode_jointly(self, pairs: Sequence[Pair]) -> list[TokenIds]:
        if not pairs:
            return []
        queries = self._capped([query for query, _ in pairs])
        start = _start_tokens(self.tokenizer, self.prompt)
        head, between, after = _joint_parts(self.prompt)
        before = [head + queries[query] + between for query, _ in pairs]
        texts = [text + passage + after for text, (_, passage) in zip(before, pairs, strict=True)]
        with turn(self.tokenizer):
            made = self._with_offsets(texts)
        rows = []
        for text, lead, ids, places in zip(
            texts, before, made["input_ids"], made["offset_mapping"], strict=True
        ):
            firsts, ends = np.array(places, np.int64).T
            first = int(np.searchsorted(ends, len(lead), side="right"))
            last = int(np.searchsorted(firsts, len(text) - len(after), side="left"))
            room = self.max_length - len(start) - first - (len(ids) - last)
            kept = max(1, min(last - first, room, self.passage_max_length))
            rows.append(np.array([*start, *ids[: first + kept], *ids[last:]], np.int32))
        return rows

    def _capped(self, queries: Sequence[str]) -> dict[str, str]:
        """Return each query, cut at the end of its last token that is within the limit."""
        unique = list(dict.fromkeys(queries))
        with turn(self.tokenizer):
            places = self._with_offsets(unique)["offset_mapping"]
        most = self.query_max_length
        return {
            query: query if len(spans) <= most else query[: spans[most - 1][1]]
            for query, spans in zip(unique, places, strict=True)
        }

    def _with_offsets(self, texts: Sequence[str]) -> Any:
        return self.tokenizer(
            list(texts),
            add_special_tokens=False,
            truncation=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )


def _joint_parts(prompt: Prompt) -> tuple[str, str, str]:
    head = prompt.filled("".join(prompt.before)) + prompt.lead
    return head, prompt.filled("".join(prompt.between) + prompt.passage), "".join(prompt.after)


def _start_tokens(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Return the start token, if the prompt begins with it."""
    start = tokenizer.bos_token_id
    if start is None or prompt.start_token == "never":
        return []
    if prompt.start_token == "always":
        # FlagEmbedding's rule: a start token that is padding too is left out.
        return [] if start == tokenizer.pad_token_id else [start]
    return [start] if list(tokenizer("query")["input_ids"])[:1] == [start] else []


def start_text(tokenizer: Any, prompt: Prompt) -> str:
    """Return the start token as text, if the prompt begins with it; else nothing."""
    return str(tokenizer.bos_token) if _start_tokens(tokenizer, prompt) else ""


def _template(tokenizer: Any, prompt: Prompt) -> PairTemplate:
    """Return the tokens of the prompt without its two texts."""

    def tokens(texts: Sequence[str]) -> list[int]:
        parts = [prompt.filled(text) for text in texts if text]
        made = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in parts]
        return [token for ids in made for token in ids]

    before: Sequence[str] = prompt.before
    between: Sequence[str] = prompt.between
    after: Sequence[str] = prompt.after
    if prompt.joint:
        before, between, after = ([text] for text in _joint_parts(prompt))
    return PairTemplate(
        prefix=np.array([*_start_tokens(tokenizer, prompt), *tokens(before)], np.int32),
        middle=np.array(tokens(between), np.int32),
        suffix=np.array(tokens(after), np.int32),
        type_ids=None,
    )

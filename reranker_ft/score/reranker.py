"""Score (query, passage) pairs, behind the interface of FlagEmbedding's FlagReranker."""

from __future__ import annotations

import reprlib
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from reranker_ft.data.files import new_folder
from reranker_ft.data.instructions import Instructions
from reranker_ft.data.lines import lone_surrogate
from reranker_ft.errors import ArgumentError, ModelError
from reranker_ft.model.devices import Devices
from reranker_ft.model.pairs import Encodings, Pair, PairEncoder
from reranker_ft.model.precision import dtype_asked_for
from reranker_ft.model.quiet_bars import bars_on_terminals_only
from reranker_ft.model.readout import pair_encoder, settle_instructions
from reranker_ft.model.rerankers import load_reranker
from reranker_ft.model.scoring import position_limit, score_encodings
from reranker_ft.model.turns import turn
from reranker_ft.score.backends import Backend, default_tokens, devices_for, placed

# Pairs that are tokenized and sorted by length together: enough for batches of even length, few
# enough that the token ids of millions of pairs never stand in memory at once.
WINDOW_PAIRS = 16_384


class RankedDocument(NamedTuple):
    """A document, where it stood in the input, and its score."""

    position: int
    score: float
    document: str


class Reranker:
    """A trained cross-encoder that scores how well passages answer queries.

    Takes the constructor arguments of FlagReranker (FlagEmbedding 1.4) and gives equal scores, but
    batches by tokens: pairs are sorted by length and run in micro-batches of about equal length.
    Threads may share a reranker and get the scores that each would get alone. They tokenize by
    turns, and models that take the shortcuts of ``forward.py`` run by turns too; ``model`` called
    past the reranker meanwhile may be in the middle of one.

    >>> reranker = Reranker("BAAI/bge-reranker-base", use_fp16=True)  # doctest: +SKIP
    >>> scores = reranker.compute_score([["what is a panda?", "hi"],
    ...                                  ["what is a panda?", "A bear."]])  # doctest: +SKIP

    Args:
        model_name_or_path: A folder, a PEFT adapter's folder, or a Hub id.
        use_fp16: Half precision on a GPU; on a CPU that multiplies bf16, bf16, and on others fp32
            and a warning.
        query_instruction_for_rerank, query_instruction_format: The format's two ``{}`` take the
            instruction and the query. No instruction, no change.
        passage_instruction_for_rerank, passage_instruction_format: The same for passages.
        trust_remote_code: Run code that comes with the model.
        cache_dir: Where downloads are kept.
        devices: "cpu", "cuda:1", 1, or a list of these, which share the work; ``None`` takes all
            GPUs, else the CPU.
        batch_size: Maximum pairs of full length per forward pass.
        query_max_length: Maximum tokens of a query; three quarters of ``max_length`` if ``None``.
        max_length: Maximum tokens of a pair. Never more than the model has positions for.
        normalize: Map scores to (0, 1) by the sigmoid.
        use_bf16: As ``use_fp16``, in bfloat16.
        micro_batch_tokens: Maximum padded tokens per forward pass; ``None`` lets the device decide.
        sep_token: Goes between query and passage if the tokenizer puts nothing there; ``None``
            leaves it as the model was trained with it.
        prompt_template: What a language model reads: ``bge-llm``, ``qwen3-reranker``,
            ``mxbai-rerank-v2``, or a text with ``{query}`` and ``{passage}``; ``None`` for what
            its folder says, or that of the family whose name it has.
        yes_token, no_token: The answers to ``prompt_template`` whose log-odds are the score;
            without ``no_token`` the logit of ``yes_token``.
        peft_path: A PEFT adapter's folder, which is merged into a language model.
        backend: ``torch``, or ``openvino`` for cross-encoders on a CPU, from the extra of that
            name; it does not see later changes of ``model``.

    Attributes:
        model: The first device's copy.
        tokenizer: Its tokenizer.
        instructions: What is put around queries and passages.
        target_devices: The devices in use.

    Raises:
        ModelError: The checkpoint does not load as a reranker.
        ArgumentError: A device that is not there, or arguments that make no sense.
    """

    def __init__(
        self,
        model_name_or_path: str | Path,
        use_fp16: bool = False,
        query_instruction_for_rerank: str | None = None,
        query_instruction_format: str = "{}{}",
        passage_instruction_for_rerank: str | None = None,
        passage_instruction_format: str = "{}{}",
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        devices: Devices = None,
        batch_size: int = 128,
        query_max_length: int | None = None,
        max_length: int = 512,
        normalize: bool = False,
        *,
        use_bf16: bool = False,
        micro_batch_tokens: int | None = None,
        sep_token: str | None = None,
        prompt_template: str | None = None,
        yes_token: str | None = None,
        no_token: str | None = None,
        peft_path: str | Path | None = None,
        backend: Backend = "torch",
    ) -> None:
        """Load a model and make it ready to score; ``help(Reranker)`` explains the arguments.

        Raises:
            ModelError: The checkpoint does not load as a reranker.
            ArgumentError: A device that is not there, or arguments that make no sense.
        """
        for name, value in (("batch_size", batch_size), ("micro_batch_tokens", micro_batch_tokens)):
            if value is not None and value < 1:
                raise ArgumentError(f"{name} is {value} - it limits a forward pass - use 1 or more")
        self.target_devices = devices_for(backend, devices)
        dtype = dtype_asked_for(use_fp16, use_bf16, self.target_devices, "scoring")
        model, self.tokenizer = load_reranker(
            model_name_or_path,
            trust_remote_code=trust_remote_code,
            cache_dir=cache_dir,
            sep_token=sep_token,
            prompt_template=prompt_template,
            yes_token=yes_token,
            no_token=no_token,
            adapter=peft_path,
        )
        given = Instructions(
            query=query_instruction_for_rerank,
            query_format=query_instruction_format,
            passage=passage_instruction_for_rerank,
            passage_format=passage_instruction_format,
        )
        query, passage = settle_instructions(
            model, (given.query, given.query_format), (given.passage, given.passage_format)
        )
        self.instructions = replace(given, query=query, passage=passage)
        self._replicas = placed(model, self.tokenizer, dtype, self.target_devices, backend)
        self.backend = backend
        self.model_name_or_path = str(model_name_or_path)
        self.batch_size = batch_size
        self.query_max_length = query_max_length
        self.max_length = max_length
        self.normalize = normalize
        self.micro_batch_tokens = micro_batch_tokens

    @property
    def model(self) -> nn.Module:
        return self._replicas[0]

    def compute_score(
        self,
        sentence_pairs: Sequence[Sequence[str]] | Sequence[str],
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        normalize: bool | None = None,
        *,
        progress: bool = False,
    ) -> list[float]:
        """Score pairs, order kept. An argument that is ``None`` takes the constructor's value.

        Args:
            sentence_pairs: N pairs [query, passage]; or one pair, which counts as a list of one.
            progress: Show a progress bar.

        Returns:
            N raw scores (logits), or probabilities with ``normalize``.

        Raises:
            ArgumentError: Something is not a pair of strings, or a length leaves no room for text.
            ModelError: A single pair does not fit into the device's memory, or a score is NaN.
        """
        scores = self.score_pairs(
            [self.instruct(query, passage) for query, passage in _as_pairs(sentence_pairs)],
            batch_size=batch_size,
            encoder=self.encoder(max_length=max_length, query_max_length=query_max_length),
            normalize=normalize,
            progress=progress,
        )
        result: list[float] = scores.tolist()
        return result

    def instruct(
        self, query: str, passage: str, prompt: str | None = None, passage_prompt: str | None = None
    ) -> Pair:
        """Return the pair as the model reads it; prompts replace the instructions."""
        put = self.instructions
        return put.of_query(query, prompt), put.of_passage(passage, passage_prompt)

    def encoder(
        self, *, max_length: int | None = None, query_max_length: int | None = None
    ) -> PairEncoder:
        """Return what turns pairs into token ids; ``None`` takes the constructor's value.

        Raises:
            ArgumentError: The lengths leave no room for text.
        """
        max_length = self.max_length if max_length is None else max_length
        if query_max_length is None:
            query_max_length = self.query_max_length
        with turn(self.tokenizer):
            lengths = self._lengths(max_length, query_max_length)
            limit = position_limit(self.model) or lengths["max_length"]
            lengths["max_length"] = min(lengths["max_length"], limit)
            return pair_encoder(self.model, self.tokenizer, **lengths)

    def _lengths(self, max_length: int, query_max_length: int | None) -> dict[str, Any]:
        """Return what ``pair_encoder`` is told, before the model's positions limit it."""
        return {"max_length": max_length, "query_max_length": query_max_length}

    def score_pairs(
        self,
        pairs: Sequence[Pair],
        *,
        batch_size: int | None = None,
        encoder: PairEncoder | None = None,
        normalize: bool | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Return (N,) fp64 scores of N pairs as they are, without instructions.

        Raises:
            ModelError: A single pair does not fit into the device's memory, or a score is NaN.
        """
        encoder = encoder or self.encoder()
        budget = self.token_budget(encoder.max_length, batch_size)
        windows = range(0, len(pairs), WINDOW_PAIRS)
        scores = torch.empty(len(pairs))
        for number, start in enumerate(windows, 1):
            label = "scoring" if len(windows) == 1 else f"scoring, part {number} of {len(windows)}"
            window = pairs[start : start + WINDOW_PAIRS]
            # A tokenizer truncates all threads' texts at the length that it was last told.
            with turn(encoder.tokenizer):
                encodings = encoder(window)
            scores[start : start + len(window)] = self.score_encodings(
                encodings, max_tokens=budget, progress=label if progress else False
            )
        lost = int(scores.isnan().sum())
        if lost:
            raise ModelError(
                f"{lost} of {len(pairs)} scores are NaN - a score must be a number - score without "
                "use_fp16, or check the model's weights"
            )
        # In fp64, where the sigmoid of a large score is still below 1.
        scores = scores.double()
        return scores.sigmoid() if (self.normalize if normalize is None else normalize) else scores

    def token_budget(self, max_length: int, batch_size: int | None = None) -> int:
        """Return the maximum padded tokens per forward pass, within ``batch_size`` full pairs.

        Raises:
            ArgumentError: ``batch_size`` is below 1.
        """
        pairs = self.batch_size if batch_size is None else batch_size
        if pairs < 1:
            raise ArgumentError(f"batch_size is {pairs} - it counts pairs - use 1 or more")
        suits = self.micro_batch_tokens or default_tokens(self.backend, self.target_devices[0])
        return min(suits, pairs * max_length)

    def rank(
        self, query: str, documents: Sequence[str], top_k: int | None = None
    ) -> list[RankedDocument]:
        """Return the ``top_k`` best documents, best first; ties keep the order of the input.

        Raises:
            ArgumentError: as ``compute_score``, or ``top_k`` is below 1.
        """
        if top_k is not None and top_k < 1:
            raise ArgumentError(f"top_k is {top_k} - it counts documents - use 1 or more")
        scores = self.compute_score([(query, document) for document in documents])
        best = np.argsort(-np.array(scores), kind="stable")[:top_k].tolist()
        return [RankedDocument(i, scores[i], documents[i]) for i in best]

    def save(self, output_path: str | Path, *, overwrite: bool = False) -> None:
        """Write model and tokenizer for transformers, in the dtype of the weights of ``model``.

        Raises:
            ArgumentError: The path exists and ``overwrite`` is false.
        """
        with new_folder(output_path, overwrite=overwrite) as folder, bars_on_terminals_only():
            self.model.save_pretrained(folder)  # type: ignore[operator]
            self.tokenizer.save_pretrained(folder)

    def score_encodings(
        self, encodings: Encodings, *, max_tokens: int, progress: str | bool = False
    ) -> Tensor:
        """Return the (N,) fp32 raw scores of N pairs as token ids, shared out among the devices.

        Raises:
            ModelError: A single pair does not fit into a device's memory.
        """
        if len(self._replicas) == 1:
            return score_encodings(self.model, encodings, max_tokens=max_tokens, progress=progress)
        shares = _deal(encodings.lengths, len(self._replicas))
        stop = threading.Event()

        def score_share(model: nn.Module, share: Sequence[int], shown: str | bool) -> Tensor:
            return score_encodings(
                model, encodings.take(share), max_tokens=max_tokens, progress=shown, stop=stop
            )

        # One bar is enough: the shares finish at about the same time.
        bars = [progress, *[False] * len(shares)]
        scores = torch.empty(len(encodings))
        with ThreadPoolExecutor(len(shares)) as threads:
            try:
                parts = threads.map(score_share, self._replicas, shares, bars)
                for share, part in zip(shares, parts, strict=True):
                    scores[share] = part
            except BaseException:
                # Ctrl-C, or a device that failed: leaving the block waits for all threads.
                stop.set()
                raise
        return scores


def _as_pairs(sentence_pairs: Sequence[Sequence[str]] | Sequence[str]) -> list[Pair]:
    """Return a list of pairs, whether given as one or as a single pair."""
    if isinstance(sentence_pairs, str) or not isinstance(sentence_pairs, Iterable):
        raise ArgumentError(
            f"{reprlib.repr(sentence_pairs)} is not a list of pairs - a pair is [query, passage] - "
            "pass a list of them"
        )
    items: list[Any] = list(sentence_pairs)
    if items and isinstance(items[0], str):
        items = [items]
    for number, item in enumerate(items):
        pair = () if isinstance(item, str) or not isinstance(item, Iterable) else tuple(item)
        if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise ArgumentError(
                f"pair {number} is {reprlib.repr(item)} - a pair is [query, passage], both "
                "strings - drop or repair it"
            )
        if any(lone_surrogate(text) is not None for text in pair):
            raise ArgumentError(
                f"pair {number} is {reprlib.repr(item)}, with half of a character - a text "
                "consists of whole characters - drop or repair it"
            )
    return [(query, passage) for query, passage in items]


def _deal(lengths: npt.NDArray[np.int64], shares: int) -> list[list[int]]:
    """Return 0..N-1 in at most ``shares`` lists, each with the same mix of lengths."""
    by_length = np.argsort(-lengths, kind="stable")
    return [by_length[i::shares].tolist() for i in range(min(shares, len(lengths)))]


FlagReranker = Reranker

"""FlagEmbedding's classes for rerankers that are language models, with its constructors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reranker_ft.errors import ArgumentError
from reranker_ft.model.devices import Devices
from reranker_ft.model.pairs import PairEncoder
from reranker_ft.model.readout import Readout, attach_readout, pair_encoder, readout_of
from reranker_ft.model.scoring import position_limit
from reranker_ft.model.turns import turn
from reranker_ft.score.reranker import Reranker


class FlagLLMReranker(Reranker):
    """A language model that answers ``Yes`` where a passage answers the query.

    Takes the constructor arguments of FlagEmbedding 1.4's class and gives equal scores: the logit
    of ``Yes`` after query, passage and prompt. The prompt comes on top of ``max_length``, as
    there.

    Args:
        model_name_or_path: A folder or a Hub id of a causal language model.
        peft_path: A PEFT adapter's folder, which is merged into the model.
        query_instruction_for_rerank, passage_instruction_for_rerank: Go before query and passage.
        prompt: What is asked; ``None`` for FlagEmbedding's question.
        others: As for Reranker.

    Raises:
        ModelError: The checkpoint does not load as a causal language model.
        ArgumentError: A device that is not there, or arguments that make no sense.
    """

    def __init__(
        self,
        model_name_or_path: str | Path,
        peft_path: str | Path | None = None,
        use_fp16: bool = False,
        use_bf16: bool = False,
        query_instruction_for_rerank: str = "A: ",
        query_instruction_format: str = "{}{}",
        passage_instruction_for_rerank: str = "B: ",
        passage_instruction_format: str = "{}{}",
        cache_dir: str | None = None,
        trust_remote_code: bool = False,
        devices: Devices = None,
        prompt: str | None = None,
        batch_size: int = 128,
        query_max_length: int | None = None,
        max_length: int = 512,
        normalize: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(
            model_name_or_path,
            peft_path=peft_path,
            use_fp16=use_fp16,
            use_bf16=use_bf16,
            query_instruction_for_rerank=query_instruction_for_rerank,
            query_instruction_format=query_instruction_format,
            passage_instruction_for_rerank=passage_instruction_for_rerank,
            passage_instruction_format=passage_instruction_format,
            cache_dir=cache_dir,
            trust_remote_code=trust_remote_code,
            devices=devices,
            batch_size=batch_size,
            query_max_length=query_max_length,
            max_length=max_length,
            normalize=normalize,
            prompt_template="bge-llm",
            **others,
        )
        if prompt is not None:
            self._ask(prompt)

    def compute_score(  # type: ignore[override]
        self,
        sentence_pairs: Sequence[Sequence[str]] | Sequence[str],
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        prompt: str | None = None,
        normalize: bool | None = None,
        *,
        progress: bool = False,
    ) -> list[float]:
        """Score pairs, order kept. An argument that is ``None`` takes the constructor's value.

        Args:
            sentence_pairs: N pairs [query, passage]; or one pair, which counts as a list of one.
            prompt: What is asked from now on.
            progress: Show a progress bar.

        Returns:
            N logits, or probabilities with ``normalize``.

        Raises:
            ArgumentError: Something is not a pair of strings, or a length leaves no room for text.
            ModelError: A single pair does not fit into the device's memory, or a score is NaN.
        """
        if prompt is not None:
            self._ask(prompt)
        return super().compute_score(
            sentence_pairs, batch_size, query_max_length, max_length, normalize, progress=progress
        )

    def encoder(
        self, *, max_length: int | None = None, query_max_length: int | None = None
    ) -> PairEncoder:
        """Return what turns pairs into token ids; ``None`` takes the constructor's value.

        Raises:
            ArgumentError: The lengths leave no room for text.
        """
        max_length = self.max_length if max_length is None else max_length
        if query_max_length is None:
            query_max_length = self.query_max_length or max(1, max_length * 3 // 4)
        with turn(self.tokenizer):
            prompt = pair_encoder(self.model, self.tokenizer, max_length=2**20).template.suffix
            # Room for the question is added twice there: for the cut, and where it is appended.
            length = max_length + 2 * len(prompt)
            return pair_encoder(
                self.model,
                self.tokenizer,
                max_length=min(length, position_limit(self.model) or length),
                query_max_length=query_max_length,
                passage_max_length=max_length,
            )

    def _ask(self, question: str) -> None:
        for model in self._replicas:
            readout = _readout(model)
            if readout.prompt is not None:
                asked = replace(readout.prompt, after=("\n", question))
                attach_readout(model, replace(readout, prompt=asked))


class LayerWiseFlagLLMReranker(FlagLLMReranker):
    """A layerwise language model (bge-reranker-v2-minicpm-layerwise): each layer has a score.

    Such models come with code of their own, whose forward takes ``cutoff_layers``: pass
    ``trust_remote_code=True`` once you have read it.

    Args:
        cutoff_layers: Layers to score with; ``None`` for the last.
        others: As for FlagLLMReranker.

    Raises:
        ModelError: as for FlagLLMReranker.
        ArgumentError: A layer is not a positive number.
    """

    def __init__(
        self,
        model_name_or_path: str | Path,
        *arguments: Any,
        cutoff_layers: Sequence[int] | None = None,
        **others: Any,
    ) -> None:
        self.cutoff_layers = _checked_layers(cutoff_layers)
        super().__init__(model_name_or_path, *arguments, **others)

    def compute_score(  # type: ignore[override]
        self,
        sentence_pairs: Sequence[Sequence[str]] | Sequence[str],
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        cutoff_layers: Sequence[int] | None = None,
        prompt: str | None = None,
        normalize: bool | None = None,
        *,
        progress: bool = False,
    ) -> list[Any]:
        """Score pairs as FlagLLMReranker does, by one layer or by each of several.

        Returns:
            N scores; for several layers a list of N scores for each.

        Raises:
            ArgumentError: as for FlagLLMReranker, or a layer is not a positive number.
            ModelError: as for FlagLLMReranker.
        """
        layers = _checked_layers(cutoff_layers) or self.cutoff_layers or [None]
        scores = []
        for layer in layers:
            for model in self._replicas:
                attach_readout(model, replace(_readout(model), layer=layer))
            scores.append(
                super().compute_score(
                    sentence_pairs,
                    batch_size,
                    query_max_length,
                    max_length,
                    prompt,
                    normalize,
                    progress=progress,
                )
            )
        return scores if len(scores) > 1 else scores[0]


def _readout(model: Any) -> Readout:
    readout = readout_of(model)
    if readout is None:
        raise ArgumentError("the model has no prompt - a language model has one - load it anew")
    return readout


def _checked_layers(layers: Sequence[int] | None) -> list[int | None]:
    for layer in layers or ():
        if layer < 1:
            raise ArgumentError(f"cutoff_layers has {layer} - layers count from 1 - use 1 or more")
    return list(layers or ())

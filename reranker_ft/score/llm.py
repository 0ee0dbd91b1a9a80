"""FlagEmbedding's classes for rerankers that are language models, with its constructors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from reranker_ft.errors import ArgumentError
from reranker_ft.model.devices import Devices
from reranker_ft.model.prompts import BGE
from reranker_ft.model.readout import Readout, attach_readout, pair_encoder, readout_of
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
        """Score pairs as ``Reranker.compute_score`` does; ``prompt`` is asked from now on."""
        if prompt is not None:
            self._ask(prompt)
        return super().compute_score(
            sentence_pairs, batch_size, query_max_length, max_length, normalize, progress=progress
        )

    def _lengths(self, max_length: int, query_max_length: int | None) -> dict[str, Any]:
        if query_max_length is None:
            query_max_length = max(1, max_length * 3 // 4)
        # Room for the question is added twice there: for the cut, and where it is appended.
        question = pair_encoder(self.model, self.tokenizer, max_length=2**20).template.suffix
        return {
            "max_length": max_length + 2 * len(question),
            "query_max_length": query_max_length,
            "passage_max_length": max_length,
        }

    def _ask(self, question: str) -> None:
        def asking(readout: Readout) -> Readout:
            prompt = replace(readout.prompt or BGE, after=("\n", question))
            return replace(readout, prompt=prompt)

        self._read_out(asking)

    def _read_out(self, changed: Callable[[Readout], Readout]) -> None:
        """Let every device's copy score as ``changed`` makes it of what it did."""
        for model in self._replicas:
            readout = readout_of(model)
            if readout is not None:
                attach_readout(model, changed(readout))


class LayerWiseFlagLLMReranker(FlagLLMReranker):
    """A layerwise language model (bge-reranker-v2-minicpm-layerwise): each layer has a score.

    Those of FlagEmbedding come with code of their own, whose forward takes ``cutoff_layers``: pass
    ``trust_remote_code=True`` once you have read it. A model of a plain class runs as many layers
    as are asked for, and is read through its last norm and its output embedding.

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
            ArgumentError: As for Reranker, or a layer is not a positive number.
            ModelError: As for Reranker, or the model has fewer layers.
        """
        layers = _checked_layers(cutoff_layers) or self.cutoff_layers or [None]
        scores = []
        for layer in layers:
            self._read_out(partial(replace, layer=layer))
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


def _checked_layers(layers: Sequence[int] | None) -> list[int | None]:
    for layer in layers or ():
        if layer < 1:
            raise ArgumentError(f"cutoff_layers has {layer} - layers count from 1 - use 1 or more")
    return list(layers or ())

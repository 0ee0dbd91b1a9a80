"""What bf16, or OpenVINO, gains and costs where a cross-encoder scores on a CPU.

    python benchmarks/half_precision.py --model MODEL --data ../shared/data/xquad_en/test.jsonl
    python benchmarks/half_precision.py --model MODEL --data DATA --ways fp32 openvino
    python benchmarks/half_precision.py --model MODEL --data DATA --ways fp32 bf16 --force

In one process, in turn: fp32, ``use_bf16`` and transformers' own forward with its weights in bf16,
padded, in the same micro-batches; or the ``--ways`` that are named, the first of which the others
are compared with. With ``--force`` bf16 is computed in where fp32 is faster, too, so that what it
costs can be measured anywhere. Medians of seconds, and of the processor's seconds, which other
processes' work changes less; the largest difference of a score, and of NDCG@10 with its interval.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reranker_ft import Reranker
from reranker_ft.data.examples import ExampleFiles
from reranker_ft.evaluate.metrics import bootstrap_difference, per_query_metrics
from reranker_ft.model import precision
from reranker_ft.model.scoring import token_batches


def padded_forwards(model: Path) -> Callable[[list[tuple[str, str]]], list[float]]:
    """The scores that transformers gives in bf16 without any of the package's shortcuts."""
    reranker = Reranker(model, devices="cpu")
    reranker.model.bfloat16()

    @torch.no_grad()
    def score(pairs: list[tuple[str, str]]) -> list[float]:
        encodings = reranker.encoder()(pairs)
        scores = torch.empty(len(pairs))
        for batch in token_batches(encodings.lengths, reranker.token_budget(512)):
            scores[batch] = reranker.model(**encodings.pad(batch)).logits[:, 0].float()
        return scores.tolist()

    return score


def ours(model: Path, **options: Any) -> Callable[[list[tuple[str, str]]], list[float]]:
    return Reranker(model, devices="cpu", **options).compute_score


WAYS = {
    "fp32": ours,
    "bf16": partial(ours, use_bf16=True),
    "transformers-bf16": padded_forwards,
    "openvino": partial(ours, backend="openvino"),
    "openvino-bf16": partial(ours, backend="openvino", use_bf16=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS)[:3])
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--request", type=int, help="pairs that are scored at a time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--force", action="store_true", help="bf16 even where it is slower")
    arguments = parser.parse_args()
    if arguments.force:
        precision.cpu_computes_in_bf16 = lambda: True
    examples = ExampleFiles([arguments.data])[: arguments.queries]
    pairs = [(e.query, text) for e in examples for text in (*e.pos, *e.neg)]
    ways = {name: WAYS[name](arguments.model) for name in arguments.ways}
    size = arguments.request or len(pairs)
    seconds = {name: ([], []) for name in ways}
    scores = {}
    for _ in range(arguments.repeats + 1):
        for name, score in ways.items():
            wall, processor = time.perf_counter(), time.process_time()
            scores[name] = [
                each for i in range(0, len(pairs), size) for each in score(pairs[i : i + size])
            ]
            seconds[name][0].append(time.perf_counter() - wall)
            seconds[name][1].append(time.process_time() - processor)
    counts = [len(e.pos) + len(e.neg) for e in examples]
    relevance = [np.array([1] * len(e.pos) + [0] * len(e.neg)) for e in examples]

    def ndcg(name: str) -> np.ndarray:
        parts = np.split(np.array(scores[name]), np.cumsum(counts)[:-1])
        return per_query_metrics(parts, relevance)["ndcg@10"]

    print(json.dumps({"processor": platform.processor(), "threads": torch.get_num_threads(),
                      "pairs": len(pairs), "request": size}))  # fmt: skip
    first = arguments.ways[0]
    for name, (wall, processor) in seconds.items():
        difference = bootstrap_difference(ndcg(name), ndcg(first))
        gap = np.abs(np.subtract(scores[name], scores[first])).max()
        # The first round warms up.
        print(json.dumps({
            "way": name, "seconds": round(statistics.median(wall[1:]), 3),
            "processor seconds": round(statistics.median(processor[1:]), 3),
            "fastest round, pairs/s": round(len(pairs) / min(wall[1:]), 1),
            "pairs a processor second": round(len(pairs) / min(processor[1:]), 1),
            "largest difference": round(float(gap), 4),
            "ndcg@10": round(float(ndcg(name).mean()), 4), "difference": difference.to_dict(),
        }))  # fmt: skip


if __name__ == "__main__":
    main()

"""What ``--bf16`` gains and costs where a cross-encoder is trained on a CPU.

    OMP_NUM_THREADS=1 python benchmarks/bf16_training.py DATA OUT --seeds 3

MiniLM with a fresh head is trained once on covidqa and once on xquad_en, by each seed in fp32 and
in bf16: the same first weights, the same batches in the same order. Then all score 210 queries that
nothing was trained on, in fp32. The table has NDCG@10 of both, query by query and averaged over the
seeds, the difference of bf16 with its 95 % bootstrap interval over queries, and, as a scale for it,
the same of one seed of fp32 from the next. Seconds are the processor's, of the training alone.

On a processor that is slower in bf16, the package stays in fp32; here it computes in bf16
nevertheless, so that the cost can be measured anywhere. OUT keeps the scores, and a run that
is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from itertools import product
from unittest import mock

import numpy as np
from llm_fine_tune import difference
from measure import table
from pairs import LENGTH, base_model, cut, lines, slice_of, write_down
from tqdm import tqdm
from training_path import BATCH, GROUP, ndcg, parse

from reranker_ft import train_reranker
from reranker_ft.model.precision import cpu_computes_in_bf16

CORPORA = {"covidqa": 6e-5, "xquad_en": 8e-5}  # learning rates
TYPES = ("fp32", "bf16")


def main() -> None:
    args = parse(__doc__)
    runs = list(product(CORPORA, range(args.seeds), TYPES))
    found = {run: trained(*run, args) for run in tqdm(runs, desc="runs", unit=" runs")}
    print(f"{platform.processor()}; computes in bf16 by itself: {cpu_computes_in_bf16()}\n")
    report(found, args.seeds)


def trained(corpus: str, seed: int, dtype: str, args: argparse.Namespace) -> dict:
    """``ndcg``: (Q,) of the trained model; ``seconds`` of its training."""
    kept = args.out / f"bf16-{corpus}-{seed}-{dtype}.json"
    if not kept.exists():
        kept.write_text(json.dumps(measured(corpus, seed, dtype, args)))
    return json.loads(kept.read_text())


def measured(corpus: str, seed: int, dtype: str, args: argparse.Namespace) -> dict:
    examples = args.out / f"bf16-{corpus}.jsonl"
    rows = [cut(write_down(row, "")) for row in lines(args.data / corpus / "train.jsonl")]
    examples.parent.mkdir(parents=True, exist_ok=True)
    examples.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    folder = args.out / f"bf16-{corpus}-{seed}-{dtype}"
    started = time.process_time()
    with mock.patch("reranker_ft.train.hardware.cpu_computes_in_bf16", lambda: True):
        train_reranker(
            base_model("encoder-base", args.data, args.out), examples, folder, seed=seed,
            max_length=LENGTH["reranker"], train_group_size=GROUP, learning_rate=CORPORA[corpus],
            per_device_train_batch_size=BATCH, num_train_epochs=1, warmup_ratio=0.1,
            bf16=dtype == "bf16", save_strategy="no", report_to="none", use_cpu=True,
        )  # fmt: skip
    seconds = time.process_time() - started
    tests = [slice_of(args.data, args.out, corpus, use) for use in ("pool", "test")]
    values = ndcg(folder, [row for path in tests for row in lines(path)])
    return {"seconds": seconds, "ndcg": values.tolist()}


def report(found: dict[tuple[str, int, str], dict], seeds: int) -> None:
    rows = [["corpus", "fp32", "bf16", "bf16 - fp32", "fp32, next seed - this", "seconds, fp32",
             "bf16"]]  # fmt: skip
    for corpus in CORPORA:
        each = {
            dtype: np.array([found[corpus, seed, dtype]["ndcg"] for seed in range(seeds)])
            for dtype in TYPES
        }
        seconds = [
            np.median([found[corpus, seed, dtype]["seconds"] for seed in range(seeds)])
            for dtype in TYPES
        ]
        means = {dtype: values.mean(axis=0) for dtype, values in each.items()}
        others = [
            difference(each["fp32"][(seed + 1) % seeds], each["fp32"][seed])
            for seed in range(seeds)
        ]
        rows.append(
            [corpus, *(f"{means[dtype].mean():.3f}" for dtype in TYPES),
             difference(means["bf16"], means["fp32"]), ", ".join(others),
             *(f"{value:.0f}" for value in seconds)]
        )  # fmt: skip
    print(table(rows))


if __name__ == "__main__":
    main()

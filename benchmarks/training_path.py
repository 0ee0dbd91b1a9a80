"""Averaging along the training path, beside taking the best checkpoint.

    python benchmarks/training_path.py DATA OUT [--seeds 3]

The reranker of pairs.py is trained further on covidqa with six checkpoints kept: on 600 queries
once, and on 40 queries for 12 epochs, which is too much. Each run's models are compared on 75 test
queries of covidqa and on 75 of xquad_en:

    last                 the end of the training
    best checkpoint      of the six, by NDCG@10 of 60 held-out queries
    average              of the six, equally
    average with base    of the six and the base
    search, last         `cocktail search base last`, on 20 of the held-out queries and 40 general
    search, path         `cocktail search base checkpoint-*`, the same
    search, to the best  the same on the way to the best checkpoint, not to the bagged best

OUT keeps everything, and a model that is there is not made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from unittest import mock

import numpy as np
from llm_fine_tune import difference, graded
from measure import table
from pairs import LENGTH, R, base_model, cut, lines, slice_of, write_down
from tqdm import tqdm

from cocktail import mix_models, search_weights
from cocktail.search.direction import bagged_best
from reranker_ft import Reranker, train_reranker
from reranker_ft.evaluate.metrics import bootstrap_mean

CHECKPOINTS = 6
TESTS = 75
LIMIT = {"max_length": LENGTH["reranker"]}
RUNS = {  # queries, epochs, learning rate
    "600 queries once": (600, 1, 6e-5),
    "40 queries 12 times": (40, 12, 2e-4),
}
BATCH, GROUP = 8, 4


def main() -> None:
    args = parse(__doc__)
    base = base_model(R, args.data, args.out)
    tests = {
        "target": lines(slice_of(args.data, args.out, "covidqa", "test"))[:TESTS],
        "general": lines(slice_of(args.data, args.out, "xquad_en", "test"))[:TESTS],
    }
    of_base = {side: ndcg(base, rows) for side, rows in tests.items()}
    runs = [(name, seed) for name in RUNS for seed in range(args.seeds)]
    found: dict[tuple[str, str], list[dict[str, np.ndarray]]] = {}
    for name, seed in tqdm(runs, desc="runs", unit=" runs"):
        for model, folder in models(name, seed, base, args).items():
            measured = {side: ndcg(folder, rows) for side, rows in tests.items()}
            found.setdefault((name, model), []).append(measured)
    report(of_base, found)


def parse(text: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    return parser.parse_args()


def models(name: str, seed: int, base: Path, args: argparse.Namespace) -> dict[str, Path]:
    """The models of one run, by what they are called in the table."""
    run = args.out / f"path-{name.replace(' ', '-')}-{seed}"
    path = train(run, name, seed, base, args.data)
    held_out = slice_of(args.data, args.out, "covidqa", "pool")
    scores = [ndcg(folder, lines(held_out)).mean() for folder in path]
    searched = {
        "search, last": [base, path[-1]],
        "search, path": [base, *path],
        "search, to the best": [base, *path],
    }
    ends = {"search, to the best": best_end}
    averaged = {"average": path, "average with base": [base, *path]}
    weights = {model: np.full(len(each), 1 / len(each)) for model, each in averaged.items()}
    for model, each in searched.items():
        if not (run / model).exists():
            general = slice_of(args.data, args.out, "xquad_en", "pool")
            with mock.patch("cocktail.search.search.bagged_best", ends.get(model, bagged_best)):
                result = search_weights(
                    each, "reranker", lines(held_out)[:20], retain_data=lines(general)[:40],
                    max_input_length=LIMIT["max_length"], progress=False,
                )  # fmt: skip
            weights[model] = np.array(result.weights)
    for model, each in {**averaged, **searched}.items():
        if not (run / model).exists():
            mix_models(list(map(str, each)), "reranker", weights[model].tolist(), str(run / model))
    best = path[int(np.argmax(scores))]
    return {
        "last": path[-1],
        "best checkpoint": best,
        **{model: run / model for model in [*averaged, *searched]},
    }


def best_end(losses: np.ndarray, weights: np.ndarray, *, seed: int) -> np.ndarray:
    return weights[losses.mean(axis=0).argmin()]


def train(run: Path, name: str, seed: int, base: Path, data: Path) -> list[Path]:
    """The run's checkpoints, the oldest first."""
    queries, epochs, rate = RUNS[name]
    steps = queries // BATCH * epochs
    if not (run / "tuned").exists():
        run.mkdir(parents=True, exist_ok=True)
        rows = lines(data / "covidqa/train.jsonl")[:queries]
        text = "".join(json.dumps(cut(write_down(row, ""))) + "\n" for row in rows)
        (run / "train.jsonl").write_text(text, encoding="utf-8")
        train_reranker(
            base, run / "train.jsonl", run / "tuned", max_length=LIMIT["max_length"], seed=seed,
            train_group_size=GROUP, per_device_train_batch_size=BATCH, learning_rate=rate,
            num_train_epochs=epochs, warmup_ratio=0.1, save_strategy="steps",
            save_steps=steps // CHECKPOINTS, save_total_limit=CHECKPOINTS + 1,
            dataloader_drop_last=True, report_to="none",
        )  # fmt: skip
    found = sorted(
        (run / "tuned").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])
    )
    return found[-CHECKPOINTS:]


def ndcg(folder: Path, rows: list[dict]) -> np.ndarray:
    """(Q,) NDCG@10 of a model's order of each query's passages."""
    pairs = [(row["query"], text) for row in rows for text in [*row["pos"], *row["neg"]]]
    return graded(np.array(Reranker(str(folder), **LIMIT).compute_score(pairs)), rows)


def report(
    of_base: dict[str, np.ndarray], found: dict[tuple[str, str], list[dict[str, np.ndarray]]]
) -> None:
    """Means over the seeds, query by query, beside the base and the best checkpoint."""
    rows = [["run", "model", "target", "- base", "- best checkpoint", "general", "- base"]]
    start = {side: f"{bootstrap_mean(values).mean:.3f}" for side, values in of_base.items()}
    rows.append(["", "base", start["target"], "", "", start["general"], ""])
    means = {
        key: {side: np.mean([each[side] for each in runs], axis=0) for side in of_base}
        for key, runs in found.items()
    }
    for (run, model), sides in means.items():
        best = means[run, "best checkpoint"]
        beside = "" if model == "best checkpoint" else difference(sides["target"], best["target"])
        target, general = sides["target"], sides["general"]
        rows.append(
            [run, model, f"{target.mean():.3f}", difference(target, of_base["target"]), beside,
             f"{general.mean():.3f}", difference(general, of_base["general"])]
        )  # fmt: skip
    path, to_the_best = (
        {
            side: np.mean([means[run, f"search, {way}"][side] for run in RUNS], axis=0)
            for side in start
        }
        for way in ("path", "to the best")
    )
    each = ", ".join(f"{side} {difference(path[side], to_the_best[side])}" for side in path)
    print(f"{table(rows)}\n\nsearch, path less search, to the best, over the runs: {each}")


if __name__ == "__main__":
    main()

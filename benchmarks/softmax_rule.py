"""LM-Cocktail's own rule, weights from the losses of single models: ours beside LM_Cocktail 0.0.4.

    python benchmarks/peers.py lm_cocktail
    python benchmarks/softmax_rule.py --encoders FOLDER FOLDER --decoders FOLDER FOLDER \
        --encoder-examples JSONL --decoder-examples JSONL --repeats 3    # or one kind alone

Both sides call `mix_models_with_data` with its defaults in a process of their own, get the mixed
model and write nothing: 10 examples for the encoders, 5 for the decoders, models in fp32. Rounds
are interleaved, medians are printed. Each process imports transformers' model class and its side
first, which no rule can do without: what the call takes by itself, in time and in memory on top of
that, is given beside the whole. Encoders are pooled by `cls`, which is all that the peer knows, and
every example has exactly the 7 negatives that both use.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import measure
import peers
import torch
from transformers import AutoModel, AutoModelForCausalLM

WORK = Path(__file__).parent / ".work"
NEGATIVES = 7
EXAMPLES = {"encoder": 10, "decoder": 5}
CLASSES = {"encoder": AutoModel, "decoder": AutoModelForCausalLM}
SIDES = {"ours": None, "LM_Cocktail": "lm_cocktail"}
# What both sides need of transformers is imported before the call is timed.
BEFORE = """
import importlib, json, logging, sys, time
kind, data, *models = sys.argv[1:]
importlib.import_module({"encoder": "transformers.models.bert.modeling_bert",
                         "decoder": "transformers.models.llama.modeling_llama"}[kind])
def resident():
    status = open("/proc/self/status").read()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024
"""
# The weights are caught where each side has them in full precision.
OURS = """
from cocktail import mix_models_with_data
examples = [json.loads(line) for line in open(data)]
found = []
logger = logging.getLogger("cocktail.search.run")
logger.setLevel(logging.INFO)
logger.addFilter(lambda record: found.append(list(record.args.values())))
options = {"pooling": "cls"} if kind == "encoder" else {}
print("RESIDENT", resident())
started = time.perf_counter()
mix_models_with_data(models, kind, examples, progress=False, **options)
print("SECONDS", time.perf_counter() - started)
print("WEIGHTS", json.dumps(found[-1]))
"""
PEER = """
from LM_Cocktail import cocktail
examples = [json.loads(line) for line in open(data)]
rule = cocktail.compute_weights
def caught(*args, **kwargs):
    found = rule(*args, **kwargs)
    print("WEIGHTS", json.dumps(found))
    return found
cocktail.compute_weights = caught
print("RESIDENT", resident())
started = time.perf_counter()
cocktail.mix_models_with_data(models, kind, examples)
print("SECONDS", time.perf_counter() - started)
"""
SCRIPTS = {"ours": BEFORE + OURS, "LM_Cocktail": BEFORE + PEER}


def main() -> None:
    args = parse()
    print(json.dumps(measure.machine()))
    WORK.mkdir(exist_ok=True)
    rows = [
        [
            "kind",
            "side",
            "process",
            "call",
            "anonymous memory",
            "all resident memory",
            "of the call",
            "weights",
        ],
    ]
    runs: dict[str, dict[str, list[measure.Usage]]] = {}
    for kind in EXAMPLES:
        folders = getattr(args, f"{kind}s")
        if not folders:
            continue
        models = [fp32_copy(kind, folder) for folder in folders]
        data = short_file(kind, getattr(args, f"{kind}_examples"))
        runs[kind] = {side: [] for side in SIDES}

        def once(side: str, kind=kind, data=data, models=models) -> float:
            interpreter = peers.python(SIDES[side]) if SIDES[side] else sys.executable
            command = [interpreter, "-c", SCRIPTS[side], kind, str(data), *models]
            runs[kind][side].append(measure.run(command))
            return runs[kind][side][-1].seconds

        measure.interleave({side: lambda side=side: once(side) for side in SIDES}, args.repeats)
        for side, usages in runs[kind].items():
            median = measure.medians(usages)
            own = statistics.median(usage.total - printed(usage, "RESIDENT") for usage in usages)
            rows.append([
                kind, side, f"{median['seconds']:.1f} s",
                f"{statistics.median(printed(usage, 'SECONDS') for usage in usages):.1f} s",
                f"{median['anonymous'] / 1e6:.0f} MB", f"{median['total'] / 1e6:.0f} MB",
                f"{own / 1e6:.0f} MB",
                " ".join(f"{weight:.4f}" for weight in printed(usages[-1], "WEIGHTS")),
            ])  # fmt: skip
    print(measure.table(rows))
    if args.json:
        args.json.write_text(json.dumps(
            {kind: {side: [vars(u) for u in us] for side, us in sides.items()}
             for kind, sides in runs.items()}, indent=2,
        ))  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for kind in EXAMPLES:
        parser.add_argument(f"--{kind}s", type=Path, nargs="+", default=[])
        parser.add_argument(f"--{kind}-examples", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write every run here")
    args = parser.parse_args()
    given = {kind: getattr(args, f"{kind}s") for kind in EXAMPLES}
    if not any(given.values()):
        parser.error("no models - a kind is measured on its own - pass --encoders or --decoders")
    for kind, folders in given.items():
        if folders and getattr(args, f"{kind}_examples") is None:
            parser.error(f"--{kind}s without examples - pass --{kind}-examples")
    return args


def fp32_copy(kind: str, folder: Path) -> str:
    """The model in fp32: the peer asks for no dtype and gets what is stored."""
    copy = WORK / f"softmax-{kind}-{folder.name}"
    if not copy.exists():
        shutil.copytree(folder, copy)
        CLASSES[kind].from_pretrained(folder, dtype=torch.float32).save_pretrained(copy)
    return str(copy)


def short_file(kind: str, source: Path) -> Path:
    """The first examples, with as many negatives as both sides use."""
    lines = source.read_text(encoding="utf-8").split("\n")[: EXAMPLES[kind]]
    examples = [json.loads(line) for line in lines]
    for example in examples:
        if "neg" in example:
            example["neg"] = example["neg"][:NEGATIVES]
    path = WORK / f"softmax-{kind}.jsonl"
    path.write_text("".join(json.dumps(example) + "\n" for example in examples), encoding="utf-8")
    return path


def printed(usage: measure.Usage, name: str) -> Any:
    """The value that the process printed after `name`."""
    line = next(line for line in usage.stdout.splitlines() if line.startswith(name))
    return json.loads(line.removeprefix(name))


if __name__ == "__main__":
    main()

"""Mixing, side by side: ours, mergekit, LM_Cocktail and the plain copy of the same bytes.

    python benchmarks/peers.py mergekit lm_cocktail
    python benchmarks/mix.py --ingredients 2 --repeats 3

Everything is a process of its own, started anew for each run; rounds are interleaved, medians are
printed. Before each run what earlier runs wrote is flushed to disk, the page cache is made warm by
reading the inputs, and the free memory is touched once: a virtual machine gives back to its host
what a run has freed, and the next one would wait for it. Nobody syncs the output, except the row
that says so.
"""

from __future__ import annotations

import argparse
import functools
import json
import mmap
import os
import shutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import checkpoints
import measure
import peers
import torch
from safetensors import safe_open

WORK = checkpoints.WORK
WARM_BLOCK = 1 << 24
SPARED = 2 << 30  # of the free memory

IN_PYTHON = """
import sys
from cocktail import mix_models
_, output, *models = sys.argv
mix_models(models, "decoder", [1 / len(models)] * len(models), output, sync=False, progress=False)
"""
LM_COCKTAIL = """
import sys
import LM_Cocktail
_, function, output, *models = sys.argv
weights = [1 / len(models)] * len(models)
getattr(LM_Cocktail, function)(models, "decoder", weights, output)
"""


@dataclass
class Contestant:
    """One way to do the job, and what its runs took."""

    name: str
    command: Callable[[list[Path], Path], list[str]]
    # Copies of one model in anonymous memory, by number of ingredients: whoever holds every state
    # dict is left out where that cannot fit, instead of taking the machine down.
    models_in_memory: Callable[[int], int] = lambda ingredients: 2
    usages: list[measure.Usage] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)  # seconds without the start of the process
    agreement: str = ""


def ours(inputs: list[Path], output: Path, *, sync: bool) -> list[str]:
    weights = [str(1 / len(inputs))] * len(inputs)
    command = [sys.executable, "-m", "cocktail", "mix", *map(str, inputs), "--weights", *weights]
    command += ["--model-type", "decoder", "--output", str(output), "--quiet", "--json"]
    return command if sync else [*command, "--no-sync"]


def ours_in_python(inputs: list[Path], output: Path) -> list[str]:
    return [sys.executable, "-c", IN_PYTHON, str(output), *map(str, inputs)]


def plain_copy(inputs: list[Path], output: Path, *, threads: int) -> list[str]:
    script = Path(__file__).with_name("plain_copy.py")
    command = [sys.executable, str(script), *map(str, inputs), "--output", str(output)]
    return [*command, "--threads", str(threads)]


def mergekit(inputs: list[Path], output: Path, *, flags: tuple[str, ...] = ()) -> list[str]:
    # YAML is a superset of JSON.
    weight = {"weight": 1 / len(inputs)}
    models = [{"model": str(folder), "parameters": weight} for folder in inputs]
    recipe = {"models": models, "merge_method": "linear", "dtype": "bfloat16"}
    path = WORK / "mergekit.yml"
    path.write_text(json.dumps(recipe))
    command = peers.script("mergekit", "mergekit-yaml")
    return [command, str(path), str(output), "--copy-tokenizer", "--lazy-unpickle", *flags]


def lm_cocktail(inputs: list[Path], output: Path, *, function: str) -> list[str]:
    python = peers.python("lm_cocktail")
    return [python, "-c", LM_COCKTAIL, function, str(output), *map(str, inputs)]


def contestants(skip: list[str]) -> list[Contestant]:
    # mergekit's fastest flags found here: shards of 500M parameters, written by a second thread.
    tuned = ("--async-write", "--out-shard-size", "500M")
    every = [
        Contestant("ours", functools.partial(ours, sync=False)),
        Contestant("ours, synced", functools.partial(ours, sync=True)),
        Contestant("ours, in Python", ours_in_python),
        Contestant("plain copy", functools.partial(plain_copy, threads=1)),
        Contestant("plain copy, threads", functools.partial(plain_copy, threads=2)),
        Contestant("mergekit", mergekit),
        Contestant("mergekit, tuned", functools.partial(mergekit, flags=tuned)),
        Contestant(
            "mix_models",
            functools.partial(lm_cocktail, function="mix_models"),
            models_in_memory=lambda ingredients: ingredients + 2,
        ),
        Contestant(
            "mix_models_by_layers",
            functools.partial(lm_cocktail, function="mix_models_by_layers"),
        ),
    ]
    return [one for one in every if one.name not in skip]


def run_once(one: Contestant, inputs: list[Path]) -> float:
    output = WORK / f"mixed-{one.name.replace(', ', '-').replace(' ', '-')}"
    shutil.rmtree(output, ignore_errors=True)
    os.sync()
    warm_page_cache(inputs)
    touch_free_memory()
    usage = measure.run(one.command(inputs, output))
    one.usages.append(usage)
    if one.name.startswith("plain copy"):
        one.alone.append(json.loads(usage.stdout)["seconds"])
    elif one.name in ("ours", "ours, synced"):
        one.alone.append(json.loads(usage.stdout)["seconds"]["mix"])
    if one.name != "ours":
        if not one.agreement and not one.name.startswith("plain copy"):
            one.agreement = agreement(WORK / "mixed-ours", output)
        shutil.rmtree(output)
    return usage.seconds


def warm_page_cache(folders: list[Path]) -> None:
    buffer = bytearray(WARM_BLOCK)
    for folder in folders:
        for shard in sorted(folder.glob("*.safetensors")):
            with shard.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def touch_free_memory() -> None:
    """Have the system find pages, as many as are free without giving up cached ones."""
    size = max(memory("MemFree") - SPARED, mmap.PAGESIZE)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, size, flags=flags).close()


def agreement(expected: Path, found: Path) -> str:
    """Say how two checkpoints differ, tensor by tensor."""
    if not expected.exists():
        return "not compared: our own run was skipped"
    here, there = tensor_files(expected), tensor_files(found)
    if here.keys() != there.keys():
        return f"names differ: {len(here.keys() ^ there.keys())} on one side only"
    equal, largest = 0, 0.0
    for name, file in here.items():
        a, b = read_tensor(file, name), read_tensor(there[name], name)
        if a.dtype == b.dtype and torch.equal(a, b):
            equal += 1
        else:
            largest = max(largest, (a.float() - b.float()).abs().max().item())
    if equal == len(here):
        return f"all {equal} tensors equal, bit for bit"
    return f"{equal} of {len(here)} tensors equal, largest difference {largest:.3g}"


def tensor_files(folder: Path) -> dict[str, Path]:
    files = {}
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, "pt") as opened:
            files |= dict.fromkeys(opened.keys(), shard)
    return files


def read_tensor(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, "pt") as opened:
        return opened.get_tensor(name)


def compare(size: str, ingredients: int, repeats: int, skip: list[str]) -> dict[str, object]:
    inputs = checkpoints.make(size, ingredients)
    model_bytes = checkpoints.SIZES[size].parameters() * checkpoints.BF16_BYTES
    available, machine = memory("MemAvailable"), measure.machine()
    taking_part = []
    for one in contestants(skip):
        needed = one.models_in_memory(ingredients) * model_bytes
        if needed < 0.9 * available or one.name.startswith(("ours", "plain")):
            taking_part.append(one)
        else:
            print(f"{one.name}: left out, needs {needed / 1e9:.0f} GB of {available / 1e9:.0f} GB")
    print(
        f"\n{ingredients} ingredients of {model_bytes / 1e9:.2f} GB; {machine['cores']} cores, "
        f"load {machine['load_at_start']:.1f}; "
        f"page cache warm as far as {available / 1e9:.0f} GB allow"
    )
    rounds = {one.name: functools.partial(run_once, one, inputs) for one in taking_part}
    measure.interleave(rounds, repeats)
    shutil.rmtree(WORK / "mixed-ours", ignore_errors=True)
    results = {one.name: measure.medians(one.usages) for one in taking_part}
    print("\n" + measure.table(rows(taking_part, results)) + "\n")
    print(mixing_beside_copying(taking_part))
    return {
        "machine": machine,
        "size": size,
        "ingredients": ingredients,
        "bytes_of_one_model": model_bytes,
        "medians": results,
        "alone_seconds": {one.name: one.alone for one in taking_part if one.alone},
        "agreement_with_ours": {one.name: one.agreement for one in taking_part if one.agreement},
        "runs": {one.name: [asdict(usage) for usage in one.usages] for one in taking_part},
    }


def memory(kind: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def mixing_beside_copying(taking_part: list[Contestant]) -> str:
    """The engine against the floor: the faster of the two copies."""
    alone = {one.name: statistics.median(one.alone) for one in taking_part if one.alone}
    copies = [seconds for name, seconds in alone.items() if name.startswith("plain copy")]
    if "ours" not in alone or not copies:
        return ""
    mixing, copying = alone["ours"], min(copies)
    return f"mixing alone {mixing:.2f} s, copying alone {copying:.2f} s: {mixing / copying:.2f}x\n"


def rows(taking_part: list[Contestant], results: dict[str, dict[str, float]]) -> list[list[str]]:
    header = (
        "process,wall s,to ours,CPU s,alone s,anonymous MB,mapped file MB,peak of both MB,output"
    )
    table = [header.split(",")]
    for one in taking_part:
        took = results[one.name]
        ratio = f"{took['seconds'] / results['ours']['seconds']:.2f}x" if "ours" in results else ""
        alone = f"{statistics.median(one.alone):.2f}" if one.alone else ""
        memory = [f"{took[kind] / measure.MB:,.0f}" for kind in ("anonymous", "file", "total")]
        seconds = [f"{took['seconds']:.2f}", ratio, f"{took['cpu_seconds']:.2f}", alone]
        table.append([one.name, *seconds, *memory, one.agreement])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=checkpoints.SIZES, default="1.2b")
    parser.add_argument("--ingredients", type=int, nargs="+", default=[2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip", nargs="+", default=[], choices=[c.name for c in contestants([])])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run to FILE")
    options = parser.parse_args()
    report = [
        compare(options.size, ingredients, options.repeats, options.skip)
        for ingredients in options.ingredients
    ]
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

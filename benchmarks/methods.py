"""Merge methods, side by side: ours and mergekit's, whole processes on the same recipe.

    python benchmarks/peers.py mergekit
    python benchmarks/methods.py --models 2 --repeats 2                     # every method
    python benchmarks/methods.py --models 2 --methods ties dare_ties        # some
    python benchmarks/methods.py --size 4000-tensors --methods ties

Both read the same YAML; mergekit runs as its documentation starts it. Methods that take fewer
models than are given get fewer. The last column is the bound (K + 3) times the largest tensor in
fp32, with the runtime's own memory on top.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import checkpoints
import measure
import peers
from mix import WORK, warm_page_cache

from cocktail.measure.memory import RUNTIME_BYTES
from cocktail.methods.method import Method
from cocktail.methods.registry import METHODS

# fisher and regmean run models on examples first, which is another question.
COMPARED = [name for name, method in METHODS.items() if method.statistic is None]
# What mergekit does not have.
OURS_ALONE = ("iso_c", "tsv_m", "consensus")
DENSITY = 0.5
SETTINGS = {"t": 0.4, "density": DENSITY, "gamma": 0.01, "epsilon": 0.1, "select_topk": DENSITY}


def recipe(method: Method, folders: list[Path]) -> tuple[dict[str, object], list[Path]]:
    """mergekit's YAML for a method, and the checkpoints that it reads, the base last."""
    base, models = folders[0], folders[1:]
    models = models[: method.models[1]]
    known = {option.name for option in method.options}
    values: dict[str, object] = {
        "merge_method": method.name,
        "models": [
            {"model": str(model), "parameters": {"weight": 1.0}}
            if method.weighted
            else {"model": str(model)}
            for model in models
        ],
        "parameters": {name: value for name, value in SETTINGS.items() if name in known},
        "dtype": "bfloat16",
    }
    if method.base == "required":
        values["base_model"] = str(base)
        models = [*models, base]
    return values, models


def commands(values: dict[str, object], name: str) -> dict[str, list[str]]:
    """The command of each side; YAML is a superset of JSON."""
    path = WORK / f"{name}.yaml"
    path.write_text(json.dumps(values))
    ours = [sys.executable, "-m", "cocktail", "mix", str(path), "--model-type", "decoder",
            "--quiet", "--json", "--no-sync", "--output", str(WORK / "merged-ours")]  # fmt: skip
    if name in OURS_ALONE:
        return {"ours": ours}
    theirs = [peers.script("mergekit", "mergekit-yaml"), str(path), str(WORK / "merged-mergekit")]
    return {"ours": ours, "mergekit": [*theirs, "--copy-tokenizer", "--lazy-unpickle"]}


def run_once(command: list[str], inputs: list[Path], usages: list[measure.Usage]) -> float:
    for side in ("ours", "mergekit"):
        shutil.rmtree(WORK / f"merged-{side}", ignore_errors=True)
    os.sync()
    warm_page_cache(inputs)
    usages.append(measure.run(command))
    return usages[-1].seconds


def compare(name: str, folders: list[Path], size: str, repeats: int) -> dict[str, object]:
    values, inputs = recipe(METHODS[name], folders)
    usages: dict[str, list[measure.Usage]] = {side: [] for side in commands(values, name)}
    rounds = {
        f"{name} {side}": functools.partial(run_once, command, inputs, usages[side])
        for side, command in commands(values, name).items()
    }
    measure.interleave(rounds, repeats)
    largest = max(math.prod(shape) for shape in checkpoints.SIZES[size].tensors().values())
    return {
        "method": name,
        "checkpoints": len(inputs),
        "bound": (len(inputs) + 2) * largest * 4 + RUNTIME_BYTES,
        "medians": {side: measure.medians(runs) for side, runs in usages.items()},
        "runs": {side: [asdict(run) for run in runs] for side, runs in usages.items()},
    }


def row(result: dict) -> list[str]:
    ours, theirs = result["medians"]["ours"], result["medians"].get("mergekit")
    cells = [result["method"], str(result["checkpoints"]), f"{ours['seconds']:.1f}"]
    cells += (
        [f"{theirs['seconds']:.1f}", f"{theirs['seconds'] / ours['seconds']:.1f}x"]
        if theirs
        else ["", ""]
    )
    cells.append(f"{ours['anonymous'] / measure.MB:,.0f}")
    cells.append(f"{theirs['anonymous'] / measure.MB:,.0f}" if theirs else "")
    return [*cells, f"{result['bound'] / measure.MB:,.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=checkpoints.SIZES, default="1.2b")
    parser.add_argument("--models", type=int, default=2, help="besides the base")
    parser.add_argument("--methods", nargs="+", default=COMPARED, choices=COMPARED)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run to FILE")
    options = parser.parse_args()
    folders = checkpoints.make(options.size, options.models + 1)
    results = [compare(name, folders, options.size, options.repeats) for name in options.methods]
    header = [
        "method",
        "checkpoints",
        "ours s",
        "mergekit s",
        "ratio",
        "ours MB",
        "mergekit MB",
        "bound MB",
    ]
    print("\n" + measure.table([header, *map(row, results)]) + "\n")
    if options.json:
        machine = measure.machine()
        options.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    main()

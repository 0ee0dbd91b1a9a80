"""What a search takes: forward equivalents, wall time and memory of every strategy.

    python benchmarks/search_cost.py --models BASE FOLDER ... --model-type decoder \
        --data JSONL --examples 10 --repeats 3

Each is one `cocktail search` in a process of its own, by default on the first 10 examples. Rounds
are interleaved, medians are printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import measure

WORK = Path(__file__).parent / ".work"
STRATEGIES = ("lm-cocktail", "gradient", "auto")


def main() -> None:
    args = parse()
    print(json.dumps(measure.machine()))
    WORK.mkdir(exist_ok=True)
    lines = args.data.read_text(encoding="utf-8").split("\n")[: args.examples]
    data = WORK / "search-cost.jsonl"
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [
        sys.executable, "-m", "cocktail", "search", *args.models, "--model-type", args.model_type,
        "--data", str(data), "--max-input-length", str(args.max_input_length), "--json",
    ]  # fmt: skip
    if args.neg_number is not None:
        command += ["--neg-number", str(args.neg_number)]
    runs: dict[str, list[measure.Usage]] = {strategy: [] for strategy in args.strategies}

    def once(strategy: str) -> float:
        runs[strategy].append(measure.run([*command, "--strategy", strategy]))
        return runs[strategy][-1].seconds

    measure.interleave({name: lambda name=name: once(name) for name in runs}, args.repeats)
    rows = [
        ["strategy", "forward equivalents", "wall time", "anonymous memory", "all resident memory"]
    ]
    for strategy, usages in runs.items():
        median = measure.medians(usages)
        rows.append([
            strategy, f"{json.loads(usages[-1].stdout)['cost']['forward_equivalents']:.1f}",
            f"{median['seconds']:.1f} s", f"{median['anonymous'] / 1e6:.0f} MB",
            f"{median['total'] / 1e6:.0f} MB",
        ])  # fmt: skip
    print(measure.table(rows))
    if args.json:
        found = {strategy: [vars(usage) for usage in usages] for strategy, usages in runs.items()}
        args.json.write_text(json.dumps(found, indent=2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", required=True, help="the base first")
    parser.add_argument("--model-type", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=10, help="the first of the file")
    parser.add_argument("--neg-number", type=int)
    parser.add_argument("--max-input-length", type=int, default=256)
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write every run here")
    return parser.parse_args()


if __name__ == "__main__":
    main()

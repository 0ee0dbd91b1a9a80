"""What searched weights are worth on held-out queries, against the trivial choices.

    python benchmarks/search.py --models BASE FINE_TUNE NOISE... --examples DATA/covidqa/dev.jsonl \
        --test DATA/covidqa/test.jsonl                        # n = 5, 10, 20, 50, ten draws each
    python benchmarks/search.py ... --quick                   # n = 10, three draws, 30 test queries
    python benchmarks/search.py ... --shuffle                 # control: the labels are random

Each draw takes n random examples, searches once with `auto`, and measures on the test queries every
weights that this search considered: base, best single, uniform, LM-Cocktail at T = 5, the prior
(its rule at the temperature of the noise), ensemble, gradient, and what auto chose; beside them
LM-Cocktail at the temperature that is best on the test queries themselves, the same for all draws
("one T") and for each ("oracle T"). The first model is the base.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from cocktail.search.strategies import softmax_of_losses
from measure import table

from cocktail.checkpoint.kinds import kind_named
from cocktail.measure.bench import prepare, search_plan
from cocktail.measure.mixture import Mixture
from cocktail.search.objective import measure
from cocktail.search.options import SearchOptions
from cocktail.search.result import SearchResult
from cocktail.search.run import search_weights
from cocktail.search.verdict import paired_interval

TEMPERATURES = (0.05, 0.2, 0.5, 1.0, 5.0)
COLUMNS = (
    "base", "best-single", "uniform", "lm-cocktail", "one T", "oracle T", "prior", "ensemble",
    "gradient", "auto",
)  # fmt: skip
QUICK = {"sizes": [10], "draws": 3, "test_queries": 30, "temperatures": (0.2, 1.0)}


class Test:
    """Loss and metric on held-out examples; each set of weights is run once."""

    def __init__(self, args: argparse.Namespace, rows: Sequence[dict]) -> None:
        self.options = SearchOptions(
            neg_number=args.neg_number, max_input_length=args.max_input_length
        )
        self.bench = prepare(search_plan(args.models, args.model_type), rows, None, self.options)
        self.digits = args.digits
        self.known: dict[bytes, tuple[float, float]] = {}

    def __call__(self, weights: Sequence[float]) -> tuple[float, float]:
        """Mean loss and mean metric (NaN where the kind has none)."""
        point = np.round(np.array(weights), self.digits)
        point /= point.sum()
        if point.tobytes() not in self.known:
            mixture: Mixture = self.bench.mixture
            rows = mixture.rows(self.bench.task, point)
            found = measure(self.bench.task, [(rows, range(len(self.bench.order)))])
            metric = np.nan if found.metrics is None else float(found.metrics.mean())
            self.known[point.tobytes()] = (found.loss, metric)
        return self.known[point.tobytes()]


def main() -> None:
    args = parse()
    pool = read(args.examples)
    test = Test(args, read(args.test)[: args.test_queries])
    draws: dict[int, list[dict]] = defaultdict(list)
    for size in args.sizes:
        for draw in range(args.draws):
            rows = random.Random(1000 * size + draw).sample(pool, size)
            if args.shuffle:
                rows = shuffled(rows, draw)
            result = search_weights(
                args.models, args.model_type, rows, neg_number=args.neg_number,
                max_input_length=args.max_input_length, progress=False, seed=draw,
            )  # fmt: skip
            draws[size].append(measured(result, test, args.temperatures))
            print(f"n={size} draw {draw}: {summary(result)}", flush=True)
    report(draws, args)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", required=True, help="the base first")
    parser.add_argument("--model-type", default=None)
    parser.add_argument("--examples", type=Path, required=True, help="to draw from")
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--test-queries", type=int, default=200)
    parser.add_argument("--neg-number", type=int, default=7)
    parser.add_argument("--max-input-length", type=int, default=256)
    parser.add_argument(
        "--digits", type=int, default=4, help="of weights that are tested; fewer are run once"
    )
    parser.add_argument("--shuffle", action="store_true", help="random labels in the examples")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, help="also write everything here")
    args = parser.parse_args()
    args.temperatures = TEMPERATURES
    for name, value in QUICK.items() if args.quick else ():
        setattr(args, name, value)
    if args.model_type is not None and not kind_named(args.model_type).ranks:
        args.neg_number = None
    return args


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def shuffled(rows: list[dict], seed: int) -> list[dict]:
    """The same passages with a random one for the positive; the same outputs for other inputs."""
    draw = random.Random(seed)
    if "output" in rows[0]:
        outputs = draw.sample([row["output"] for row in rows], len(rows))
        return [{**row, "output": output} for row, output in zip(rows, outputs, strict=True)]
    dealt = []
    for row in rows:
        texts = [row["pos"][0], *row["neg"]]
        draw.shuffle(texts)
        dealt.append({**row, "pos": texts[:1], "neg": texts[1:]})
    return dealt


def measured(result: SearchResult, test: Test, temperatures: Sequence[float]) -> dict:
    """By column: weights, test loss, test metric, optimism; and what the search took."""
    singles = [single.measured.loss for single in result.singles]
    at = {t: tuple(softmax_of_losses(singles, t)) for t in temperatures}
    weights = {c.name: c.weights for c in result.candidates}
    weights |= {"auto": result.weights, "oracle T": min(at.values(), key=lambda w: test(w)[0])}
    weights |= {f"T = {t}": found for t, found in at.items()}
    in_sample = {c.name: c.measured.loss for c in result.candidates}
    in_sample["auto"] = result.chosen.measured.loss
    columns = {}
    for name, each in weights.items():
        loss, metric = test(each)
        optimism = loss - in_sample[name] if name in in_sample else float("nan")
        columns[name] = {"weights": list(map(float, each)), "loss": loss,
                         "metric": metric, "optimism": optimism}  # fmt: skip
    return {
        "columns": columns,
        "abstained": result.verdict.abstained,
        "chosen": result.verdict.chosen,
        "forwards": result.forwards,
        "seconds": result.seconds,
    }


def summary(result: SearchResult) -> str:
    weights = " ".join(f"{weight:.2f}" for weight in result.weights)
    return f"{result.verdict.chosen} {weights}, {result.forwards:.0f} forwards"


def report(draws: dict[int, list[dict]], args: argparse.Namespace) -> None:
    """One table for each n, and the search's cost."""
    for size, found in draws.items():
        temperature = choose_one_temperature(found, args.temperatures)
        print(f"\n### n = {size}, {len(found)} draws, {args.test_queries} test examples\n")
        measures = ["loss"]
        if not np.isnan(found[0]["columns"]["base"]["metric"]):
            measures.append("metric")
        head = ["choice", "mean weights", "optimism"]
        for each in measures:
            head += [f"test {each}", f"{each} against LM-Cocktail", "win/tie/loss"]
        print(table([head, *(row_of(name, found, measures) for name in COLUMNS)]))
        seconds = np.mean([draw["seconds"] for draw in found])
        forwards = np.mean([draw["forwards"] for draw in found])
        chosen = Counter(draw["chosen"] for draw in found)
        behind, _ = against("auto", "oracle T", found, "loss")
        behind_one, _ = against("auto", "one T", found, "loss")
        print(
            f"\nauto: {forwards:.1f} forward equivalents, {seconds:.0f} s a search; chose "
            f"{', '.join(f'{name} {count} times' for name, count in chosen.most_common())}; "
            f"test loss against the oracle T: {behind}, against T = {temperature}: {behind_one}"
        )
    print(f"\nModels: {', '.join(args.models)}")
    if args.json:
        args.json.write_text(json.dumps(draws, indent=2))


def choose_one_temperature(found: list[dict], temperatures: Sequence[float]) -> float:
    """The temperature with the lowest test loss over all draws, which becomes a column."""

    def mean_loss(temperature: float) -> float:
        return float(np.mean([draw["columns"][f"T = {temperature}"]["loss"] for draw in found]))

    best = min(temperatures, key=mean_loss)
    for draw in found:
        draw["columns"]["one T"] = draw["columns"][f"T = {best}"]
    return best


def row_of(name: str, found: list[dict], measures: Sequence[str]) -> list[str]:
    mine = [draw["columns"][name] for draw in found]
    weights = np.mean([column["weights"] for column in mine], axis=0)
    row = [
        name,
        " ".join(f"{weight:.2f}" for weight in weights),
        f"{np.mean([column['optimism'] for column in mine]):+.3f}",
    ]
    for measure_name in measures:
        mean = np.mean([column[measure_name] for column in mine])
        row += [f"{mean:.4f}", *against(name, "lm-cocktail", found, measure_name)]
    return row


def against(name: str, peer: str, found: list[dict], measure_name: str) -> tuple[str, str]:
    """The mean difference on the test examples with its interval over draws; win/tie/loss."""
    mine, other = (
        np.array([draw["columns"][side][measure_name] for draw in found]) for side in (name, peer)
    )
    gain = paired_interval(mine - other, seed=0)
    better = (mine - other) * (-1 if measure_name == "loss" else 1)
    wins, losses = int((better > 1e-4).sum()), int((better < -1e-4).sum())
    ties = len(found) - wins - losses
    return f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]", f"{wins}/{ties}/{losses}"


if __name__ == "__main__":
    main()

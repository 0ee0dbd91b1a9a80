"""What priors on the weights are worth, over many draws of examples that cost no forward.

    python benchmarks/prior.py --models OUT/base OUT/overtuned \
        --examples DATA/covidqa/dev.jsonl --test DATA/covidqa/test.jsonl

Every ingredient and every half-and-half mix of two is run once, on the examples to draw from and on
the test queries; what other mixes do follows from these, as in a search. Each draw takes n random
examples and asks each rule for weights, which are measured on the test queries: equal weights,
LM-Cocktail at T = 5, its rule at the temperature of the noise (`ingredients`), the same over mixes
as well, which a search keeps where it is not sure (`mixes`), that with losses as they are (`plain
losses`), and, both in hindsight, LM-Cocktail's rule at the T that is best for all draws
(`one T`) and at that which is best for each (`oracle T`). These are given losses as a search has
them, at the best scale and among the passages of all examples; with losses as LM_Cocktail has them,
by batches of two examples, they are `rule, T = ...` and `rule, oracle T`.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from measure import table
from search import TEMPERATURES, read
from tqdm import tqdm

from cocktail.measure.bench import prepare, search_plan
from cocktail.measure.mixture import Weights, simplex_vertex
from cocktail.search.objective import EnsembleObjective, measure
from cocktail.search.options import SearchOptions
from cocktail.search.prior import Landmarks, Prior
from cocktail.search.strategies import softmax_of_losses, uniform
from cocktail.search.verdict import paired_interval

BESIDE = "mixes"
RULE_BATCH = 2
"""Examples that LM_Cocktail averages at a time by default."""


class Pool:
    """Examples, and what any mix does on them."""

    def __init__(self, args: argparse.Namespace, path: Path, count: int | None) -> None:
        options = SearchOptions(neg_number=args.neg_number, max_input_length=args.max_input_length)
        bench = prepare(
            search_plan(args.models, args.model_type), read(path)[:count], None, options
        )
        self.task = bench.task
        self.everything = range(len(bench.order))
        size = len(args.models)
        pairs = list(combinations(range(size), 2))
        ends = [simplex_vertex(i, size) for i in range(size)]
        points = [*ends, *((ends[i] + ends[j]) / 2 for i, j in pairs)]
        kept = [
            bench.mixture.rows(self.task, point, keep=True).double()
            for point in tqdm(points, desc=path.name, unit=" mixes", leave=False)
        ]
        outputs = EnsembleObjective(self.task, torch.stack(kept), self.everything, pairs)
        self.landmarks = Landmarks.with_mixes(size, outputs.rows)
        self.ingredients = Landmarks.ingredients(self.landmarks.rows[:size])
        self._outputs = outputs
        self._known: dict[bytes, float] = {}

    def loss(self, weights: Weights) -> float:
        """Of all examples."""
        if weights.tobytes() not in self._known:
            rows = self._outputs.rows(weights)
            self._known[weights.tobytes()] = measure(self.task, [(rows, self.everything)]).loss
        return self._known[weights.tobytes()]

    def losses_alone(self, examples: Sequence[int]) -> list[float]:
        """(K,) of some examples, for each ingredient by itself."""
        return [measure(self.task, [(rows, examples)]).loss for rows in self.ingredients.rows]


def main() -> None:
    args = parse()
    pool, test = Pool(args, args.examples, None), Pool(args, args.test, args.test_queries)
    everything = {}
    for size in args.sizes:
        found: dict[str, list[tuple[float, Weights]]] = defaultdict(list)
        for draw in range(args.draws):
            random = np.random.default_rng(1000 * size + draw)
            examples = random.permutation(len(pool.everything))[:size].tolist()
            for name, weights in choices(pool, examples, test.loss).items():
                found[name].append((test.loss(weights), weights))
        at = [found.pop(f"T = {temperature}") for temperature in TEMPERATURES]
        found["one T"] = min(at, key=lambda draws: float(np.mean([loss for loss, _ in draws])))
        report(size, found)
        everything[size] = {
            name: [{"loss": loss, "weights": weights.tolist()} for loss, weights in draws]
            for name, draws in found.items()
        }
    if args.json:
        args.json.write_text(json.dumps(everything, indent=2))


def choices(
    pool: Pool, examples: Sequence[int], test_loss: Callable[[Weights], float]
) -> dict[str, Weights]:
    """What each rule makes of these examples."""
    alone = pool.losses_alone(examples)
    at = [softmax_of_losses(alone, temperature) for temperature in TEMPERATURES]
    as_they_come = [
        pool.task.batch_mean_loss(rows, RULE_BATCH, examples) for rows in pool.ingredients.rows
    ]
    by_rule = [softmax_of_losses(as_they_come, temperature) for temperature in TEMPERATURES]
    return {
        "uniform": uniform(len(alone)),
        "lm-cocktail": softmax_of_losses(alone, 5.0),
        "ingredients": Prior(pool.task, pool.ingredients, examples).weights,
        "mixes": Prior(pool.task, pool.landmarks, examples).weights,
        "plain losses": Prior(pool.task, pool.landmarks, examples, robust=False).weights,
        **{f"T = {t}": weights for t, weights in zip(TEMPERATURES, at, strict=True)},
        "oracle T": min(at, key=test_loss),
        **{f"rule, T = {t}": weights for t, weights in zip(TEMPERATURES, by_rule, strict=True)},
        "rule, oracle T": min(by_rule, key=test_loss),
    }


def report(size: int, found: dict[str, list[tuple[float, Weights]]]) -> None:
    beside = np.array([loss for loss, _ in found[BESIDE]])
    rows = [["prior", "mean weights", "test loss", f"- {BESIDE}", "worst draw"]]
    for name, draws in found.items():
        losses = np.array([loss for loss, _ in draws])
        weights = " ".join(f"{weight:.2f}" for weight in np.mean([w for _, w in draws], axis=0))
        gain = paired_interval(losses - beside, seed=0)
        difference = f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
        difference = "" if name == BESIDE else difference
        rows.append([name, weights, f"{losses.mean():.4f}", difference, f"{losses.max():.4f}"])
    print(f"\n### n = {size}, {len(beside)} draws\n\n{table(rows)}", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--model-type", default=None)
    parser.add_argument("--examples", type=Path, required=True, help="to draw from")
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--test-queries", type=int, default=100)
    parser.add_argument("--neg-number", type=int, default=5)
    parser.add_argument("--max-input-length", type=int, default=256)
    parser.add_argument("--json", type=Path, help="also write everything here")
    return parser.parse_args()


if __name__ == "__main__":
    main()

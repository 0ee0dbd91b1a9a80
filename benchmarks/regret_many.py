"""What rules for the weights of three models and more are worth, over pairs of pairs.py.

    python benchmarks/regret_many.py PAIRS NAME+NAME ...     # the base and the fine-tunes of pairs
    python benchmarks/regret_many.py PAIRS --split NAME ...  # one fine-tune in two parts

NAMEs are pairs on the same base; the target and the general side are those of the first. All mixes
on a grid of the simplex are measured once on all examples, which a file beside pair.json keeps;
then each draw chooses on 20 target and 40 general examples and is judged on the rest, as in
regret.py. Values between the mixes of the grid are interpolated. Rules:

    best single              the ingredient with the least loss
    average                  equal weights of all; of the fine-tunes alone
    lm-cocktail T=5          its rule
    least loss               the mix of the grid with the least loss
    search                   what ``cocktail search`` chooses; with labelled general examples
    search to ...            the same on the way to the best fine-tune, or to the average of all,
                             and not to the bagged best

``--split`` asks what freedom by layer is worth: the fine-tune is taken apart, by depth and by
attention against the rest, into two that lie twice as far from the base, so that a half of each is
the whole fine-tune. Its rule ``search`` and "one weight" know only the straight line to the whole;
"if cross-validated" takes two weights where they are better on held-out folds of the examples.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from measure import table
from pairs import CLASS
from regret import LIMIT, Curve, column, interval, judged, kept_or_measured, tell_differences
from scipy.interpolate import LinearNDInterpolator
from tqdm import tqdm

from cocktail.search.curve import Way, vertices
from cocktail.search.direction import bagged_best
from cocktail.search.intervals import bootstrap_interval
from cocktail.search.lm_cocktail import softmax_of_losses
from cocktail.search.rule import choose_point, keeps

STEPS_OF_GRID = {3: 4, 4: 3}  # by the number of models: 15 and 20 mixes
FOLDS = 5
TESTS = 75  # of each side's test examples
PARTS = {
    "depth": lambda key, layers: in_lower_half(key, layers),
    "attention": lambda key, _: re.search("attention|attn", key) is not None,
}
Weights = np.ndarray
Rule = Callable[[Curve, np.ndarray, np.ndarray], Weights]


def main() -> None:
    args = parse()
    sets = list(halves(args) if args.split else together(args))
    found: dict[str, list[dict]] = {}
    for name, curve, grid in sets:
        for rule, choose in rules(grid, straight=args.split).items():
            at = lambda values, weights, grid=grid: between(grid, values, weights)  # noqa: E731
            found.setdefault(rule, []).append(
                {"set": name, **judged(curve, choose, args.draws, at)}
            )
    report(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--split", action="store_true", help="take one fine-tune apart")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write everything here")
    return parser.parse_args()


# Sets of models


def together(args: argparse.Namespace) -> Iterator[tuple[str, Curve, Weights]]:
    """The first pair's base with the fine-tunes of all."""
    for names in tqdm([name.split("+") for name in args.names], desc="sets", unit=" sets"):
        records = [read(args.pairs / name) for name in names]
        first = args.pairs / names[0]
        tuned = [
            str(Path("..", name, each["tuned"])) for name, each in zip(names, records, strict=True)
        ]
        grid = simplex(len(names) + 1)
        kept = first / f"with-{'-'.join(names[1:])}.npz"
        yield "+".join(names), measured(kept, records[0], tuned, grid), grid


def halves(args: argparse.Namespace) -> Iterator[tuple[str, Curve, Weights]]:
    """A pair's base with two parts of its fine-tune, twice as far."""
    for name, way in tqdm(list(product(args.names, PARTS)), desc="sets", unit=" sets"):
        folder = args.pairs / name
        pair = read(folder)
        parts = taken_apart(folder, pair, way)
        grid = simplex(3)
        yield f"{name}, {way}", measured(folder / f"{way}.npz", pair, parts, grid), grid


def measured(kept: Path, pair: dict, tuned: list[str], grid: Weights) -> Curve:
    return kept_or_measured(kept, pair, tuned, list(grid), tests=TESTS, with_text=False)


def read(folder: Path) -> dict:
    return json.loads((folder / "pair.json").read_text(encoding="utf-8"))


def taken_apart(folder: Path, pair: dict, way: str) -> list[str]:
    """base + 2 (tuned - base) of the weights that PARTS names, and the same of all others."""
    found = [folder / f"{way}-{part}" for part in ("these", "others")]
    if not all(path.exists() for path in found):
        head = {"num_labels": 1} if pair["kind"] == "reranker" else {}
        base, tuned = (
            CLASS[pair["kind"]].from_pretrained(folder / pair[name], dtype=torch.float32, **head)
            for name in ("base", "tuned")
        )
        origin, end = base.state_dict(), tuned.state_dict()
        layers = 1 + max(layer_of(key) or 0 for key in end)
        for path, wanted in zip(found, (True, False), strict=True):
            model = {
                key: origin[key] + 2 * (end[key] - origin[key])
                if PARTS[way](key, layers) == wanted
                else origin[key]
                for key in end
            }
            shutil.copytree(folder / pair["tuned"], path, dirs_exist_ok=True)
            tuned.save_pretrained(path, state_dict=model)
    return [path.name for path in found]


def layer_of(key: str) -> int | None:
    """The number of a weight's layer, or ``None``."""
    found = re.search(r"layers?\.(\d+)\.", key)
    return int(found[1]) if found else None


def in_lower_half(key: str, layers: int) -> bool:
    layer = layer_of(key)
    return "embed" in key if layer is None else layer < layers / 2


# The simplex


def simplex(count: int) -> Weights:
    """(S, count) of a grid; the base first."""
    steps = STEPS_OF_GRID[count]
    found = [
        np.array([steps - sum(rest), *rest]) / steps
        for rest in product(range(steps + 1), repeat=count - 1)
        if sum(rest) <= steps
    ]
    return np.array(sorted(found, key=lambda weights: -weights[0]))


def between(grid: Weights, values: np.ndarray, weights: Weights) -> np.ndarray:
    """(N,) of (N, S) at any weights; at those of the grid exactly."""
    distances = np.abs(grid - weights).max(axis=1)
    if distances.min() < 1e-9:
        return values[:, distances.argmin()]
    inside = (1 - 1e-9) * weights + 1e-9 / len(weights)  # rounding must not put it outside
    return LinearNDInterpolator(grid[:, 1:], values.T)(inside[1:])[0]


# Rules


def rules(grid: Weights, *, straight: bool) -> dict[str, Rule]:
    ends = vertices(grid.shape[1])
    tuned = np.mean(ends[1:], axis=0)
    single: dict[str, Rule] = (
        {
            "fine-tune": lambda *_: tuned,
            "half": lambda *_: (ends[0] + tuned) / 2,
        }
        if straight
        else {
            "best single": lambda curve, target, _: ends[least(curve, grid, ends, target)],
            "average of all": lambda *_: np.mean(ends, axis=0),
            "average of the fine-tunes": lambda *_: tuned,
            "lm-cocktail T=5": lambda curve, target, _: softmax_of_losses(
                np.array([between(grid, curve.losses[target], end).mean() for end in ends]), 5
            ),
        }
    )
    chosen: dict[str, Rule] = {}
    for side, kind in ((", labels", "general"), ("", None)):
        for name, end in (STRAIGHT_END if straight else ENDS).items():
            chosen[f"{name}{side}"] = searched(grid, kind, end, off_it=not straight)
        chosen[f"least loss{side}"] = least_loss(grid, kind, list(grid))
        if straight:
            whole = Way(ends[0], tuned)
            line = [whole.at(share) for share in whole.steps()]
            one = chosen[f"least loss, one weight{side}"] = least_loss(grid, kind, line)
            two = chosen[f"least loss{side}"]
            chosen[f"two weights if cross-validated{side}"] = cross_validated(grid, two, one)
    return {**single, **chosen}


def bagged_end(losses: np.ndarray, tuned: np.ndarray) -> Weights:
    return bagged_best(losses, tuned, seed=0)


def best_end(losses: np.ndarray, tuned: np.ndarray) -> Weights:
    return tuned[losses.mean(axis=0).argmin()]


def average_end(_: np.ndarray, tuned: np.ndarray) -> Weights:
    return tuned.mean(axis=0)


ENDS = {
    "search": bagged_end,
    "search to the best": best_end,
    "search to the average": average_end,
}
STRAIGHT_END = {"search": average_end}


def least(curve: Curve, grid: Weights, mixes: list[Weights], target: np.ndarray) -> int:
    return int(np.argmin([between(grid, curve.losses[target], mix).mean() for mix in mixes]))


def least_loss(grid: Weights, side: str | None, mixes: list[Weights]) -> Rule:
    """The best of the mixes on the examples, of those that keep the general side."""

    def choose(curve: Curve, target: np.ndarray, general: np.ndarray) -> Weights:
        kept = general_values(curve, side, general)
        within = [
            kept is None or keeps(kept[:, 0], between(grid, kept, mix), LIMIT) for mix in mixes
        ]
        losses = [between(grid, curve.losses[target], mix).mean() for mix in mixes]
        return mixes[np.argmin(np.where(within, losses, np.inf))]

    return choose


def cross_validated(grid: Weights, free: Rule, plain: Rule) -> Rule:
    """The first rule where it is significantly better than the other on examples held out of it."""

    def choose(curve: Curve, target: np.ndarray, general: np.ndarray) -> Weights:
        gains = []
        for fold in np.array_split(np.random.default_rng(0).permutation(len(target)), FOLDS):
            rest, held_out = np.delete(target, fold), curve.losses[target[fold]]
            found = (rule(curve, rest, general) for rule in (plain, free))
            before, after = (between(grid, held_out, mix) for mix in found)
            gains.append(before - after)
        better = bootstrap_interval(np.concatenate(gains), seed=0).above_zero
        return (free if better else plain)(curve, target, general)

    return choose


def searched(
    grid: Weights, side: str | None, end_of: Callable[..., Weights], *, off_it: bool
) -> Rule:
    """As ``cocktail search``: a point of the way from the base to an end, or a mix off it."""
    ends = vertices(grid.shape[1])

    def choose(curve: Curve, target: np.ndarray, general: np.ndarray) -> Weights:
        losses, kept = curve.losses[target], general_values(curve, side, general)
        single = np.stack([between(grid, losses, end) for end in ends[1:]], axis=1)
        way = Way(ends[0], end_of(single, np.array(ends[1:])))
        shares = way.steps()
        mixes = [way.at(share) for share in shares]
        on_it = np.stack([between(grid, losses, mix) for mix in mixes], axis=1)
        keeping = (
            None if kept is None else np.stack([between(grid, kept, mix) for mix in mixes], axis=1)
        )
        best = choose_point(shares, on_it, keeping, max_drop=LIMIT).place
        other = beside(on_it[:, best], losses, kept) if off_it else None
        return mixes[best] if other is None else other

    def beside(best: np.ndarray, losses: np.ndarray, kept: np.ndarray | None) -> Weights | None:
        others = [*ends[1:], np.mean(ends, axis=0)]
        values = [between(grid, losses, mix) for mix in others]
        within = [
            kept is None or keeps(kept[:, 0], between(grid, kept, mix), LIMIT) for mix in others
        ]
        gains = [bootstrap_interval(best - each, seed=0) for each in values]
        better = [(gain.mean, i) for i, gain in enumerate(gains) if gain.above_zero and within[i]]
        return others[max(better)[1]] if better else None

    return choose


def general_values(curve: Curve, side: str | None, general: np.ndarray) -> np.ndarray | None:
    if side is None:
        return None
    kept = getattr(curve, side)
    return kept[general % len(kept)]


# Report


def report(found: dict[str, list[dict]]) -> None:
    rows = [
        ["rule", "captured", "captured within the limit", "exceeds .01", "worse than the base",
         "general loss"]
    ]  # fmt: skip
    for name, each in found.items():
        captured, kept = (interval(column(each, key)) for key in ("captured", "kept"))
        means = [np.mean([one[key] for one in each]) for key in ("exceeds", "worse", "drop")]
        rows.append([name, captured, kept, *(f"{mean:.3f}" for mean in means)])
    print(f"\n{len(next(iter(found.values())))} sets\n\n{table(rows)}\n")
    tell_differences("search", found)
    rows = [["set", *found]]
    for each in zip(*found.values(), strict=True):
        cells = [f"{one['captured']:.2f} ({one['drop']:+.3f})" for one in each]
        rows.append([each[0]["set"], *cells])
    print("captured (general loss)\n\n" + table(rows))


if __name__ == "__main__":
    main()

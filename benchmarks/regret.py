"""What rules for the share of a fine-tune are worth, over pairs of a base and a fine-tune.

    python benchmarks/pairs.py DATA PAIRS           # makes pairs; any folder of such pairs will do
    python benchmarks/regret.py PAIRS [--json FILE]

Every folder in PAIRS with a ``pair.json`` (see pairs.py) is one pair. Its eleven mixes are measured
once on all examples, which ``curve.npz`` beside it keeps; then each draw chooses on 20 target
examples and 40 general ones of the pools, and is judged on the rest. Rules:

    fine-tune, half          shares of 1 and .5
    lm-cocktail T=5, best T  its rule; the best of five temperatures in hindsight, over all pairs
    search                   what ``cocktail search`` chooses without general examples
    search, labels           with labelled ones; search, text: with text alone

Printed for each: the target's gain over the base as a share of what the best of the eleven points
gains that loses at most .01 in general, and the same where a draw that exceeds this limit counts as
nothing; how often the general loss exceeds .01, and how often the target is worse than the base,
beyond the interval of 95 %. Means over pairs, with bootstrap intervals over pairs. Where there is
less to gain than .01 (NDCG@10) or .02 (nats), a pair counts in the two frequencies alone. Shares
between the eleven are interpolated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from measure import table
from scipy.interpolate import PchipInterpolator
from tqdm import tqdm

from cocktail.measure.agreement import Agreement
from cocktail.measure.bench import prepare
from cocktail.measure.refillable import search_plan
from cocktail.search.curve import Way, vertices
from cocktail.search.lm_cocktail import softmax_of_losses
from cocktail.search.objective import MixObjective
from cocktail.search.options import SearchOptions
from cocktail.search.rule import choose_point

SHARES = np.linspace(0, 1, 11)
FEWER = [0, 1, 2, 4, 6, 8, 10]  # closer where curves bend most
LIMIT = 0.01
TARGET, GENERAL = 20, 40
TEMPERATURES = (0.05, 0.2, 0.5, 1.0, 5.0)
WORTH = {"reranker": 0.01, "encoder": 0.01, "decoder": 0.02}
LENGTH = {"reranker": 96, "encoder": 80, "decoder": 96}


@dataclass(frozen=True)
class Curve:
    """What S mixes of a pair do, eleven as a rule; less is better in all tables.

    Attributes:
        target, general: (N, S) metric, or loss without one; the pool first, then the test.
        text: (M, S) of general text without labels.
        losses: (N, S) of the target.
        pools: examples of the target's and of the general pool.
    """

    name: str
    kind: str
    target: np.ndarray
    general: np.ndarray
    text: np.ndarray
    losses: np.ndarray
    pools: tuple[int, int]


Rule = Callable[[Curve, np.ndarray, np.ndarray], float]
"""A curve and the numbers of the examples that were drawn, to a share."""


def main() -> None:
    args = parse()
    folders = sorted(path.parent for path in args.pairs.glob("*/pair.json"))
    shown = tqdm(folders, desc="pairs", unit=" pairs")
    curves = [curve_of(folder, fewer=args.fewer) for folder in shown]
    rules = {
        "fine-tune": lambda *_: 1.0,
        "half": lambda *_: 0.5,
        **{f"lm-cocktail T={t:g}": lm_cocktail(t) for t in TEMPERATURES},
        "search": chosen_by(None),
        "search, labels": chosen_by("general"),
        "search, text": chosen_by("text"),
    }
    found = {
        name: [judged(curve, rule, args.draws) for curve in curves] for name, rule in rules.items()
    }
    best = max(
        (name for name in found if name.startswith("lm-cocktail")),
        key=lambda name: np.nanmean([each["captured"] for each in found[name]]),
    )
    found = {
        name: each
        for name, each in found.items()
        if not name.startswith("lm-cocktail") or name in (best, "lm-cocktail T=5")
    }
    report(found, curves, best)
    if args.json:
        names = [curve.name for curve in curves]
        args.json.write_text(json.dumps({"pairs": names, "rules": found}, indent=2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write everything here")
    parser.add_argument(
        "--fewer", action="store_true",
        help="measure seven mixes of each new pair and interpolate the others (PCHIP): on pairs "
        "with all eleven, means of NDCG@10 err by .007 at most, those of decoders' losses by .005",
    )  # fmt: skip
    return parser.parse_args()


# Curves


def curve_of(folder: Path, *, fewer: bool = False) -> Curve:
    """From ``curve.npz``, or measured now."""
    pair = json.loads((folder / "pair.json").read_text(encoding="utf-8"))
    way = Way(*vertices(2))
    mixes = [way.at(share) for share in (SHARES[FEWER] if fewer else SHARES)]
    found = kept_or_measured(folder / "curve.npz", pair, [pair["tuned"]], mixes)
    if found.losses.shape[1] == len(SHARES):
        return found
    names = ("target", "general", "text", "losses")
    tables = {name: getattr(found, name) for name in names}
    filled = {
        name: PchipInterpolator(SHARES[FEWER], table, axis=1)(SHARES)
        for name, table in tables.items()
    }
    return replace(found, **filled)


def kept_or_measured(
    kept: Path,
    pair: dict,
    tuned: list[str],
    mixes: list[np.ndarray],
    *,
    tests: int | None = None,
    with_text: bool = True,
) -> Curve:
    """The tables of S mixes of the pair's base and the tuned ones; ``kept`` beside pair.json.

    ``tests`` takes only the first test examples of either side.
    """
    folder = kept.parent
    if not kept.exists():
        models = [pair["base"], *tuned]
        np.savez(kept, **measured(folder, pair, models, mixes, tests=tests, with_text=with_text))
    with np.load(kept) as tables:
        pools = tuple(int(count) for count in tables["pools"])
        names = ("target", "general", "text", "losses")
        return Curve(folder.name, pair["kind"], *(tables[name] for name in names), pools)


def measured(
    folder: Path,
    pair: dict,
    models: list[str],
    mixes: list[np.ndarray],
    *,
    tests: int | None,
    with_text: bool,
) -> dict[str, np.ndarray]:
    """Tables of (examples, S); the first of the mixes is the base."""
    plan = search_plan([str(folder / model) for model in models], pair["kind"])
    options = SearchOptions(max_input_length=LENGTH[pair["kind"]])
    rows = {
        name: lines(folder / pair[name])
        for name in ("target_pool", "target_test", "general_pool", "general_test")
    }
    target = rows["target_pool"] + rows["target_test"][:tests]
    general = rows["general_pool"] + rows["general_test"][:tests]
    bench = prepare(plan, target, general, options)
    sides = [MixObjective(bench.mixture, task) for task in (bench.task, bench.retain)]
    points = [[side.measure(mix) for side in sides] for mix in mixes]
    tables = [
        np.stack([-p.losses if p.metrics is None else p.metrics for p in side], axis=1)
        for side in zip(*points, strict=True)
    ]
    order = bench.given_order
    # The retain examples' order is that of their contents: back to the files'.
    place = {text: i for i, text in enumerate(bench.retain.places)}
    back = [place[f"example {i + 1}"] for i in range(len(general))]
    text = np.empty((0, len(mixes)))
    if with_text:
        text_file = folder / pair["general_text"]
        text_bench = prepare(plan, target[:2], None, options, retain_text=text_file)
        agreement = Agreement(text_bench.mixture, text_bench.retain, mixes[0])
        sign = -1 if agreement.more_is_better else 1
        text = sign * np.stack([agreement.values(mix) for mix in mixes], axis=1)
    return {
        "target": -tables[0][order],
        "general": -tables[1][back],
        "text": text,
        "losses": np.stack([point[0].losses[order] for point in points], axis=1),
        "pools": np.array([len(rows["target_pool"]), len(rows["general_pool"])]),
    }


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


# Rules


def lm_cocktail(temperature: float) -> Rule:
    def share(curve: Curve, target: np.ndarray, _: np.ndarray) -> float:
        return float(
            softmax_of_losses(curve.losses[target][:, [0, -1]].mean(axis=0), temperature)[1]
        )

    return share


def chosen_by(side: str | None) -> Rule:
    def share(curve: Curve, target: np.ndarray, general: np.ndarray) -> float:
        kept = None if side is None else getattr(curve, side)
        if kept is not None:
            kept = kept[general % len(kept)]
        return SHARES[choose_point(SHARES, curve.losses[target], kept, max_drop=LIMIT).place]

    return share


def between_shares(values: np.ndarray, share: float) -> np.ndarray:
    """(N,) at any share, between the columns."""
    place = min(int(share * 10), 9)
    beyond = share * 10 - place
    return (1 - beyond) * values[:, place] + beyond * values[:, place + 1]


def judged(
    curve: Curve, rule: Rule, draws: int, at: Callable[..., np.ndarray] = between_shares
) -> dict[str, float]:
    """Means over draws of what the rule does on the examples that it did not see.

    ``at`` gives the values (N,) of (N, S) at what the rule chose.
    """
    generator = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        target = generator.permutation(curve.pools[0])[:TARGET]
        general = generator.permutation(curve.pools[1])[:GENERAL]
        chosen = rule(curve, target, general)
        gains = rest(curve.target, target)
        gains = gains[:, :1] - gains
        drops = rest(curve.general, general)
        drops = drops - drops[:, :1]
        best = gains.mean(axis=0)[drops.mean(axis=0) <= LIMIT].max()
        gain, drop = at(gains, chosen), at(drops, chosen)
        worth = best if best > WORTH[curve.kind] else np.nan
        captured = np.clip(gain.mean() / worth, -1, 1.5)
        exceeds = drop.mean() - 1.96 * error(drop) > LIMIT
        found.append(
            {
                "captured": captured,
                "kept": 0 * captured if exceeds else captured,  # nan where nothing can be gained
                "gain": gain.mean(),
                "drop": drop.mean(),
                "exceeds": exceeds,
                "worse": gain.mean() + 1.96 * error(gain) < 0,
                "share": chosen if np.ndim(chosen) == 0 else 1 - chosen[0],
            }
        )
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def rest(values: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    return np.delete(values, drawn, axis=0)


def error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


# Report


def report(found: dict[str, list[dict]], curves: list[Curve], best: str) -> None:
    rows = [
        ["rule", "captured", "captured within the limit", "exceeds .01", "worse than the base",
         "general loss", "share"]
    ]  # fmt: skip
    for name, each in found.items():
        captured, kept = (interval(column(each, key)) for key in ("captured", "kept"))
        shown = f"{name} (in hindsight)" if name == best else name
        means = [
            np.mean([pair[key] for pair in each]) for key in ("exceeds", "worse", "drop", "share")
        ]
        rows.append([shown, captured, kept, *(f"{mean:.3f}" for mean in means)])
    print(f"\n{len(curves)} pairs\n\n{table(rows)}\n")
    tell_differences("search, text", found)
    rows = [["pair", *found]]
    for i, curve in enumerate(curves):
        cells = [
            f"{each[i]['captured']:.2f} ({each[i]['share']:.2f}, {each[i]['drop']:+.3f})"
            for each in found.values()
        ]
        rows.append([curve.name, *cells])
    print("captured (share, general loss)\n\n" + table(rows))


def tell_differences(mine: str, found: dict[str, list[dict]]) -> None:
    """What a rule captures more than each of the others, with its interval over the pairs."""
    print(f"{mine}, less\n")
    for name, each in found.items():
        if name != mine:
            captured, kept = (
                interval(column(found[mine], key) - column(each, key), "+")
                for key in ("captured", "kept")
            )
            print(f"- {name}: {captured}; within the limit {kept}")
    print()


def column(each: list[dict], key: str) -> np.ndarray:
    return np.array([pair[key] for pair in each])


def interval(values: np.ndarray, sign: str = "") -> str:
    """Mean over the pairs that have something to gain, with its bootstrap interval of 95 %."""
    values = values[~np.isnan(values)]
    if not len(values):
        return "–"
    drawn = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    return f"{values.mean():{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


if __name__ == "__main__":
    main()

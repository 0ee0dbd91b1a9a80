"""The search itself: propose, measure on the mixed model, cross-validate, choose."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from cocktail.errors import RecipeError
from cocktail.measure.bench import Bench
from cocktail.measure.mixture import Weights, simplex_vertex
from cocktail.search.cross_validation import FOLDS, Outputs, cross_validate, fit_outputs
from cocktail.search.frontier import trace
from cocktail.search.objective import (
    BudgetSpentError,
    EnsembleObjective,
    MixObjective,
    Values,
    measure,
)
from cocktail.search.options import SearchOptions
from cocktail.search.permutation_test import chance_probability, standing
from cocktail.search.prior import Landmarks, Prior
from cocktail.search.result import Frontier, SearchResult, reordered
from cocktail.search.strategies import (
    polish,
    softmax_of_losses,
    uniform,
)
from cocktail.search.verdict import EQUAL, PRIOR, Candidate, Verdict, choose, kept_by_default

POLISH_ROUNDS = 1
PLAIN = (EQUAL, "base", "best-single", "lm-cocktail", PRIOR)
"""Candidates that no strategy proposes, from simple to elaborate."""
Fitter = Callable[[Sequence[int]], Weights]
"""Finds weights on some examples."""


class Search:
    """One search over one set of ingredients and examples.

    Args:
        observe: called with the weights and the loss of every mix that is measured.
    """

    def __init__(
        self,
        bench: Bench,
        options: SearchOptions,
        observe: Callable[[Weights, float], None] | None = None,
    ) -> None:
        self.bench = bench
        self.options = options
        self.task = bench.task
        self.size = len(bench.mixture.plan.ingredients)
        self.everything = list(range(len(bench.task.places)))
        self.objective = MixObjective(
            bench.mixture, bench.task, budget=options.budget, observe=observe
        )
        self.uniform = uniform(self.size)
        self.singles: list[Candidate] = []
        self.candidates: list[Candidate] = []
        self.notes: list[str] = []
        self.chance: float | None = None
        self.kept: Tensor = torch.empty(0)
        self.kept_equal: Tensor | None = None
        self.pairs: list[tuple[int, int]] = []
        self.landmarks = Landmarks.ingredients([])
        self.started = time.perf_counter()

    def run(self) -> SearchResult:
        """Search, and choose.

        Raises:
            NonFiniteError: an ingredient's or a mix's loss is not finite.
            KeyboardInterrupt: before anything was measured.
        """
        interrupted = False
        frontier: Frontier | None = None
        verdict: Verdict | None = None
        try:
            self._propose()
            verdict = self._verdict()
            if self.bench.retain is not None:
                frontier, verdict = self._trace(verdict)
        except KeyboardInterrupt:
            if not self.candidates:
                raise
            interrupted = True
        if verdict is None:
            verdict = self._best_so_far()
        elif interrupted:
            reason = (
                f"{verdict.reason}; stopped before the limit on the retain examples was checked"
            )
            verdict = replace(verdict, reason=reason)
        return self._result(verdict, frontier, interrupted)

    def _propose(self) -> None:
        """Measure the trivial choices and what the strategy proposes, what was asked for first."""
        least = self.size + 1
        if self.options.budget < least:
            raise RecipeError(
                f"budget is {self.options.budget:g} - {self.size} models and their equal mix take "
                f"{least} forward equivalents - give that or more (--budget, budget=)"
            )
        needs_outputs = self.options.strategy in ("auto", "ensemble", "gradient")
        self._measure_singles(keep=needs_outputs)
        if self.options.strategy == "auto":
            self.chance = self._chance()  # before what is worth less spends the budget
        if self.options.strategy in ("auto", "gradient"):
            self._run_pairs()
        rules = (self._add_softmax, self._add_prior)
        steps: dict[str, Sequence[Callable[[], None]]] = {
            "lm-cocktail": rules,
            "ensemble": (self._add_ensemble, *rules),
            "gradient": (self._add_ensemble, self._add_gradient, *rules),
            "auto": (*rules, self._add_ensemble, self._add_gradient),
        }
        for step in steps[self.options.strategy]:
            try:
                step()
            except BudgetSpentError as error:
                self.notes.append(f"{step.__name__.removeprefix('_add_')}: {error}")
        ranks = {name: rank for rank, name in enumerate(PLAIN)}
        self.candidates.sort(key=lambda candidate: ranks.get(candidate.name, len(ranks)))

    def _measure_singles(self, *, keep: bool) -> None:
        """Run every ingredient once, and the uniform mix.

        The uniform mix runs first: where outputs are kept in part, its are no ingredient's.
        """
        one = torch.ones(1, dtype=torch.float64)
        vertices = [simplex_vertex(i, self.size) for i in range(self.size)]
        kept = []
        for weights in (self.uniform, *vertices) if keep else ():
            kept.append(self.bench.mixture.rows(self.task, weights, keep=True).double())
            self.objective.remember(weights, self.task.blend(kept[-1][None], one))
        if keep:
            self.kept_equal, self.kept = kept[0], torch.stack(kept[1:])
        for name, vertex in zip(self.bench.mixture.names, vertices, strict=True):
            measured = self.objective.measure(vertex)
            self.singles.append(Candidate(name, tuple(vertex.tolist()), measured))
        self.landmarks = Landmarks.ingredients(self._single_rows())
        base = vertices[self.options.base]

        def best(examples: Sequence[int]) -> Weights:
            return vertices[int(np.argmin(self._single_losses(examples)))]

        self._add(EQUAL, self.uniform, lambda _: self.uniform)
        self._add("base", base, lambda _: base)
        self._add("best-single", best(self.everything), best)

    def _single_losses(self, examples: Sequence[int]) -> list[float]:
        """(K,) mean loss of each ingredient by itself."""
        return [measure(self.task, [(rows, examples)]).loss for rows in self._single_rows()]

    def _single_rows(self) -> list[Tensor]:
        """K outputs (R, ...), one for each ingredient."""
        return [self.objective.rows(np.array(single.weights)) for single in self.singles]

    def _run_pairs(self) -> None:
        """Run the half-and-half mixes of all pairs, as far as affordable.

        They show how outputs bend between ingredients, and so what other mixes of two come to.
        """
        mixture = self.bench.mixture
        pairs = list(combinations(range(self.size), 2))
        left = self.options.budget - mixture.cost.forwards
        candidate = 1 + (FOLDS if self.task.entangled else 1)
        # LM-Cocktail's, the prior, the ensemble, and the gradient with its step.
        reserve = 4 * candidate + POLISH_ROUNDS * (self.objective.gradient_cost + 1)
        if len(pairs) > left - reserve:
            self.notes.append(
                f"gradient: the budget has no room for the half-and-half mixes ({len(pairs)}); its "
                "curvature is the ensemble's, and the prior knows no mixes"
            )
            return
        middles = [
            (simplex_vertex(i, self.size) + simplex_vertex(j, self.size)) / 2 for i, j in pairs
        ]
        if self.size == 2 and self.kept_equal is not None:
            rows = [self.kept_equal]  # the middle of the only pair
        else:
            rows = [mixture.rows(self.task, middle, keep=True).double() for middle in middles]
        self.pairs, self.kept = pairs, torch.cat([self.kept, torch.stack(rows)])
        bent = EnsembleObjective(self.task, self.kept, self.everything, pairs)
        self.landmarks = Landmarks.with_mixes(self.size, bent.rows)

    def _add_softmax(self) -> None:
        rows = self._single_rows()

        def fit(examples: Sequence[int]) -> Weights:
            chosen = set(examples)
            order = [i for i in self.bench.given_order if i in chosen]
            return softmax_weights(self.bench, rows, self.options, order)

        self._add("lm-cocktail", fit(self.everything), fit)

    def _add_prior(self) -> None:
        def fit(examples: Sequence[int]) -> Weights:
            return Prior(self.task, self.landmarks, examples).weights

        self._add(PRIOR, fit(self.everything), fit)

    def _add_ensemble(self) -> None:
        """From the ingredients alone, whatever else was run."""
        alone = Landmarks.ingredients(self._single_rows())
        outputs = Outputs(self.task, self.kept[: self.size], alone)

        def fit(examples: Sequence[int]) -> Weights:
            return fit_outputs(outputs, examples).weights

        self._add("ensemble", fit(self.everything), fit)

    def _add_gradient(self) -> None:
        """Fit outputs that bend between the ingredients, then polish by the exact gradient.

        Held-out losses are those of the fit, at weights that the folds' own examples had no part
        in; the polish is one step inside a trust region that the mixed model has to confirm.
        """
        outputs = Outputs(self.task, self.kept, self.landmarks, self.pairs)

        def fit(examples: Sequence[int]) -> Weights:
            return fit_outputs(outputs, examples).weights

        found = fit_outputs(outputs, self.everything)
        weights = polish(
            found.regularised(self.objective),
            found.regularised(outputs.objective(self.everything)),
            found.weights,
            rounds=POLISH_ROUNDS,
        )
        self._add("gradient", weights, fit)

    def _add(self, name: str, weights: Weights, fit: Fitter) -> None:
        """Measure a candidate on the mixed model, then what its procedure is worth held out."""
        measured = self.objective.measure(weights)
        place = len(self.candidates)
        self.candidates.append(Candidate(name, tuple(weights.tolist()), measured))
        if len(self.everything) < 2:
            return
        try:
            held_out = cross_validate(self.task, self.everything, fit, self._run_some)
        except BudgetSpentError as error:
            self.notes.append(f"{name} was not cross-validated: {error}")
            return
        self.candidates[place] = Candidate(name, tuple(weights.tolist()), measured, held_out)

    def _run_some(self, weights: Weights, examples: Sequence[int]) -> Tensor:
        """Rows of the mixed model for these examples at least."""
        if self.objective.has_run(weights) or len(examples) == len(self.everything):
            return self.objective.rows(weights)
        some = MixObjective(self.bench.mixture, self.task, examples, budget=self.options.budget)
        return some.rows(weights)

    def _verdict(self) -> Verdict:
        asked = self.options.strategy
        automatic = asked == "auto"
        proposal = "gradient" if automatic else asked
        verdict = choose(self.candidates, proposal, seed=self.options.seed, chance=self.chance)
        if automatic:
            return verdict
        found = next((c for c in self.candidates if c.name == asked), None)
        if found is None:
            return self._best_so_far(f"the budget ended before {asked}")
        reason = f"{asked} was asked for"
        if found.held_out is None or verdict.difference is None:
            return Verdict(asked, verdict.leader, False, None, reason)
        other = kept_by_default(self.candidates)
        reason += f"; its held-out loss is {verdict.difference} from {other}'s"
        return Verdict(asked, verdict.leader, False, verdict.difference, reason)

    def _chance(self) -> float | None:
        """How likely labels at random look as good; ``None`` where the budget is spent.

        Each ingredient and the equal mix judge: a ranking by how its passages stand, a text by what
        it costs after its own input and after that of another example.
        """
        judges = [self.uniform, *(np.array(single.weights) for single in self.singles)]
        try:
            worth = [self._worth(weights) for weights in judges]
        except BudgetSpentError as error:
            self.notes.append(f"labels at random were not compared: {error}")
            return None
        return chance_probability(worth, seed=self.options.seed)

    def _worth(self, judge: Weights) -> Values:
        """(N, G) what each label an example might have is worth to a mix; its own is the first."""
        if self.bench.dealt is None:
            return standing(self.task.groups(self.objective.rows(judge), self.everything))
        dealt = MixObjective(self.bench.mixture, self.bench.dealt, budget=self.options.budget)
        losses = self.objective.measure(judge).losses
        return -np.stack([losses, dealt.measure(judge).losses], axis=1)

    def _best_so_far(self, why: str = "stopped early") -> Verdict:
        best = min(self.candidates, key=lambda c: c.measured.loss)
        reason = f"{why}: {best.name} has the lowest in-sample loss of what was measured"
        return Verdict(best.name, best.name, False, None, reason)

    def _trace(self, verdict: Verdict) -> tuple[Frontier, Verdict]:
        frontier, measured = trace(
            self.bench, self.objective, self.candidates, self.options, verdict
        )
        point = frontier.points[frontier.chosen]
        if np.allclose(point.weights, self.weights_of(verdict.chosen)):
            return frontier, verdict
        if all(candidate.name != point.name for candidate in self.candidates):
            self.candidates.append(Candidate(point.name, point.weights, measured))
        kept = "satisfies" if frontier.missed_by == 0 else "comes nearest to"
        reason = (
            f"{verdict.reason}; {verdict.chosen} loses too much on the retain examples, "
            f"{point.name} {kept} the limit {frontier.limit:.4f}"
        )
        return frontier, Verdict(
            point.name, verdict.leader, verdict.abstained, verdict.difference, reason
        )

    def weights_of(self, name: str) -> tuple[float, ...]:
        """The weights of a candidate."""
        return next(c.weights for c in self.candidates if c.name == name)

    def _result(
        self, verdict: Verdict, frontier: Frontier | None, interrupted: bool
    ) -> SearchResult:
        mixture = self.bench.mixture
        order = self.bench.order
        candidates = tuple(
            Candidate(
                c.name,
                c.weights,
                reordered(c.measured, order),
                None if c.held_out is None else reordered(c.held_out, order),
            )
            for c in self.candidates
        )
        return SearchResult(
            models=tuple(mixture.names),
            model_type=mixture.plan.kind.name,
            weights=self.weights_of(verdict.chosen),
            base=self.options.base,
            strategy=self.options.strategy,
            seed=self.options.seed,
            metric=self.task.metric,
            verdict=verdict,
            candidates=candidates,
            singles=tuple(
                Candidate(c.name, c.weights, reordered(c.measured, order)) for c in self.singles
            ),
            places=tuple(self.task.places[i] for i in self.bench.given_order),
            frontier=frontier,
            forwards=mixture.cost.forwards,
            mixes=mixture.cost.mixes,
            seconds=time.perf_counter() - self.started,
            interrupted=interrupted,
            compute_dtype=self.options.compute_dtype,
            notes=tuple(self.notes),
        )


def softmax_weights(
    bench: Bench, rows: Sequence[Tensor], options: SearchOptions, order: Sequence[int]
) -> Weights:
    """LM-Cocktail's weights: each ingredient by its own loss, over batches of consecutive examples.

    Args:
        rows: K outputs (R, ...) of the single ingredients.
        order: the examples that count, in the order of the data.
    """
    losses = [bench.task.batch_mean_loss(each, options.batch_size, order) for each in rows]
    return softmax_of_losses(losses, options.temperature)

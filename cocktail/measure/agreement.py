"""How far a mix agrees with the base on unlabelled texts.

The base is the teacher. Rankings are compared by rank, never by the scale of the scores, which
mixing changes: the divergence of the scores' softmax rises long before anything is lost. For models
that generate text, the divergence of their probabilities is measured.
"""

from __future__ import annotations

import torch

from cocktail.measure.mixture import Mixture, Weights
from cocktail.measure.tasks.encoder import TEMPERATURE
from cocktail.measure.tasks.task import Task, Values

AGREEMENT = "agreement"
DIVERGENCE = "divergence"


class Agreement:
    """M texts, and the base's outputs for them.

    Args:
        base: (K,) the weights that make the base.

    Attributes:
        name: ``agreement`` (1 minus the mean loss of NDCG@10 if each passage is the relevant one
            with the probability that the base's softmax gives it; the base has 1, more is better),
            or ``divergence`` (KL from the base's next-token distribution, in nats per token; the
            base has 0, less is better).
        more_is_better: whether more of that measure is better.
    """

    def __init__(self, mixture: Mixture, task: Task, base: Weights) -> None:
        self._mixture = mixture
        self._task = task
        self._examples = range(len(task.places))
        self.more_is_better = mixture.plan.kind.ranks
        self.name = AGREEMENT if self.more_is_better else DIVERGENCE
        self._known: dict[bytes, torch.Tensor] = {}
        self._of_base = self.scores(base) if self.more_is_better else self._kept(base)
        if self.more_is_better:
            # An encoder's cosines become logits, as in its loss.
            scale = 1 / TEMPERATURE if mixture.plan.kind.name == "encoder" else 1.0
            self._likely = (self._of_base.double() * scale).softmax(dim=1)
            self._worth_to_base = self._worth(self._of_base)

    def values(self, weights: Weights) -> Values:
        """(M,) one value for each text."""
        if not self.more_is_better:
            base = self._of_base.double()
            by_token = (base.exp() * (base - self._kept(weights).double())).sum(dim=1)
            divergences: Values = self._task.scores(by_token, self._examples).numpy()
            return divergences
        agreement: Values = (1 + self._worth(self.scores(weights)) - self._worth_to_base).numpy()
        return agreement

    def _worth(self, scores: torch.Tensor) -> torch.Tensor:
        """(M,) expected NDCG@10 of rankings by these scores (M, G)."""
        above = (scores[:, None, :] > scores[:, :, None]).sum(dim=2)
        ties = (scores[:, None, :] == scores[:, :, None]).sum(dim=2) - 1
        ranks = 1 + above + ties / 2
        gains = torch.where(ranks <= 10, 1 / torch.log2(1 + ranks.double()), 0.0)
        return (self._likely * gains).sum(dim=1)

    def scores(self, weights: Weights) -> torch.Tensor:
        """(M, G) scores of what each text ranks, padded with ``-inf``; each mix is run once."""
        key = weights.tobytes()
        if key not in self._known:
            rows = self._mixture.rows(self._task, weights)
            self._known[key] = self._task.groups(rows, self._examples)
        return self._known[key]

    def _kept(self, weights: Weights) -> torch.Tensor:
        """(R, C) log-probabilities of the kept tokens."""
        return self._mixture.rows(self._task, weights, keep=True)

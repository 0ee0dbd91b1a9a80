"""What the examples say of the ingredients before any mix is looked at."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import t

from cocktail.search.validation import PRIOR_TEMPERATURE, Singles


def singles(gaps: list[float], count: int) -> Singles:
    """Ingredients with these mean losses; the noise is the same for all sets of gaps."""
    noise = np.random.default_rng(3).normal(0, 0.3, (len(gaps), count))
    return Singles(noise - noise.mean(axis=1, keepdims=True) + np.array(gaps)[:, None], 0.1)


@pytest.mark.parametrize("count", [3, 5, 20])
@pytest.mark.parametrize("gap", [0.0, 0.1, 0.4])
def test_two_ingredients_share_as_the_integral_over_students_t_says(gap: float, count: int) -> None:
    given = singles([1.0, 1.0 + gap], count)
    difference = given.losses[1] - given.losses[0]
    posterior = t(count - 1, gap, difference.std(ddof=1) / np.sqrt(count))

    def integrand(d: float) -> float:
        return float(posterior.pdf(d) * expit(d / (PRIOR_TEMPERATURE * given.error)))

    share = quad(integrand, -np.inf, 0)[0] + quad(integrand, 0, np.inf)[0]
    assert given.prior()[0] == pytest.approx(share, abs=0.02)  # 4,000 draws: 2.5 standard errors
    assert given.prior().sum() == pytest.approx(1, abs=1e-12)


def test_noise_of_a_third_ingredient_does_not_blur_two() -> None:
    """Sure of two models by the pairs of their own losses, whatever another one does."""
    given = singles([1.0, 1.3, 3.0], 20)
    losses = given.losses.copy()
    losses[1] = losses[0] + 0.3 + np.linspace(-0.01, 0.01, 20)
    losses[2] = 3.0 + 5 * (losses[2] - 3.0)
    assert Singles(losses, 0.1).prior()[0] > 0.99


def test_the_prior_knows_no_order_and_equals_get_equal_shares() -> None:
    given = singles([1.0, 1.1, 1.05, 2.0], 6)
    turned = Singles(given.losses[::-1], given.error)
    assert given.prior() == pytest.approx(turned.prior()[::-1], abs=1e-12)
    twins = Singles(given.losses[[0, 1, 0]], given.error).prior()
    assert twins[0] == pytest.approx(twins[2], abs=1e-12)


def test_a_single_example_leaves_all_alike() -> None:
    assert singles([1.0, 9.0], 1).prior().tolist() == [0.5, 0.5]

"""All merge methods by name."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache

from cocktail.errors import RecipeError
from cocktail.methods.method import LINES, WEIGHT, Method, Option

_LAMBDA = Option("lambda", 1.0, "Scales what is added to the base.")
_INT8_MASK = Option("int8_mask", False, "mergekit's way to save memory; has no effect here.")
_DENSITY = Option("density", 1.0, "Share of the differences to keep.", 0, 1, per_model=True)
_GAMMA = Option("gamma", 0.01, "Share of the largest differences to drop.", 0, 1, per_model=True)
_EPSILON = Option(
    "epsilon", 0.15, "Half the range of the probabilities around density.", 0, 0.5, per_model=True
)
_CHANGED = Option("epsilon", 1e-5, "Differences up to this count as zero.", 0)
_SHARE = Option("weight", 1.0, "The model's weight beside its statistic.", 0, per_model=True)
_ARXIV = "https://arxiv.org/abs/"


def _normalize(default: bool) -> Option:
    return Option("normalize", default, "Divide by the sum of the participating weights.")


def _of_deltas(
    name: str,
    title: str,
    paper: str,
    *options: Option,
    normalize: bool = False,
    rescale: bool = False,
    elementwise: bool = False,
) -> Method:
    """A method that thins out deltas, with the options that all such methods have."""
    scale = Option("rescale", rescale, "Scale up what is kept to make up for what is dropped.")
    options = (_DENSITY, *options, _normalize(normalize), scale, _LAMBDA, _INT8_MASK)
    return Method(
        name, title, _ARXIV + paper, "task_arithmetic", elementwise=elementwise, options=options
    )


_ALL = (
    Method(
        "linear",
        "Linear",
        _ARXIV + "2203.05482",
        "",  # the engine's own sum, block by block
        base="ingredient",
        elementwise=True,
        options=(_normalize(True),),
        explanation="Averages the models by their weights.\n\ntheta = sum_i w_i theta_i, with "
        "``normalize`` divided by sum_i w_i.\n" + _ARXIV + "2203.05482",
    ),
    Method(
        "slerp",
        "SLERP",
        "https://en.wikipedia.org/wiki/Slerp",
        "interpolation",
        weighted=False,
        models=(1, 1),
        options=(Option("t", None, "How far along the arc; 0 is the base.", 0, 1),),
    ),
    Method(
        "nuslerp",
        "NuSLERP",
        "https://github.com/arcee-ai/mergekit",
        "interpolation",
        base="optional",
        models=(2, 2),
        options=(
            Option("nuslerp_flatten", True, "One angle for the whole tensor."),
            Option("nuslerp_row_wise", False, "If not flat: angles along the first index."),
        ),
    ),
    Method(
        "multislerp",
        "Multi-SLERP",
        "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
        "interpolation",
        base="optional",
        options=(
            Option("normalize_weights", True, "Divide the weights by their sum."),
            Option("eps", 1e-8, "Added to norms; a shorter mean direction counts as none.", 0),
        ),
    ),
    Method(
        "karcher",
        "Karcher Mean",
        _ARXIV + "2603.04972",
        "interpolation",
        base="ingredient",
        weighted=False,
        options=(
            Option("max_iter", 10, "Most steps.", 0),
            Option("tol", 1e-5, "Steps, angles and norms below this count as zero.", 0),
        ),
    ),
    Method(
        "task_arithmetic",
        "Task Arithmetic",
        _ARXIV + "2212.04089",
        "task_arithmetic",
        elementwise=True,
        options=(_normalize(False), _LAMBDA, _INT8_MASK),
    ),
    _of_deltas("ties", "TIES", "2306.01708", normalize=True),
    _of_deltas(
        "dare_linear",
        "Linear DARE",
        "2311.03099",
        rescale=True,
        elementwise=True,
    ),
    _of_deltas("dare_ties", "DARE TIES", "2311.03099", rescale=True, elementwise=True),
    _of_deltas("della", "DELLA", "2406.11617", _EPSILON, normalize=True, rescale=True),
    _of_deltas("della_linear", "Linear DELLA", "2406.11617", _EPSILON, rescale=True),
    _of_deltas("breadcrumbs", "Model Breadcrumbs", "2312.06795", _GAMMA),
    _of_deltas(
        "breadcrumbs_ties",
        "Model Breadcrumbs with TIES",
        "2312.06795",
        _GAMMA,
    ),
    Method(
        "model_stock",
        "Model Stock",
        _ARXIV + "2403.19522",
        "model_stock",
        weighted=False,
        models=(2, None),
        options=(
            Option("filter_wise", False, "Treat every vector along the last index separately."),
        ),
    ),
    Method(
        "sce",
        "SCE",
        _ARXIV + "2408.07990",
        "sce",
        weighted=False,
        options=(
            Option("select_topk", 1.0, "Share of the elements to keep, by variance.", 0, 1),
            _INT8_MASK,
        ),
    ),
    Method(
        "nearswap",
        "NearSwap",
        "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
        "nearswap",
        weighted=False,
        elementwise=True,
        models=(1, 1),
        options=(Option("t", None, "Differences up to this are adopted in full.", 0),),
    ),
    Method(
        "arcee_fusion",
        "Arcee Fusion",
        "https://www.arcee.ai",
        "arcee_fusion",
        weighted=False,
        models=(1, 1),
    ),
    Method(
        "ram",
        "Reinforced Agent Merging",
        _ARXIV + "2601.13572",
        "ram",
        weighted=False,
        elementwise=True,
        options=(_CHANGED,),
    ),
    Method(
        "ramplus_tl",
        "Reinforced Agent Merging Plus (Tensor-Local)",
        _ARXIV + "2601.13572",
        "ram",
        weighted=False,
        options=(
            Option("r", 0.1, "How strongly to amplify."),
            Option("alpha", 0.2, "Upper limit on the ratio of shared to own changes.", 0),
            _CHANGED,
        ),
    ),
    Method(
        "iso_c",
        "Iso-C",
        _ARXIV + "2502.04959",
        "spectral",
        weighted=False,
        singular=True,
        options=(_LAMBDA,),
    ),
    Method(
        "tsv_m",
        "TSV-Merge",
        _ARXIV + "2412.00081",
        "spectral",
        weighted=False,
        singular=True,
        options=(_LAMBDA,),
    ),
    Method(
        "consensus",
        "Consensus Task Arithmetic",
        _ARXIV + "2405.07813",
        "consensus",
        weighted=False,
        elementwise=True,
        models=(2, None),
        options=(
            Option("k", 2, "Fewest models that an element must serve.", 0),
            Option(
                "tall_lambda", 0.4, "Share of the others' sum that a model's own must reach.", 0
            ),
            _LAMBDA,
        ),
    ),
    Method(
        "fisher",
        "Fisher merging",
        _ARXIV + "2111.09832",
        "fisher",
        base="ingredient",
        weighted=False,
        elementwise=True,
        options=(_SHARE, Option("floor", 1e-12, "Added to the Fisher information.", 1e-30)),
        statistic="fisher",
    ),
    Method(
        "regmean",
        "RegMean",
        _ARXIV + "2212.09849",
        "regmean",
        base="ingredient",
        weighted=False,
        options=(
            _SHARE,
            Option("alpha", 0.9, "Factor on the off-diagonals of Gram matrices.", 0, 1),
        ),
        statistic="gram",
    ),
)

METHODS = {method.name: method for method in _ALL}


@cache
def option_names() -> frozenset[str]:
    """The names of all methods' parameters: a recipe may hold some that its method does not use."""
    own = (option.name for method in _ALL for option in (*method.options, WEIGHT, *LINES))
    return frozenset((*own, "scale"))  # from mergekit's passthrough


def method_named(name: str) -> Method:
    """Look up a method by name.

    Raises:
        RecipeError: there is none of this name; the message names the nearest.
    """
    if name in METHODS:
        return METHODS[name]
    near = get_close_matches(str(name), METHODS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METHODS)}"
    raise RecipeError(f"{name!r} is not a merge method - {hint} - see `cocktail methods`")

"""The heads of transformers' classifiers as layers of a stack of modules, and back.

A stack of sentence-transformers pools the last states and sends them through dense layers. That is
what most classifiers do, so that one form can be written as the other, tensor by tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CLASSIFIER = "ForSequenceClassification"


@dataclass(frozen=True)
class Layer:
    """One linear layer of a head.

    Attributes:
        name: of its tensors in the classifier, without ``.weight``.
        activation: class of ``torch.nn`` behind it.
        bias: whether it has one.
    """

    name: str
    activation: str = "Identity"
    bias: bool = True


@dataclass(frozen=True)
class Head:
    """What a classifier does to the last states of its body.

    Attributes:
        pooling: which states it reads, ``cls`` or ``lasttoken``.
        layers: what they pass through.
        prefix: of the body's tensors in the classifier.
    """

    pooling: str
    layers: tuple[Layer, ...]
    prefix: str


_ROBERTA = (Layer("classifier.dense", "Tanh"), Layer("classifier.out_proj"))
_AT_FIRST_TOKEN = {
    "Bert": (Layer("bert.pooler.dense", "Tanh"), Layer("classifier")),
    "Camembert": _ROBERTA,
    "DistilBert": (Layer("pre_classifier", "ReLU"), Layer("classifier")),
    "Electra": (Layer("classifier.dense", "GELU"), Layer("classifier.out_proj")),
    "Roberta": _ROBERTA,
    "XLMRoberta": _ROBERTA,
}


def head_of(name: str) -> Head | None:
    """The head of a class of transformers; ``None`` where it is none that a stack could have.

    Args:
        name: ``BertForSequenceClassification``, ``LlamaForSequenceClassification``.
    """
    import transformers  # noqa: PLC0415 - seconds to import
    from transformers.modeling_layers import GenericForSequenceClassification  # noqa: PLC0415

    found: Any = getattr(transformers, name, None)
    if found is None:
        return None
    layers = _AT_FIRST_TOKEN.get(name.removesuffix(CLASSIFIER))
    if layers is not None:
        return Head("cls", layers, found.base_model_prefix)
    if issubclass(found, GenericForSequenceClassification):
        return Head("lasttoken", (Layer("score", bias=False),), found.base_model_prefix)
    return None

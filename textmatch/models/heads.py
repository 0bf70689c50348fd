"""The layers behind the transformer of a sequence-classification model, as plain arrays."""

from __future__ import annotations

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from textmatch.models.prepared import Dense

# Model type -> names of the layers over the first token's state, and what follows each.
_ROBERTA = (("classifier.dense", "tanh"), ("classifier.out_proj", ""))
_HEADS = {
    "bert": (("bert.pooler.dense", "tanh"), ("classifier", "")),
    "albert": (("albert.pooler", "tanh"), ("classifier", "")),
    "distilbert": (("pre_classifier", "relu"), ("classifier", "")),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}


def dense_head(classifier: PreTrainedModel) -> list[Dense] | None:
    """The head as layers, in order; None if this kind of model has another one."""
    layers = _HEADS.get(classifier.config.model_type)
    if layers is None:
        return None
    return [_dense(classifier.get_submodule(name), activation) for name, activation in layers]


def _dense(module: nn.Module, activation: str) -> Dense:
    weight, bias = (
        np.ascontiguousarray(module.get_parameter(name).detach().float().numpy())
        for name in ("weight", "bias")
    )
    return Dense(weight, bias, activation)

"""Fuses the parts of a match into one score: the probability that the document is relevant to the query.

    logit = intercept + w_cosine * cosine + w_lexical * lexical + w_pair * log(pair / (1 - pair))
    score = 1 / (1 + exp(-logit))

`cosine` compares the embeddings, `lexical` is the evidence of shared terms (textmatch.index.bm25), and `pair`
is the score of the cross-encoder. Each set of parts that an answer can have has a logistic model of its own.
So an answer without pair scores, or with terms alone, has scores on the same scale as a complete one. Weights
are never negative: more of a part never lowers a score.

`DEFAULTS` holds the models of each bi-encoder. `textmatch tune` fits those of a collection.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from textmatch.errors import InvalidInput

# The note of a collection that holds its tuned models.
FUSION_NOTE = "score_fusion"
# A logit of a pair score beyond it counts as this.
PAIR_LOGIT_LIMIT = 8.0
# Fusion.pair_from where pair scores gain nothing: no cosine is that high.
NEVER = 2.0
MAX_PAIR_DEPTH = 1_000
# Embeddings of equal texts differ in their last bits. Their scores must not.
_LOGIT_DECIMALS = 5
_SINGLE = struct.Struct("f")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreComponents:
    """The parts of one match; None where a part is missing. Either `cosine` or `lexical` is present.

    Attributes:
        cosine: of the embeddings, -1..1.
        lexical: the evidence of shared terms, 0..1.
        pair: the score of the cross-encoder, 0..1.
    """

    cosine: float | None = None
    lexical: float | None = None
    pair: float | None = None

    def without_pair(self) -> ScoreComponents:
        """The parts that recall knows."""
        return ScoreComponents(self.cosine, self.lexical)


@dataclass(frozen=True)
class ScoreModel:
    """A logistic model: the intercept, and the weight of each part; 0 for a part that it does not use."""

    intercept: float
    cosine: float = 0.0
    lexical: float = 0.0
    pair: float = 0.0

    def logit(self, parts: ScoreComponents) -> float:
        """The log odds of relevance. Missing parts add nothing."""
        logit = self.intercept
        if parts.cosine is not None:
            logit += self.cosine * parts.cosine
        if parts.lexical is not None:
            logit += self.lexical * parts.lexical
        if parts.pair is not None:
            logit += self.pair * pair_logit(parts.pair)
        return round(logit, _LOGIT_DECIMALS)


@dataclass(frozen=True)
class Fusion:
    """One model for each set of parts, which is named for its parts, and where pair scores pay.

    Attributes:
        pair_from: the lowest cosine at which a pair score improves the ranking; NEVER if it does not.
        pair_depth: how many candidates are worth a pair score, the best by recall, 1 to MAX_PAIR_DEPTH.
    """

    cosine: ScoreModel
    lexical: ScoreModel
    cosine_lexical: ScoreModel
    cosine_pair: ScoreModel
    cosine_lexical_pair: ScoreModel
    pair_from: float = NEVER
    pair_depth: int = 20

    def model(self, parts: ScoreComponents) -> ScoreModel:
        """The model for the parts that are present."""
        if parts.cosine is None:
            return self.lexical
        if parts.pair is None:
            return self.cosine if parts.lexical is None else self.cosine_lexical
        return self.cosine_pair if parts.lexical is None else self.cosine_lexical_pair

    def logit(self, parts: ScoreComponents) -> float:
        """The log odds of relevance, by all parts that are present."""
        return self.model(parts).logit(parts)

    def logits_with_pair(self, parts: ScoreComponents) -> tuple[float, float]:
        """The log odds with the lowest and the highest pair score. Equal if a pair score has no weight."""
        return self.logit(replace(parts, pair=0.0)), self.logit(replace(parts, pair=1.0))


# The parts of each set. The names are those of Fusion's models, in the same order.
PART_SETS: dict[str, tuple[str, ...]] = {
    name: tuple(name.split("_"))
    for name in ("cosine", "lexical", "cosine_lexical", "cosine_pair", "cosine_lexical_pair")
}


def probability(logit: float) -> float:
    """1 / (1 + exp(-logit)) in single precision, which is the precision of scores on the wire: 0..1.

    A client that sends the score of a match as `min_score` therefore gets this match again.
    """
    return to_single(_sigmoid(logit))


def to_single(value: float) -> float:
    """The nearest number of single precision."""
    rounded: float = _SINGLE.unpack(_SINGLE.pack(value))[0]
    return rounded


def _sigmoid(logit: float) -> float:
    """Without overflow."""
    if logit >= 0.0:
        return 1.0 / (1.0 + math.exp(-logit))
    odds = math.exp(max(logit, -700.0))
    return odds / (1.0 + odds)


def pair_logit(score: float) -> float:
    """The log odds of a pair score in 0..1, at most PAIR_LOGIT_LIMIT away from 0."""
    lowest = _sigmoid(-PAIR_LOGIT_LIMIT)
    bounded = min(max(score, lowest), 1.0 - lowest)
    return math.log(bounded / (1.0 - bounded))


@dataclass(frozen=True)
class DefaultFusion:
    """The models that are shipped for a bi-encoder.

    Attributes:
        fitted_on: the judged sets.
        calibration_error: of each set of parts, on queries that the models were not fitted on: the expected
            calibration error over ten bins of equal count.
    """

    fusion: Fusion
    fitted_on: str
    calibration_error: Mapping[str, float]


_ENGLISH = DefaultFusion(
    Fusion(
        cosine=ScoreModel(-9.449, cosine=12.15),
        lexical=ScoreModel(-3.901, lexical=33.70),
        cosine_lexical=ScoreModel(-8.626, cosine=10.11, lexical=14.81),
        # The pair scores of the default cross-encoder get no weight on these sets.
        cosine_pair=ScoreModel(-9.449, cosine=12.15),
        cosine_lexical_pair=ScoreModel(-8.626, cosine=10.11, lexical=14.81),
    ),
    fitted_on="cranfield-en, questions, questions_hard",
    calibration_error={
        "cosine": 0.0045,
        "lexical": 0.014,
        "cosine_lexical": 0.0024,
        "cosine_pair": 0.0045,
        "cosine_lexical_pair": 0.0024,
    },
)
_MULTILINGUAL = DefaultFusion(
    Fusion(
        cosine=ScoreModel(-20.74, cosine=22.02),
        lexical=ScoreModel(-3.746, lexical=29.99),
        cosine_lexical=ScoreModel(-17.12, cosine=17.25, lexical=13.93),
        # Near misses share more terms with the query than paraphrases do, so terms count little here.
        cosine_pair=ScoreModel(-9.16, cosine=9.227, pair=0.606),
        cosine_lexical_pair=ScoreModel(-8.303, cosine=8.117, lexical=2.147, pair=0.5952),
        pair_from=0.92,
        pair_depth=10,
    ),
    fitted_on="questions, questions_hard, both in Chinese, helpdesk_zh, helpdesk_en, cranfield-en; with pair"
    " scores also near_miss_en and near_miss_zh, first halves",
    calibration_error={
        "cosine": 0.019,
        "lexical": 0.015,
        "cosine_lexical": 0.015,
        "cosine_pair": 0.043,
        "cosine_lexical_pair": 0.043,
    },
)
# For bi-encoders that DEFAULTS does not name.
GENERIC = "generic"
# By the name of the bi-encoder. `python -m bench.fusion` fits an entry and prints it.
DEFAULTS: dict[str, DefaultFusion] = {
    "textmatch-bi-encoder": _MULTILINGUAL,
    "textmatch-bi-encoder-en": _ENGLISH,
    GENERIC: _ENGLISH,
}


def default_fusion(model_id: str) -> Fusion:
    """The models that are shipped for a bi-encoder, by its model id: a name, a hyphen and a hash."""
    name = model_id.rpartition("-")[0]
    return DEFAULTS.get(name, DEFAULTS[GENERIC]).fusion


def fusion_of(notes: Mapping[str, object], model_id: str) -> Fusion:
    """The tuned models in the notes of a collection, or the default ones of its bi-encoder."""
    noted = notes.get(FUSION_NOTE)
    if noted is None:
        return default_fusion(model_id)
    try:
        return from_mapping(noted)
    except InvalidInput as error:
        _log.warning(
            "the tuned score models of the collection are invalid and not used", extra={"error": str(error)}
        )
        return default_fusion(model_id)


def to_mapping(fusion: Fusion) -> dict[str, Any]:
    """JSON-like values, for the notes of a collection.

    `{"cosine": {"intercept": -8, "cosine": 10}, ..., "pair_from": 0.9, "pair_depth": 20}`
    """
    models = {
        name: {
            key: value for key, value in asdict(getattr(fusion, name)).items() if key in {"intercept", *parts}
        }
        for name, parts in PART_SETS.items()
    }
    return {**models, "pair_from": fusion.pair_from, "pair_depth": fusion.pair_depth}


def from_mapping(values: object) -> Fusion:
    """The reverse of `to_mapping`.

    Raises:
        InvalidInput: naming the value that is missing or out of range.
    """
    given = _mapping("", values)
    models = {name: _model(name, given.get(name)) for name in PART_SETS}
    pair_from = _number("pair_from", given.get("pair_from"), -math.inf)
    pair_depth = _number("pair_depth", given.get("pair_depth"), 1.0)
    if pair_depth > MAX_PAIR_DEPTH or not pair_depth.is_integer():
        raise InvalidInput.of_field(
            "score_fusion.pair_depth",
            f"is {pair_depth!r}; it must be a whole number up to {MAX_PAIR_DEPTH:,}",
        )
    return Fusion(**models, pair_from=pair_from, pair_depth=int(pair_depth))


def _model(name: str, values: object) -> ScoreModel:
    model = _mapping(name, values)
    intercept = _number(f"{name}.intercept", model.get("intercept"), -math.inf)
    weights = {part: _number(f"{name}.{part}", model.get(part), 0.0) for part in PART_SETS[name]}
    return ScoreModel(intercept, **weights)


def _mapping(name: str, value: object) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    raise InvalidInput.of_field(f"score_fusion.{name}".rstrip("."), f"is {value!r}; it must be an object")


def _number(name: str, value: object, lowest: float) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and value >= lowest:  # type: ignore[arg-type,operator]
        return float(value)  # type: ignore[arg-type]
    limit = f"{lowest:.0f} or more" if math.isfinite(lowest) else "a number"
    raise InvalidInput.of_field(f"score_fusion.{name}", f"is {value!r}; it must be {limit}")

"""Labels of pairs: scores in a range, or classes with an order and a worth.

    canonical_label("1.0") == canonical_label("1") == "1"
    parse_score("4", ScoreRange(0, 5)) == 0.8
    find_classes(["yes", "no"], "") == LabelClasses(("no", "yes"), (0.0, 1.0))

Two labels are equal if they are equal as numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from textmatch.errors import InvalidInput
from textmatch.io.columns import KNOWN_CLASSES, UNLABELLED, WORTH_OF_NAME, parse_number

Score = TypeVar("Score", float, NDArray[np.float64])

# More classes than this are scores.
_MAX_CLASSES = 20


class InvalidLabel(ValueError):
    """A label cannot be used. The message says why; the reader of the file adds the place."""


@dataclass(frozen=True)
class ScoreRange:
    """The lowest and the highest score that a file may contain."""

    lowest: float = 0.0
    highest: float = 1.0

    @classmethod
    def of_option(cls, limits: tuple[float, float]) -> Self:
        """The range that `--score-range` gives.

        Raises:
            InvalidInput: it is empty or not finite.
        """
        # Also refuses NaN, for which every comparison is false.
        if not -math.inf < limits[0] < limits[1] < math.inf:
            raise InvalidInput.of_field("score-range", "the lowest score must be below the highest")
        return cls(*limits)

    def normalise(self, score: Score) -> Score:
        """A score, or each of an array of scores, mapped from this range to 0..1."""
        return (score - self.lowest) / (self.highest - self.lowest)

    def denormalise(self, share: float) -> float:
        """A score in 0..1 mapped to this range."""
        return self.lowest + share * (self.highest - self.lowest)


UNIT_RANGE = ScoreRange()


@dataclass(frozen=True)
class LabelClasses:
    """Names and scores of the classes, in the order of the classifier's outputs."""

    names: tuple[str, ...]
    scores: tuple[float, ...]

    def __str__(self) -> str:
        """`no (score 0), yes (score 1)`."""
        return ", ".join(
            f"{name} (score {score:g})" for name, score in zip(self.names, self.scores, strict=True)
        )

    def score_of(self, text: str) -> float:
        """The score of the class that a cell names.

        Raises:
            InvalidLabel: it names none of the classes.
        """
        label = canonical_label(text)
        if label not in self.names:
            raise InvalidLabel(f'class "{label}" is not one of {", ".join(self.names)}')
        return self.scores[self.names.index(label)]

    def check(self, labels: Iterable[str], name: str) -> None:
        """Refuse labels of other classes.

        Raises:
            InvalidInput: naming the file and the first such row.
        """
        for row, label in enumerate(labels, start=1):
            if label not in self.names:
                problem = f'class "{label}" is not one of {", ".join(self.names)}'
                raise InvalidInput.of_field(f"{name} row {row}", problem)


def canonical_label(text: str) -> str:
    """The same text for equal labels: "1", "1.0" and "01" are "1"; "Yes" is "yes"; "urgent " is "urgent".

    Raises:
        InvalidLabel: it is NaN or infinite.
    """
    name = text.strip()
    number = parse_number(name)
    if number is None:
        return name.lower() if name.lower() in WORTH_OF_NAME else name
    if not math.isfinite(number):
        raise InvalidLabel(f'label "{name}" is not a finite number')
    # `+ 0.0` turns -0.0 into 0.0.
    return str(int(number)) if number.is_integer() else repr(number + 0.0)


def parse_score(
    text: str, score_range: ScoreRange | None = UNIT_RANGE, classes: LabelClasses | None = None
) -> float:
    """A score mapped from the range to 0..1; as it is without a range. A known class name has its worth.

    Args:
        text: of the cell.
        score_range: of scores.
        classes: in place of scores and known names.

    Raises:
        InvalidLabel: it is neither a number in the range nor a known class name; or not one of the classes.
    """
    if classes is not None:
        return classes.score_of(text)
    name = text.strip()
    score = parse_number(name)
    if score is None:
        worth = WORTH_OF_NAME.get(name.lower())
        if worth is None:
            raise InvalidLabel(f'score "{text}" is not a number')
        return worth
    if score_range is None:
        if not math.isfinite(score):
            raise InvalidLabel(f"score {name} is not finite")
        return score
    # Also refuses NaN, for which every comparison is false.
    if not score_range.lowest <= score <= score_range.highest:
        raise InvalidLabel(
            f"score {name} is outside {score_range.lowest:g}..{score_range.highest:g}; for other scores use"
            " --score-range, as in --score-range 0 5"
        )
    return score_range.normalise(score)


def find_classes(labels: Sequence[str], chosen: str) -> LabelClasses:
    """The classes that the option gives (`no=0,maybe=0.5,yes=1`), or those of the labels.

    Numeric classes are in numeric order and get scores from 0 to 1 in equal steps. Names such as yes and no,
    or those of natural language inference, have fixed scores.

    Args:
        labels: as `canonical_label` gives them.
        chosen: the option; "": none.

    Raises:
        InvalidInput: they cannot be found or do not fit.
    """
    classes = parse_classes(chosen) if chosen else _classes_of(set(labels))
    if len(set(labels)) < 2 or len(classes.names) < 2:
        raise InvalidInput.of_field("label", f'all pairs have the class "{labels[0]}"; two are needed')
    classes.check(labels, "train")
    return classes


def require_two_scores(scores: Iterable[float], way_out: str) -> None:
    """Refuse pairs that all have one score: a model learns to give it to every pair.

    Args:
        scores: of the training pairs.
        way_out: what trains on such pairs, for the message.

    Raises:
        InvalidInput: there is only one score.
    """
    found = set(scores)
    if len(found) < 2:
        shown = ", ".join(f"{score:g}" for score in found)
        problem = f"all pairs have the score {shown}; a model would learn to give it to every pair. {way_out}"
        raise InvalidInput.of_field("label", problem)


def _classes_of(labels: set[str]) -> LabelClasses:
    if missing := sorted(labels & UNLABELLED):
        problem = (
            f'the label "{missing[0]}" marks pairs without a label in many data sets: remove these rows, or'
            f" give it a score, as in --classes={missing[0]}=0,1=1"
        )
        raise InvalidInput.of_field("label", problem)
    for group in KNOWN_CLASSES:
        if labels <= group.keys():
            names = sorted(labels, key=group.__getitem__)
            return LabelClasses(tuple(names), tuple(group[name] for name in names))
    if len(labels) > _MAX_CLASSES:
        problem = f"the file has {len(labels)} different labels: these are scores; use siamese or regression"
        raise InvalidInput.of_field("label", problem)
    try:
        names = sorted(labels, key=float)
    except ValueError:
        shown = ", ".join(sorted(labels)[:5])
        problem = f"give the score of each class with --classes, such as no=0,yes=1; the file has {shown}"
        raise InvalidInput.of_field("classes", problem) from None
    highest = max(len(names) - 1, 1)
    return LabelClasses(tuple(names), tuple(number / highest for number in range(len(names))))


def parse_classes(text: str) -> LabelClasses:
    """The classes of an option such as `no=0,maybe=0.5,yes=1`.

    Raises:
        InvalidInput: it is not a list of names and scores in 0..1.
    """
    names: list[str] = []
    scores: list[float] = []
    for part in text.split(","):
        name, _, score = part.rpartition("=")
        try:
            scores.append(float(score))
            names.append(canonical_label(name))
        except InvalidLabel as error:
            raise InvalidInput.of_field("classes", str(error)) from error
        except ValueError:
            raise InvalidInput.of_field("classes", f'"{part}" is not NAME=SCORE, such as yes=1') from None
        if not names[-1] or not 0 <= scores[-1] <= 1:
            raise InvalidInput.of_field("classes", f'"{part}" needs a name and a score in 0..1')
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInput.of_field("classes", f'the class "{repeated[0]}" is given twice')
    return LabelClasses(tuple(names), tuple(scores))

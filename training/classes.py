"""The classes of labelled pairs, and what each is worth as a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textmatch.errors import InvalidInput
from training.pairs import ClassPair

_KNOWN_SCORES = {"contradiction": 0.0, "neutral": 0.5, "entailment": 1.0}


@dataclass(frozen=True)
class Classes:
    """Names and scores of the classes, in the order of the classifier's outputs."""

    names: tuple[str, ...]
    scores: tuple[float, ...]


def find_classes(pairs: Sequence[ClassPair], chosen: str) -> Classes:
    """The classes as the caller gives them (`no=0,maybe=0.5,yes=1`), or as the pairs show them.

    Numbers are worth more the greater they are, in equal steps; the three classes of language inference have
    scores of their own.

    Raises:
        InvalidInput: they cannot be found or do not fit.
    """
    classes = _parse(chosen) if chosen else _found({pair.label for pair in pairs})
    if len(classes.names) < 2:
        raise InvalidInput.of_field("label", f'all pairs have the class "{classes.names[0]}"; two are needed')
    check_labels(pairs, classes, "train")
    return classes


def check_labels(pairs: Sequence[ClassPair], classes: Classes, name: str) -> None:
    """Refuse pairs of other classes.

    Raises:
        InvalidInput: naming the first one.
    """
    for row, pair in enumerate(pairs, start=1):
        if pair.label not in classes.names:
            names = ", ".join(classes.names)
            raise InvalidInput.of_field(f"{name} row {row}", f'class "{pair.label}" is none of {names}')


def _found(labels: set[str]) -> Classes:
    if labels <= _KNOWN_SCORES.keys():
        names = sorted(labels, key=_KNOWN_SCORES.__getitem__)
        return Classes(tuple(names), tuple(_KNOWN_SCORES[name] for name in names))
    try:
        names = sorted(labels, key=float)
    except ValueError:
        shown = ", ".join(sorted(labels)[:5])
        problem = f"say with --classes what each class is worth, such as no=0,yes=1; the file has {shown}"
        raise InvalidInput.of_field("classes", problem) from None
    highest = max(len(names) - 1, 1)
    return Classes(tuple(names), tuple(number / highest for number in range(len(names))))


def _parse(text: str) -> Classes:
    names: list[str] = []
    scores: list[float] = []
    for part in text.split(","):
        name, _, score = part.rpartition("=")
        try:
            scores.append(float(score))
        except ValueError:
            raise InvalidInput.of_field("classes", f'"{part}" is not NAME=SCORE, such as yes=1') from None
        if not name.strip() or not 0 <= scores[-1] <= 1:
            raise InvalidInput.of_field("classes", f'"{part}" needs a name and a score in 0..1')
        names.append(name.strip())
    return Classes(tuple(names), tuple(scores))

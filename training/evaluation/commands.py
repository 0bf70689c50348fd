"""Measure models: `textmatch evaluate pairs` and `textmatch evaluate retrieval`."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from transformers.utils import logging as transformers_logging

from textmatch.console import print_json, print_line, print_table
from textmatch.errors import InvalidInput
from textmatch.models.engines import AUTO
from training.data_files import FileForm
from training.evaluation.bootstrap import COVERAGE, REPEATS
from training.evaluation.pair_metrics import BINS
from training.evaluation.pairs import MeasuredPairs, PairFile, measure_on_pairs, read_pair_file
from training.evaluation.report import Column, as_json, table
from training.evaluation.retrieval import (
    Ranking,
    as_searcher,
    measure_ranking,
    read_collection,
    reordered,
    rerank,
    search,
)
from training.evaluation.scorers import CrossEncoderSystem, ModelSystem, System, load_system
from training.pairs import ScoreRange
from training.plots import plot_histogram, plot_loss, plot_precision_recall, plot_reliability

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Measure models.")

_DEEPEST_NDCG = 10
_NOT_FOR_FILES = re.compile(r"[^\w.-]+")
_MODEL_HELP = "a directory, a bundled model, a name on the Hugging Face hub, or char-tfidf"

ScoreRangeOption = Annotated[
    tuple[float, float], typer.Option(help="Least and greatest label of the files, such as 0 5.")
]
HeaderOption = Annotated[
    bool | None, typer.Option("--header/--no-header", help="Whether files begin with a header.")
]
ColumnsOption = Annotated[str, typer.Option(help="Columns to read, by name or number: 2,3,label.")]
PositiveOption = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Labels, as shares of their range, that count as the same.")
]
RepeatsOption = Annotated[int, typer.Option(min=1, help="Resamples for the intervals.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Decides resamples and halves.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command()
def pairs(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="MODEL... FILE", help=f"Models, each {_MODEL_HELP}; and a file of pairs."),
    ],
    dev: Annotated[
        Path | None,
        typer.Option(help="Pairs to choose the accuracy's threshold on; else halves judge each other."),
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder to write plots to, as PNG.")] = None,
    score_range: ScoreRangeOption = (0.0, 1.0),
    positive_from: PositiveOption = 0.5,
    header: HeaderOption = None,
    columns: ColumnsOption = "",
    repeats: RepeatsOption = REPEATS,
    seed: SeedOption = 0,
    device: DeviceOption = AUTO,
    as_json_document: JsonOption = False,
) -> None:
    """Measure how models score pairs with labels, side by side."""
    *models, file = arguments
    if not models:
        raise InvalidInput.of_field("MODEL", "is missing: give at least one before the file of pairs")
    form = FileForm(header, tuple(columns.split(",")) if columns else ())
    label_range = score_range_of(score_range)
    test = read_pair_file(Path(file), form, label_range, positive_from)
    dev_file = read_pair_file(dev, form, label_range, positive_from) if dev else None
    quieten_libraries()
    systems = [load_system(name, device) for name in dict.fromkeys(models)]
    measured = [
        one
        for system in systems
        for one in measure_on_pairs(system, test, dev_file, repeats=repeats, seed=seed)
    ]
    if plots:
        _plot(plots, systems, measured, test)
    shown = [Column(one.name, one.model_id, one.figures, {"threshold": one.threshold}) for one in measured]
    threshold_from = str(dev) if dev else "halves of the file"
    if as_json_document:
        print_json(
            {
                "file": file,
                "pairs": len(test.pairs),
                "positives": int(test.is_positive.sum()),
                "threshold_from": threshold_from,
                "bins": BINS,
                "repeats": repeats,
                "seed": seed,
                "models": as_json(shown),
            }
        )
        return
    caption = (
        f"In brackets {COVERAGE:.0%} of {repeats} resamples (seed {seed}); ± differences to the first model. "
        f"Same: label from {positive_from:g} on, {test.is_positive.sum()} pairs. "
        f"Threshold from {threshold_from}. Calibration error in {BINS} equal bins of the score."
    )
    print_line(f"{file}, {len(test.pairs)} pairs")
    print_table(table(shown))
    print_line(caption)


@app.command()
def retrieval(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... DIR",
            help=f"Bi-encoders, each {_MODEL_HELP}; and a folder with corpus, queries and qrels.",
        ),
    ],
    rerank_by: Annotated[
        str, typer.Option("--rerank", metavar="MODEL", help="Cross-encoder that reorders the candidates.")
    ] = "",
    candidates: Annotated[int, typer.Option(min=1, help="Documents that are reordered.")] = 100,
    recall_at: Annotated[str, typer.Option(help="Depths of recall.")] = "10,100",
    repeats: RepeatsOption = REPEATS,
    seed: SeedOption = 0,
    device: DeviceOption = AUTO,
    as_json_document: JsonOption = False,
) -> None:
    """Measure how models find documents, by exact search over their embeddings."""
    *models, directory = arguments
    if not models:
        raise InvalidInput.of_field("MODEL", "is missing: give at least one before the folder")
    depths = _depths(recall_at)
    collection = read_collection(Path(directory))
    quieten_libraries()
    reranker = _cross_encoder(rerank_by, device) if rerank_by else None
    shown: list[Column] = []

    def show(name: str, model_id: str, ranking: Ranking) -> None:
        figures = measure_ranking(ranking, collection, depths, repeats=repeats, seed=seed)
        shown.append(Column(name, model_id, figures, {}))

    for system in [as_searcher(load_system(name, device)) for name in dict.fromkeys(models)]:
        found = search(system, collection, max(_DEEPEST_NDCG, *depths))
        show(system.name, system.model_id, found)
        if reranker:
            first = Ranking(found.documents[:, :candidates], found.scores[:, :candidates])
            reranked = reordered(first, rerank(reranker, collection, first))
            show(f"{system.name} + {reranker.name}", f"{system.model_id} + {reranker.model_id}", reranked)
    if as_json_document:
        print_json(
            {
                "directory": directory,
                "documents": len(collection.documents),
                "queries": len(collection.queries),
                "candidates": candidates if reranker else None,
                "repeats": repeats,
                "seed": seed,
                "models": as_json(shown),
            }
        )
        return
    title = f"{directory}, {len(collection.documents)} documents, {len(collection.queries)} queries"
    caption = (
        f"In brackets {COVERAGE:.0%} of {repeats} resamples of the queries (seed {seed}); ± to the first."
    )
    print_line(title)
    print_table(table(shown))
    print_line(caption)


def score_range_of(limits: tuple[float, float]) -> ScoreRange:
    """The range that the option gives.

    Raises:
        InvalidInput: it is empty.
    """
    # Written so that NaN, which compares false with everything, is refused too.
    if not limits[0] < limits[1]:
        raise InvalidInput.of_field("score-range", "the least label must be below the greatest")
    return ScoreRange(*limits)


def quieten_libraries() -> None:
    """Only what we print is for people; libraries say nothing below an error, and draw no bars."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)


def _plot(folder: Path, systems: Sequence[System], measured: Sequence[MeasuredPairs], test: PairFile) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(measured, start=1):
        start = f"{number}-{_NOT_FOR_FILES.sub('-', Path(one.name).name).strip('-')}"
        plot_histogram(one.scores, test.is_positive, one.name, folder / f"{start}-histogram.png")
        plot_reliability(one.scores, test.labels, one.name, folder / f"{start}-reliability.png")
        plot_precision_recall(
            one.scores, test.is_positive, one.name, folder / f"{start}-precision-recall.png"
        )
    for system in systems:
        if isinstance(system, ModelSystem):
            plot_loss(system.directory, system.name, folder / f"{system.model_id}-loss.png")


def _depths(text: str) -> list[int]:
    depths = [int(one) if one.strip().isdecimal() else 0 for one in text.split(",")]
    if min(depths) < 1:
        raise InvalidInput.of_field(
            "recall-at", f'"{text}" is no list of whole numbers from 1, such as 10,100'
        )
    return depths


def _cross_encoder(name: str, device: str) -> CrossEncoderSystem:
    system = load_system(name, device)
    if not isinstance(system, CrossEncoderSystem):
        raise InvalidInput.of_field("rerank", f'"{name}" is no cross-encoder')
    return system

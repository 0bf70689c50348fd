"""The commands of `textmatch evaluate`: pairs, retrieval, near-misses and duplicates, and their plots."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import numpy as np
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, precision_recall_curve
from transformers.utils import logging as transformers_logging

from textmatch.console import print_json, print_line, print_table
from textmatch.errors import InvalidInput
from textmatch.io.data_files import FileFormat
from textmatch.models.engines import AUTO
from training.evaluation.bootstrap import COVERAGE, REPEATS, Values
from training.evaluation.matching import (
    ALL_KINDS,
    Half,
    Ranking,
    measure_duplicates,
    measure_near_misses,
    rank_by_pairs,
    rank_by_recall,
    read_duplicates,
    read_near_misses,
)
from training.evaluation.pairs import (
    BINS,
    FOLDS,
    Flags,
    MeasuredPairs,
    PairFile,
    measure_on_pairs,
    read_pair_file,
    reliability_table,
)
from training.evaluation.report import (
    EvaluatedModel,
    as_json,
    lost_to_recall,
    reliability_as_table,
    table,
)
from training.evaluation.retrieval import (
    ExactIndex,
    RankedDocuments,
    as_searcher,
    measure_ranking,
    read_retrieval_set,
    reordered,
    rerank,
)
from training.evaluation.scorers import CrossEncoderSystem, ModelSystem, System, load_system
from training.labels import ScoreRange
from training.model_files import HISTORY
from training.settings import ColumnsOption, DeviceOption, HeaderOption, ScoreRangeOption

_DEEPEST_NDCG = 10
_NOT_FOR_FILES = re.compile(r"[^\w.-]+")
_MODEL_HELP = "a directory, a bundled model, a name on the Hugging Face hub, or char-tfidf"
_DEV_METRICS = frozenset({"eval_loss", "eval_spearman", "eval_accuracy"})
_HISTOGRAM_BINS = 40
_DOTS_PER_INCH = 120


def plot_histogram(scores: Values, is_positive: Flags, title: str, path: Path) -> None:
    """The distribution of the scores of positive and of other pairs."""
    with _axes(path) as axes:
        edges = np.linspace(0, 1, _HISTOGRAM_BINS + 1)
        for selected, label in ((~is_positive, "different"), (is_positive, "same")):
            axes.hist(scores[selected], bins=edges.tolist(), alpha=0.6, label=f"{label} ({selected.sum()})")
        axes.set(xlabel="score", ylabel="pairs", title=title)
        axes.legend()


def plot_reliability(scores: Values, labels: Values, title: str, path: Path) -> None:
    """Mean label against mean score of each bin; the diagonal is perfect calibration."""
    with _axes(path) as axes:
        axes.plot([0, 1], [0, 1], linestyle="--", color="grey")
        bins = reliability_table(scores, labels)
        axes.plot([one.mean_score for one in bins], [one.mean_label for one in bins], marker="o")
        for one in bins:
            place = (one.mean_score, one.mean_label)
            axes.annotate(str(one.pairs), place, textcoords="offset points", xytext=(6, -10), fontsize=7)
        axes.set(xlabel="mean score", ylabel="mean label", title=title, xlim=(0, 1), ylim=(0, 1))


def plot_precision_recall(scores: Values, is_positive: Flags, title: str, path: Path) -> None:
    """Precision against recall over all thresholds. No plot if no pair is positive."""
    if not is_positive.any():
        return
    precisions, recalls, _ = precision_recall_curve(is_positive, scores)
    average = average_precision_score(is_positive, scores)
    with _axes(path) as axes:
        axes.plot(recalls, precisions)
        axes.set(
            xlabel="recall", ylabel="precision", title=f"{title}\naverage precision {average:.3f}",
            xlim=(0, 1), ylim=(0, 1.02),
        )  # fmt: skip


def plot_loss(model_directory: Path, title: str, path: Path) -> None:
    """Training loss and dev metric by step. No plot if the model has no training history."""
    file = model_directory / HISTORY
    if not file.is_file():
        return
    history = json.loads(file.read_text(encoding="utf-8"))
    losses = _series(history, "loss")
    measured = sorted({key for entry in history for key in entry} & _DEV_METRICS)
    with _axes(path) as axes:
        axes.plot(*losses, label="loss")
        axes.set(xlabel="step", ylabel="loss", title=title)
        if measured:
            other = axes.twinx()
            for name in measured:
                other.plot(*_series(history, name), marker="o", color="tab:orange", label=name[5:])
            other.set_ylabel("dev")
            other.legend(loc="upper center")
        axes.legend(loc="upper right")


def _series(history: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    entries = [entry for entry in history if name in entry and "step" in entry]
    return [entry["step"] for entry in entries], [float(entry[name]) for entry in entries]


@contextmanager
def _axes(path: Path) -> Iterator[Axes]:
    """The axes of one plot, which is saved at the end of the block."""
    # A figure without pyplot needs no display and keeps no global state.
    with mpl.rc_context({"font.sans-serif": ["DejaVu Sans"]}):
        figure = Figure(figsize=(6, 4.5), layout="constrained")
        yield figure.add_subplot()
        figure.savefig(path, dpi=_DOTS_PER_INCH, format="png")


app = typer.Typer(add_completion=False, no_args_is_help=True, help="Evaluate models.")


PositiveOption = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Lowest label of a positive pair, as a share of the range.")
]
ClassesOption = Annotated[
    str, typer.Option(help="Score of each label that is a class, as in no=0,maybe=0.5,yes=1.")
]
RepeatsOption = Annotated[int, typer.Option(min=1, help="Resamples for the intervals.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of the resamples, folds and draws.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command()
def pairs(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="MODEL... FILE", help=f"Models, each {_MODEL_HELP}; and a file of pairs."),
    ],
    dev: Annotated[
        Path | None,
        typer.Option(help="Pairs to choose the accuracy's threshold on. Default: cross-validation."),
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder to write plots to, as PNG.")] = None,
    reliability: Annotated[
        bool, typer.Option("--reliability", help="Show mean score and mean label of each bin of scores.")
    ] = False,
    score_range: ScoreRangeOption = (0.0, 1.0),
    classes: ClassesOption = "",
    positive_from: PositiveOption = 0.5,
    header: HeaderOption = None,
    columns: ColumnsOption = "",
    repeats: RepeatsOption = REPEATS,
    seed: SeedOption = 0,
    device: DeviceOption = AUTO,
    as_json_document: JsonOption = False,
) -> None:
    """Evaluate models side by side on pairs with labels."""
    models, file = _models_and_file(arguments, "the file of pairs")
    layout = FileFormat.of_options(header, columns), ScoreRange.of_option(score_range), positive_from, classes
    test = read_pair_file(Path(file), *layout)
    dev_file = read_pair_file(dev, *layout) if dev else None
    quieten_libraries()
    systems = [load_system(name, device) for name in models]
    measured = [
        one
        for system in systems
        for one in measure_on_pairs(system, test, dev_file, repeats=repeats, seed=seed)
    ]
    if plots:
        _plot(plots, systems, measured, test)
    tables = [reliability_table(one.scores, test.labels) for one in measured]
    shown = [
        EvaluatedModel(one.name, one.model_id, one.metrics, {"threshold": one.threshold}, bins)
        for one, bins in zip(measured, tables, strict=True)
    ]
    threshold_from = str(dev) if dev else f"{FOLDS}-fold cross-validation"
    _print_result(
        shown,
        as_json_document,
        {
            "file": file,
            "pairs": len(test.pairs),
            "positives": int(test.is_positive.sum()),
            "threshold_from": threshold_from,
            "bins": BINS,
            "repeats": repeats,
            "seed": seed,
        },
        title=f"{file}, {len(test.pairs)} pairs",
        caption=f"Positive: label of {positive_from:g} or more, {test.is_positive.sum()} pairs. "
        f"Threshold from {threshold_from}. Calibration error over {BINS} equal bins.",
        warnings=_lost(shown, systems, "spearman"),
    )
    if reliability and not as_json_document:
        for one in shown:
            print_table(reliability_as_table(one))


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
        str, typer.Option("--rerank", metavar="MODEL", help="Cross-encoder that reranks the candidates.")
    ] = "",
    candidates: Annotated[int, typer.Option(min=1, help="Documents to rerank.")] = 100,
    recall_at: Annotated[str, typer.Option(help="Depths of recall.")] = "10,100",
    repeats: RepeatsOption = REPEATS,
    seed: SeedOption = 0,
    device: DeviceOption = AUTO,
    as_json_document: JsonOption = False,
) -> None:
    """Evaluate models on retrieval, by exact search over their embeddings."""
    models, directory = _models_and_file(arguments, "the folder")
    depths = _depths(recall_at)
    test_set = read_retrieval_set(Path(directory))
    quieten_libraries()
    reranker = _cross_encoder(rerank_by, device) if rerank_by else None
    shown: list[EvaluatedModel] = []
    warnings: list[str] = []

    def show(name: str, model_id: str, ranking: RankedDocuments) -> None:
        metrics = measure_ranking(ranking, test_set, depths, repeats=repeats, seed=seed)
        shown.append(EvaluatedModel(name, model_id, metrics, {}))

    for system in [as_searcher(load_system(name, device)) for name in models]:
        index = ExactIndex(system, test_set.documents)
        found = index.search(test_set.queries, max(_DEEPEST_NDCG, *depths))
        show(system.name, system.model_id, found)
        if reranker:
            first = RankedDocuments(found.documents[:, :candidates], found.scores[:, :candidates])
            reranked = reordered(first, rerank(reranker, test_set, first))
            show(f"{system.name} + {reranker.name}", f"{system.model_id} + {reranker.model_id}", reranked)
            warnings += lost_to_recall(shown[-1:], shown[-2:-1], "ndcg@10")
    documents, queries = len(test_set.documents), len(test_set.queries)
    _print_result(
        shown,
        as_json_document,
        {
            "directory": directory,
            "documents": documents,
            "queries": queries,
            "candidates": candidates if reranker else None,
            "repeats": repeats,
            "seed": seed,
        },
        title=f"{directory}, {documents} documents, {queries} queries",
        warnings=warnings,
    )


@app.command()
def near_misses(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... FILE",
            help=f"Models, each {_MODEL_HELP}; and a TSV file: kind, query, paraphrase, near miss.",
        ),
    ],
    half: Annotated[Half, typer.Option(help="Which lines of the file to use.")] = Half.ALL,
    both_orders: Annotated[
        bool, typer.Option("--both-orders", help="Score each pair in both orders and take the mean.")
    ] = False,
    repeats: RepeatsOption = REPEATS,
    seed: SeedOption = 0,
    header: HeaderOption = None,
    columns: ColumnsOption = "",
    device: DeviceOption = AUTO,
    as_json_document: JsonOption = False,
) -> None:
    """Evaluate how often a model scores a paraphrase above a near miss."""
    models, file = _models_and_file(arguments, "the file of triples")
    triples = read_near_misses(Path(file), half, FileFormat.of_options(header, columns))
    quieten_libraries()
    systems = [load_system(name, device) for name in models]
    shown = [
        EvaluatedModel(name, system.model_id, metrics, {})
        for system in systems
        for name, metrics in measure_near_misses(
            system, triples, both_orders=both_orders, repeats=repeats, seed=seed
        ).items()
    ]
    hard = sum(triple.is_hard for triple in triples)
    order = "mean of both orders" if both_orders else "query first"
    _print_result(
        shown,
        as_json_document,
        {
            "file": file,
            "half": half.value,
            "triples": len(triples),
            "hard": hard,
            "order": order,
            "repeats": repeats,
            "seed": seed,
        },
        title=f"{file}, {len(triples)} triples ({half.value}): share whose paraphrase is above the near miss",
        caption=f"Pairs are scored {order}. In {hard} triples the near miss shares more words "
        "with the query than the paraphrase.",
        warnings=_lost(shown, systems, ALL_KINDS),
    )


@app.command()
def duplicates(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... FILE",
            help=f"Models, each {_MODEL_HELP}; and a file of pairs with the labels 0 and 1.",
        ),
    ],
    recall: Annotated[
        str, typer.Option(metavar="MODEL", help="Bi-encoder whose candidates the cross-encoders score.")
    ] = "",
    candidates: Annotated[int, typer.Option(min=1, max=100, help="Candidates to score per query.")] = 50,
    queries: Annotated[int, typer.Option(min=0, help="Queries to draw; 0: all.")] = 0,
    header: HeaderOption = None,
    columns: ColumnsOption = "",
    repeats: RepeatsOption = REPEATS,
    seed: SeedOption = 0,
    device: DeviceOption = AUTO,
    as_json_document: JsonOption = False,
) -> None:
    """Evaluate models on finding the duplicates of a sentence among all sentences of a file of pairs."""
    models, file = _models_and_file(arguments, "the file of pairs")
    file_format = FileFormat.of_options(header, columns)
    test_set = read_duplicates(Path(file), file_format, query_count=queries, seed=seed)
    quieten_libraries()
    systems = [load_system(name, device) for name in dict.fromkeys([*([recall] if recall else []), *models])]
    recalled: Ranking | None = None
    if recall:
        recalled = rank_by_recall(as_searcher(systems[0]), test_set)
    shown: list[EvaluatedModel] = []
    for number, system in enumerate(systems):
        if isinstance(system, CrossEncoderSystem):
            if recalled is None:
                raise InvalidInput.of_field("recall", f'is missing: "{system.name}" is a cross-encoder')
            ranking = rank_by_pairs(system, test_set, recalled, candidates)
        else:
            is_recall = recalled is not None and number == 0
            ranking = recalled if recalled and is_recall else rank_by_recall(as_searcher(system), test_set)
        metrics = measure_duplicates(system, ranking, test_set, candidates, repeats=repeats, seed=seed)
        costs = {"ms per query": ranking.ms_per_query, "seconds for the corpus": ranking.corpus_seconds}
        shown.append(EvaluatedModel(system.name, system.model_id, metrics, costs))
    documents, count = len(test_set.retrieval.documents), len(test_set.own)
    _print_result(
        shown,
        as_json_document,
        {
            "file": file,
            "documents": documents,
            "queries": count,
            "pairs": len(test_set.pairs),
            "candidates": candidates,
            "repeats": repeats,
            "seed": seed,
        },
        title=f"{file}, {documents} sentences, {count} queries",
        caption=f"Accept decisions: over the first {candidates} candidates of all queries. Labelled pairs: "
        f"{len(test_set.pairs)}, threshold from {FOLDS}-fold cross-validation.",
        warnings=_lost(shown, systems, "map"),
    )


def _models_and_file(arguments: Sequence[str], file: str) -> tuple[list[str], str]:
    *models, path = arguments
    if not models:
        raise InvalidInput.of_field("MODEL", f"is missing: give at least one before {file}")
    return list(dict.fromkeys(models)), path


def _lost(shown: Sequence[EvaluatedModel], systems: Sequence[System], metric: str) -> list[str]:
    """Warnings of the cross-encoders among the systems that are worse than the best of the others."""
    ids = {system.model_id for system in systems if isinstance(system, CrossEncoderSystem)}
    pair_scorers = [model for model in shown if model.model_id in ids]
    return lost_to_recall(pair_scorers, [model for model in shown if model.model_id not in ids], metric)


def _print_result(
    models: Sequence[EvaluatedModel],
    as_json_document: bool,
    values: Mapping[str, Any],
    title: str,
    caption: str = "",
    warnings: Sequence[str] = (),
) -> None:
    if as_json_document:
        print_json({**values, "models": as_json(models), "warnings": list(warnings)})
        return
    print_line(title)
    print_table(table(models))
    resamples = f"{values['repeats']} resamples (seed {values['seed']})"
    intervals = f"In brackets: {COVERAGE:.0%} interval of {resamples}. ±: difference to the first model. "
    print_line(f"{intervals}{caption}".rstrip())
    for warning in warnings:
        print_line(f"warning: {warning}")


def quieten_libraries() -> None:
    """Silence library warnings and progress bars."""
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
        problem = f'"{text}" must be whole numbers from 1, separated by commas: 10,100'
        raise InvalidInput.of_field("recall-at", problem)
    return depths


def _cross_encoder(name: str, device: str) -> CrossEncoderSystem:
    system = load_system(name, device)
    if not isinstance(system, CrossEncoderSystem):
        raise InvalidInput.of_field("rerank", f'"{name}" is not a cross-encoder')
    return system

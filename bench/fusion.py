"""Fits the score models that are shipped: `python -m bench.fusion --data DIR` prints an entry of DEFAULTS.

The judged sets are those of bench.quality; every set has the same weight. The default models of the encoder
answer the queries in the whole stack. Every tenth query also stands among the documents, because identical
texts occur in practice and in none of the sets. The figures are those of held-out queries. `--plot FILE`
draws their reliability diagrams.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bench.quality import QualitySet, SetsByName, complete_answers, served_groups
from bench.report import JsonFile, new_plot, print_table, write_figures
from textmatch.cli.tune import judged_candidates
from textmatch.client import MatchKeywords, TextMatchClient
from textmatch.score_fusion import PART_SETS, ScoreModel, default_fusion
from textmatch.weight_tuning import JudgedCandidates, Quality, Tuning, scores_and_labels, tune
from training.evaluation.matching import Half
from training.evaluation.pairs import reliability_table

_CANDIDATES = 100
_BULK_SECONDS = 3_600.0
_PER_CALL = 10
_QUICK_QUERIES = 20
# Bins of fewer candidates are not drawn.
_MIN_BIN_CANDIDATES = 20
# Every so many queries one has a copy.
_COPIED = 10
# Of the large sets.
_DRAWN_QUERIES = 300


def main(
    data: Annotated[
        Path | None, typer.Option(envvar="TEXTMATCH_BENCH_DATA", help="Folder of data sets.")
    ] = None,
    only: Annotated[
        str, typer.Option(help="Sets to fit to, such as cranfield,questions. Default: all.")
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="A few queries of each set.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw reliability diagrams; needs matplotlib.")] = None,
    json_path: JsonFile = None,
) -> None:
    """Fit the models to all sets, measure them on held-out queries, and print them."""
    model_id, sets = "", dict[str, list[JudgedCandidates]]()
    for address, group in served_groups(data, only, _DRAWN_QUERIES, Half.FIRST, _with_copies):
        for name, one in group.items():
            model_id, sets[name] = _candidates(address, one, _QUICK_QUERIES if quick else None)
    if not sets:
        raise typer.BadParameter("no set is left")
    queries = [
        replace(query, weight=1.0 / (len(sets) * len(some))) for some in sets.values() for query in some
    ]
    shipped = default_fusion(model_id)
    tuning = tune(queries, shipped, shipped)
    figures = _print_quality(sets, tuning)
    typer.echo(_entry(model_id, list(sets), tuning))
    if plot is not None:
        _draw_reliability(queries, tuning, plot)
    write_figures(figures, json_path)


def _with_copies(group: SetsByName) -> SetsByName:
    """The sets, with every tenth query among the documents as an answer to itself."""
    documents = list(next(iter(group.values())).collection.documents)
    prepared = {}
    for name, one in group.items():
        grades = [dict(judged) for judged in one.collection.grades]
        for at in range(0, len(grades), _COPIED):
            grades[at][len(documents)] = 1.0
            documents.append(one.collection.queries[at])
        # All sets share the list, which is complete when it is ingested.
        prepared[name] = replace(one, collection=replace(one.collection, documents=documents, grades=grades))
    return prepared


def _candidates(address: str, one: QualitySet, count: int | None) -> tuple[str, list[JudgedCandidates]]:
    """The model id of the bi-encoder, and the explained candidates of each query."""
    options = MatchKeywords(top_k=_CANDIDATES, rerank=True, explain=True, omit_text=True)
    texts, found = one.collection.queries[:count], list[JudgedCandidates]()
    model_id = ""
    with TextMatchClient(address, bulk_timeout_seconds=_BULK_SECONDS) as client:
        for start in range(0, len(texts), _PER_CALL):
            answers = complete_answers(client, texts[start : start + _PER_CALL], options)
            for at, result in enumerate(answers, start):
                own = str(one.own[at]) if one.own else None
                others = tuple(match for match in result if match.document.id != own)
                grades = {str(document): grade for document, grade in one.collection.grades[at].items()}
                found.append(judged_candidates(replace(result, matches=others), grades))
                model_id = result.bi_encoder_model_id
    return model_id, found


def _print_quality(sets: dict[str, list[JudgedCandidates]], tuning: Tuning) -> dict[str, float]:
    """A table for each set of parts; returns its figures."""
    figures: dict[str, float] = {}
    rows, start = [], 0
    for name, some in sets.items():
        part = slice(start, start + len(some))
        start += len(some)
        for parts in tuning.after:
            before, after = _mean_ndcg(tuning.before[parts], part), _mean_ndcg(tuning.after[parts], part)
            figures[f"ndcg10.{name}.{parts}"] = after
            rows.append([name, parts, f"{before:.4f}", f"{after:.4f}"])
    print_table("nDCG@10 on held-out queries", ["set", "parts", "before", "after"], rows)
    figures |= {f"ece.{parts}": one.calibration_error for parts, one in tuning.after.items()}
    errors = [[parts, f"{one.calibration_error:.4f}"] for parts, one in tuning.after.items()]
    print_table("calibration error on held-out queries", ["parts", "error"], errors)
    return figures


def _mean_ndcg(quality: Quality, part: slice) -> float:
    return float(quality.ndcg[part].mean())


def _entry(model_id: str, sets: list[str], tuning: Tuning) -> str:
    """The entry of DEFAULTS as Python code."""
    models = "\n".join(f"        {name}={_code(getattr(tuning.fusion, name))}," for name in PART_SETS)
    pairs = f"        pair_from={tuning.fusion.pair_from:g},\n        pair_depth={tuning.fusion.pair_depth},"
    errors = {name: round(one.calibration_error, 4) for name, one in tuning.after.items()}
    name = model_id.rpartition("-")[0]
    return (
        f'"{name}": DefaultFusion(\n    Fusion(\n{models}\n{pairs}\n    ),\n'
        f'    fitted_on="{", ".join(sets)}",\n    calibration_error={errors},\n),'
    )


def _code(model: ScoreModel) -> str:
    weights = {"cosine": model.cosine, "lexical": model.lexical, "pair": model.pair}
    return (
        f"ScoreModel({model.intercept:.4g}"
        + "".join(f", {part}={weight:.4g}" for part, weight in weights.items() if weight)
        + ")"
    )


def _draw_reliability(queries: list[JudgedCandidates], tuning: Tuning, path: Path) -> None:
    """Draw the share of relevant candidates over their mean score, held out, for each set of parts.

    Bins are of equal width, because most candidates have low scores; bins of few candidates are left out.
    """
    drawn = new_plot(path, rows=1, size=(6, 6))
    if drawn is None:
        return
    figure, axes = drawn
    axes.plot([0, 1], [0, 1], color="grey", linestyle="dotted")
    for name, measured in tuning.after.items():
        scores, labels = scores_and_labels(queries, name, tuning.held_out)
        bins = [one for one in reliability_table(scores, labels) if one.pairs >= _MIN_BIN_CANDIDATES]
        axes.plot(
            [one.mean_score for one in bins],
            [one.mean_label for one in bins],
            marker="o",
            label=f"{name.replace('_', ' + ')}: error {measured.calibration_error:.3f}",
        )
    axes.set_xlabel("mean score")
    axes.set_ylabel("share of relevant candidates")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    typer.run(main)

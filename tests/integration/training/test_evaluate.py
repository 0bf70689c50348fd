"""`textmatch evaluate` on tiny models, in this process."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from typer.testing import CliRunner

from tests.support.encoder import make_tiny_bi_encoder, make_tiny_cross_encoder
from textmatch.errors import TextMatchError
from textmatch.models.bi_encoder import TorchBiEncoder
from textmatch.models.calibration import Calibration, Logistic, PairClassifier
from training.evaluation.commands import app
from training.evaluation.scorers import is_cross_encoder, load_model_system

WORDS = ["cat", "dog", "sits", "mat", "runs", "park", "the", "a"]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def bi_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a pair classifier and a calibration of the cosine."""
    directory = make_tiny_bi_encoder(tmp_path_factory.mktemp("bi") / "bi")
    weight = np.zeros((2, 96), dtype=np.float32)
    weight[0, 64:] = 1.0
    PairClassifier(weight, np.array([0, 1], dtype=np.float32), (0.0, 1.0)).save(directory)
    Calibration(Logistic(2.0, -1.0), "x").save(directory)
    return directory


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_tiny_cross_encoder(tmp_path_factory.mktemp("cross") / "cross")
    (directory / ".training").mkdir()
    history = [{"step": 10, "loss": 0.5}, {"step": 20, "loss": 0.4, "epoch": 1.0}]
    history += [{"step": 20, "eval_spearman": 0.7}, {"step": 20, "train_runtime": 3.0}]
    (directory / ".training" / "history.json").write_text(json.dumps(history))
    return directory


@pytest.fixture(scope="module")
def pair_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty pairs, scored by the share of words in common."""
    chance = random.Random(0)
    lines = []
    for _ in range(80):
        kept = chance.randint(0, 3)
        first, second = chance.sample(WORDS, 3), chance.sample(WORDS, 3)
        second[:kept] = first[:kept]
        share = len(set(first) & set(second)) / 3
        lines.append(f"{' '.join(first)}\t{' '.join(second)}\t{share:.4f}\n")
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each query's words are those of one document."""
    directory = tmp_path_factory.mktemp("collection")
    texts = ["the cat sits", "a dog runs", "the park", "mat", "cat dog", "a mat in the park"]
    corpus = [{"id": f"d{number}", "text": text} for number, text in enumerate(texts)]
    queries = [{"id": f"q{number}", "text": text} for number, text in enumerate(texts[:4])]
    for name, lines in (("corpus", corpus), ("queries", queries)):
        (directory / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (directory / "qrels.tsv").write_text("".join(f"q{number}\td{number}\t1\n" for number in range(4)))
    return directory


def _run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])


def _json(*arguments: str | Path) -> Any:
    result = _run(*arguments, "--json", "--repeats", "50")
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


def test_models_are_measured_side_by_side(bi_encoder: Path, cross_encoder: Path, pair_file: Path) -> None:
    found = _json("pairs", cross_encoder, bi_encoder, "char-tfidf", pair_file)
    names = [model["name"] for model in found["models"]]
    assert names == [
        str(cross_encoder),
        f"{bi_encoder} (pair-classifier)",
        f"{bi_encoder} (cosine)",
        f"{bi_encoder} (cosine), uncalibrated",
        "char-tfidf",
    ]
    assert (found["pairs"], found["bins"], found["threshold_from"]) == (80, 10, "5-fold cross-validation")
    _, _, calibrated, uncalibrated, baseline = (model["metrics"] for model in found["models"])
    assert calibrated["spearman"]["value"] == pytest.approx(uncalibrated["spearman"]["value"], abs=1e-3)
    assert calibrated["mse"]["value"] != pytest.approx(uncalibrated["mse"]["value"], abs=1e-3)
    assert baseline["spearman"]["low"] < baseline["spearman"]["value"] < baseline["spearman"]["high"]
    assert found["models"][0]["difference"] is None
    difference = found["models"][4]["difference"]["auc"]["value"]
    first = found["models"][0]["metrics"]["auc"]["value"]
    assert difference == pytest.approx(baseline["auc"]["value"] - first)


def test_figures_are_of_the_scores_that_are_served(bi_encoder: Path, pair_file: Path) -> None:
    rows = [line.split("\t") for line in pair_file.read_text().splitlines()]
    model = TorchBiEncoder.load(bi_encoder, "bi")
    first, second = (
        np.concatenate([model.embed(model.tokenize([row[side]], is_query=side == 0)) for row in rows])
        for side in (0, 1)
    )
    scores, _ = model.cosine.score(first, second)
    labels = np.array([float(row[2]) for row in rows])
    found = _json("pairs", bi_encoder, pair_file)["models"][1]["metrics"]
    assert found["spearman"]["value"] == pytest.approx(spearmanr(scores, labels).statistic, abs=1e-3)
    assert found["mse"]["value"] == pytest.approx(float(np.mean((scores - labels) ** 2)), abs=1e-4)


def test_the_threshold_is_chosen_on_dev(cross_encoder: Path, pair_file: Path, tmp_path: Path) -> None:
    nothing_is_the_same = tmp_path / "dev.tsv"
    nothing_is_the_same.write_text("the cat\ta dog\t0\na mat\tthe park\t0\n")
    found = _json("pairs", cross_encoder, pair_file, "--dev", nothing_is_the_same)
    (model,) = found["models"]
    assert found["threshold_from"] == str(nothing_is_the_same)
    rows = [line.split("\t") for line in pair_file.read_text().splitlines()]
    (scored,) = load_model_system(str(cross_encoder), "cpu").score([(row[0], row[1]) for row in rows])
    is_positive = np.array([float(row[2]) >= 0.5 for row in rows])
    is_correct = (scored.scores >= model["threshold"]) == is_positive
    assert model["metrics"]["accuracy"]["value"] == pytest.approx(is_correct.mean())


def test_people_get_a_table(cross_encoder: Path, pair_file: Path) -> None:
    result = _run("pairs", cross_encoder, "char-tfidf", pair_file, "--repeats", "50")
    assert result.exit_code == 0
    for word in ("Spearman", "AUC", "calibration error", "threshold", "± Pearson", "10 equal bins"):
        assert word in result.stdout


def test_plots_are_png_files(cross_encoder: Path, pair_file: Path, tmp_path: Path) -> None:
    _json("pairs", cross_encoder, "char-tfidf", pair_file, "--plots", tmp_path / "plots")
    files = sorted((tmp_path / "plots").iterdir())
    kinds = ["histogram", "precision-recall", "reliability"]
    names = [file.name for file in files]
    assert names[:6] == [f"{start}-{kind}.png" for start in ("1-cross", "2-char-tfidf") for kind in kinds]
    assert names[6].startswith("cross-")
    assert names[6].endswith("-loss.png")
    assert all(file.read_bytes().startswith(PNG) for file in files)


def test_retrieval_finds_and_reranks(bi_encoder: Path, cross_encoder: Path, collection: Path) -> None:
    found = _json(
        "retrieval", "char-tfidf", bi_encoder, collection, "--rerank", cross_encoder,
        "--candidates", "3", "--recall-at", "1,3",
    )  # fmt: skip
    names = [model["name"] for model in found["models"]]
    assert names == [
        "char-tfidf", f"char-tfidf + {cross_encoder}", str(bi_encoder), f"{bi_encoder} + {cross_encoder}",
    ]  # fmt: skip
    figures = [model["metrics"] for model in found["models"]]
    # The text itself is the nearest one; what a reranker leaves among its candidates stays found.
    assert figures[0]["ndcg@10"]["value"] == figures[2]["mrr@10"]["value"] == 1.0
    assert figures[1]["recall@3"]["value"] == 1.0
    assert figures[2]["recall@1"]["value"] == 1.0
    assert (found["documents"], found["queries"], found["candidates"]) == (6, 4, 3)


@pytest.fixture(scope="module")
def near_misses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("near") / "near_miss.tsv"
    rows = [("roles", "the cat sits", "the cat sits", "dog runs"), ("object", "a dog", "a mat", "a dog")]
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    return path


def test_paraphrases_are_above_near_misses_by_kind(
    bi_encoder: Path, cross_encoder: Path, near_misses: Path
) -> None:
    found = _json("near-misses", "char-tfidf", bi_encoder, cross_encoder, near_misses)
    assert found["models"][0]["name"] == "char-tfidf"
    assert (found["triples"], found["hard"], found["order"]) == (2, 1, "query first")
    for model in found["models"][:1] + found["models"][2:4]:
        kinds = {kind: estimate["value"] for kind, estimate in model["metrics"].items()}
        assert kinds == {"all": 0.5, "roles": 1.0, "object": 0.0}
    (second,) = _json("near-misses", "char-tfidf", near_misses, "--half", "second")["models"]
    assert {kind: one["value"] for kind, one in second["metrics"].items()} == {"all": 0.0, "object": 0.0}


def test_both_orders_are_averaged(cross_encoder: Path, tmp_path: Path) -> None:
    triple = "a\tthe cat sits\tdog runs\tthe park\n"
    (tmp_path / "triples.tsv").write_text(triple)
    _, query, paraphrase, near_miss = triple.strip().split("\t")
    pairs = [(query, paraphrase), (paraphrase, query), (query, near_miss), (near_miss, query)]
    (scored,) = load_model_system(str(cross_encoder), "cpu").score(pairs)
    is_above = scored.scores[:2].mean() > scored.scores[2:].mean()
    found = _json("near-misses", cross_encoder, tmp_path / "triples.tsv", "--both-orders")
    assert found["order"] == "mean of both orders"
    assert found["models"][0]["metrics"]["all"]["value"] == float(is_above)


def test_duplicates_are_ranked_and_rescored(bi_encoder: Path, cross_encoder: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.tsv"
    rows = ["the cat sits\tcat sits the\t1", "a dog runs\truns a dog\t1", "the cat sits\tthe park\t0"]
    pairs.write_text("\n".join([*rows, "the park\ta mat\t0", "mat cat\tdog park\t0"]) + "\n")
    found = _json("duplicates", cross_encoder, pairs, "--recall", "char-tfidf", "--candidates", "3")
    recall, rescored = found["models"]
    assert (found["documents"], found["queries"], found["candidates"]) == (8, 2, 3)
    assert recall["name"] == "char-tfidf"
    assert recall["metrics"]["map"]["value"] == recall["metrics"]["accept_ap"]["value"] == 1.0
    assert rescored["metrics"]["recall@10"]["value"] == 1.0
    assert rescored["ms_per_query"] > recall["ms_per_query"] > 0
    # The cross-encoder is random: the warning is there if it is worse.
    is_worse = rescored["metrics"]["map"]["value"] < 1.0
    assert len(found["warnings"]) == is_worse


def test_a_cross_encoder_that_loses_to_recall_is_reported(cross_encoder: Path, pair_file: Path) -> None:
    found = _json("pairs", "char-tfidf", cross_encoder, pair_file)
    assert (
        found["models"][1]["metrics"]["spearman"]["value"]
        < found["models"][0]["metrics"]["spearman"]["value"]
    )
    (warning,) = found["warnings"]
    assert f"{cross_encoder} costs more than char-tfidf and is worse: Spearman" in warning
    result = _run("pairs", "char-tfidf", cross_encoder, pair_file, "--repeats", "50")
    assert "warning: " in result.stdout


def test_reliability_is_shown_on_request(cross_encoder: Path, pair_file: Path) -> None:
    bins = _json("pairs", cross_encoder, pair_file)["models"][0]["reliability"]
    assert sum(one["pairs"] for one in bins) == 80
    result = _run("pairs", cross_encoder, pair_file, "--reliability", "--repeats", "50")
    assert "mean label" in result.stdout


def test_kinds_of_models_are_told_apart(bi_encoder: Path, cross_encoder: Path, tmp_path: Path) -> None:
    assert not is_cross_encoder(bi_encoder)
    assert is_cross_encoder(cross_encoder)
    for architecture in ("BertForSequenceClassification", "BertModel"):
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
        assert is_cross_encoder(tmp_path) == (architecture != "BertModel")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["pairs", "{pairs}"], "MODEL: is missing"),
        (["retrieval", "{collection}"], "MODEL: is missing"),
        (["pairs", "char-tfidf", "absent.tsv"], "absent.tsv: cannot be read"),
        (["pairs", "nowhere/at-all", "{pairs}"], 'no model "nowhere/at-all"'),
        (["pairs", "char-tfidf", "{pairs}", "--score-range", "5", "0"], "score-range: the lowest score"),
        (["pairs", "char-tfidf", "{pairs}", "--score-range", "0", "0.5"], "column 3: score"),
        (["retrieval", "{cross}", "{collection}"], "is a cross-encoder, which can only --rerank"),
        (["retrieval", "char-tfidf", "{collection}", "--rerank", "{bi}"], "is not a cross-encoder"),
        (["retrieval", "char-tfidf", "{collection}", "--rerank", "char-tfidf"], "is not a cross-encoder"),
        (["retrieval", "char-tfidf", "{collection}", "--recall-at", "10,x"], "recall-at"),
        (["retrieval", "char-tfidf", "absent"], "corpus.jsonl: cannot be read"),
        (["near-misses", "char-tfidf", "{pairs}"], "line 1: has 3 columns; it needs 4"),
        (["duplicates", "{cross}", "{pairs}"], 'recall: is missing: "'),
        (["duplicates", "{bi}", "{pairs}", "--recall", "{cross}"], "is a cross-encoder, which can only"),
    ],
)
def test_wrong_inputs_are_one_line(
    bi_encoder: Path,
    cross_encoder: Path,
    pair_file: Path,
    collection: Path,
    arguments: list[str],
    complaint: str,
) -> None:
    places = {"pairs": pair_file, "collection": collection, "bi": bi_encoder, "cross": cross_encoder}
    result = _run(*(one.format(**places) for one in arguments))
    assert isinstance(result.exception, TextMatchError)
    assert complaint in str(result.exception)
    assert "\n" not in str(result.exception)

"""From pairs to a calibration, and to the scores that a real encoder answers with."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from services.encoder.loading import load_models
from services.encoder.settings import EncoderSettings
from tests.support.encoder import make_tiny_bi_encoder, make_tiny_cross_encoder
from tests.support.encoder_server import serve_encoder
from textmatch.errors import TextMatchError
from textmatch.models.calibration import FILE_NAME, Calibration, PairClassifier
from textmatch.models.model_resolver import UnusableModel, model_id
from textmatch.v1 import encoder_service_pb2 as pb
from training.calibrate import calibrate
from training.evaluation.scorers import ScoredPairs, load_model_system

WORDS = ["cat", "dog", "sits", "mat", "runs", "park", "the", "a"]
SCORERS = {
    "cross-encoder": pb.SCORER_CROSS_ENCODER,
    "cosine": pb.SCORER_COSINE,
    "pair-classifier": pb.SCORER_PAIR_CLASSIFIER,
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories "bi" and "cross" of tiny models; "bi" has a pair classifier."""
    base = tmp_path_factory.mktemp("originals")
    make_tiny_cross_encoder(base / "cross")
    bi_encoder = make_tiny_bi_encoder(base / "bi")
    weight = np.zeros((2, 96), dtype=np.float32)
    weight[0, 64:] = 1.0
    PairClassifier(weight, np.array([0, 1], dtype=np.float32), (0.0, 1.0)).save(bi_encoder)
    return base


@pytest.fixture
def models(originals: Path, tmp_path: Path) -> Path:
    """Copies that a test may change."""
    for name in ("bi", "cross"):
        shutil.copytree(originals / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def pairs() -> list[tuple[str, str]]:
    chance = random.Random(0)
    return [(" ".join(chance.sample(WORDS, 3)), " ".join(chance.sample(WORDS, 3))) for _ in range(60)]


def _scored(directory: Path, scorer: str, pairs: list[tuple[str, str]]) -> ScoredPairs:
    found = load_model_system(str(directory), "cpu").score(pairs)
    return next(scored for scored in found if scored.scorer == scorer)


def _write_dev(directory: Path, scorer: str, pairs: list[tuple[str, str]], path: Path) -> Path:
    """Labels that rise with the model's scores but are much lower."""
    scores = _scored(directory, scorer, pairs).scores.astype(np.float64)
    ranks = scores.argsort().argsort() / len(scores)
    rows = zip(pairs, ranks**3, strict=True)
    path.write_text("".join(f"{first}\t{second}\t{label:.4f}\n" for (first, second), label in rows))
    return path


def _run(*arguments: str | Path) -> Any:
    app = typer.Typer(add_completion=False)
    app.command()(calibrate)
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.mark.parametrize("method", ["logistic", "isotonic"])
@pytest.mark.parametrize(
    ("name", "scorer"), [("cross", "cross-encoder"), ("bi", "cosine"), ("bi", "pair-classifier")]
)
async def test_the_encoder_answers_with_calibrated_scores(
    models: Path, pairs: list[tuple[str, str]], name: str, scorer: str, method: str
) -> None:
    directory = models / name
    before, id_before = _scored(directory, scorer, pairs), model_id(name, directory)
    dev = _write_dev(directory, scorer, pairs, models / "dev.tsv")
    options = ["--dev", dev, "--method", method, "--device", "cpu", "--json"]
    result = _run(directory, *options, *(["--scorer", scorer] if name == "bi" else []))
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["after"]["ece"]["value"] < told["before"]["ece"]["value"]

    trained = _scored(directory, scorer, pairs)
    assert trained.uncalibrated == pytest.approx(before.scores, abs=1e-5)
    settings = EncoderSettings(
        bi_encoder=str(models / "bi"),
        cross_encoder=str(models / "cross"),
        device="cpu",
        dtype="float32",
        threads=1,
    )
    served = load_models(settings).models
    async with serve_encoder(served) as encoder:
        wanted = [pb.TextPair(first=first, second=second) for first, second in pairs]
        response = await encoder.stub.Score(pb.ScoreRequest(pairs=wanted, scorer=SCORERS[scorer]))
    assert list(response.scores) == pytest.approx(trained.scores, abs=1e-3)
    assert np.abs(np.array(response.scores) - before.scores).max() > 0.1
    assert response.model_id != id_before
    assert response.model_id == model_id(str(directory), directory) == told["model_id"]
    order = np.argsort(before.scores, kind="stable")
    assert (np.diff(np.array(response.scores)[order]) >= -1e-6).all()


def test_raw_scores_stay_and_other_scorers_too(models: Path, pairs: list[tuple[str, str]]) -> None:
    directory = models / "bi"
    dev = _write_dev(directory, "pair-classifier", pairs, models / "dev.tsv")
    before = _scored(directory, "cosine", pairs)
    assert _run(directory, "--dev", dev, "--device", "cpu").exit_code == 0
    assert (directory / "pair_classifier" / FILE_NAME).is_file()
    after = _scored(directory, "cosine", pairs)
    assert after.uncalibrated is None
    assert after.scores == pytest.approx(before.scores)


def test_calibrating_again_starts_from_uncalibrated_scores(
    models: Path, pairs: list[tuple[str, str]]
) -> None:
    directory = models / "cross"
    dev = _write_dev(directory, "cross-encoder", pairs, models / "dev.tsv")
    found = []
    for _ in range(2):
        assert _run(directory, "--dev", dev, "--device", "cpu").exit_code == 0
        found.append(Calibration.load(directory))
    assert found[0] is not None
    assert found[0] == found[1]


def test_the_model_card_tells(models: Path, pairs: list[tuple[str, str]]) -> None:
    directory = models / "cross"
    (directory / "README.md").write_text("# Mine\n\n## Thresholds\n\nstale\n\n## Limits\n\nMany.\n")
    dev = _write_dev(directory, "cross-encoder", pairs, models / "dev.tsv")
    result = _run(directory, "--dev", dev, "--device", "cpu")
    assert "calibration error" in result.stdout
    assert "precision 0.9: score" in result.stdout
    card = (directory / "README.md").read_text()
    assert card.startswith("# Mine\n")
    assert "\n## Limits\n\nMany.\n" in card
    assert "stale" not in card
    assert card.count("## Thresholds") == card.count("## Calibration") == 1
    assert "5-fold cross-validation" in card
    assert str(models) not in card


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--dev", "{dev}", "--scorer", "cosine"], "the model has no cosine; it has cross-encoder"),
        (["--dev", "{short}"], "has 9 pairs; a calibration needs 10"),
        (["--dev", "{falling}"], "do not increase"),
        (["--dev", "{dev}", "--score-range", "1", "1"], "the lowest score must be below the highest"),
        (["--dev", "{dev}", "--score-range", "0.5", "1"], "line 1 column 3: score"),
    ],
)
def test_what_cannot_be_calibrated_is_one_line(
    models: Path, pairs: list[tuple[str, str]], options: list[str], complaint: str
) -> None:
    directory = models / "cross"
    dev = _write_dev(directory, "cross-encoder", pairs, models / "dev.tsv")
    rows = [line.split("\t") for line in dev.read_text().splitlines()]
    short, falling = models / "short.tsv", models / "falling.tsv"
    short.write_text("".join(f"{a}\t{b}\t{label}\n" for a, b, label in rows[:9]))
    falling.write_text("".join(f"{a}\t{b}\t{1 - float(label):.4f}\n" for a, b, label in rows))
    rows_first_low = [one.format(dev=dev, short=short, falling=falling) for one in options]
    result = _run(directory, *rows_first_low, "--device", "cpu")
    assert isinstance(result.exception, TextMatchError)
    assert complaint in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (directory / FILE_NAME).exists()


def test_a_model_must_be_a_directory(tmp_path: Path) -> None:
    result = _run("textmatch-cross-encoder-en", "--dev", tmp_path / "dev.tsv")
    assert str(result.exception) == 'MODEL: "textmatch-cross-encoder-en" is not a directory'


def test_a_broken_calibration_keeps_a_model_from_being_served(models: Path) -> None:
    (models / "cross" / FILE_NAME).write_text("{}")
    with pytest.raises(UnusableModel, match="is not a calibration"):
        load_model_system(str(models / "cross"), "cpu")

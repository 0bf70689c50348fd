"""What a run promises: the best checkpoint, early stopping, the same result again, going on after Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from textmatch.cli.__main__ import main
from textmatch.errors import InvalidInput
from training.fit import TrainingInterrupted
from training.mlm import MlmSettings, train_mlm
from training.model_files import HISTORY
from training.siamese import SbertSettings, SiameseSettings, train_sbert, train_siamese

QUIET = Console(quiet=True)


def _settings(base: Path, train: Path, output: Path, **options: Any) -> SiameseSettings:
    small = {"batch_size": 16, "max_length_tokens": 32, "learning_rate": 1e-3, "device": "cpu", "epochs": 3}
    return SiameseSettings(**{"base": str(base), "train": [train], "output": output, **small, **options})


def _history(output: Path) -> list[dict[str, float]]:
    history: list[dict[str, float]] = json.loads((output / HISTORY).read_text())
    return history


def _weights(output: Path) -> dict[str, Any]:
    return {str(path.relative_to(output)): load_file(path) for path in sorted(output.rglob("*.safetensors"))}


def _assert_equal_weights(first: Path, second: Path) -> None:
    expected, found = _weights(first), _weights(second)
    assert expected.keys() == found.keys()
    for name, tensors in expected.items():
        for key, tensor in tensors.items():
            np.testing.assert_array_equal(found[name][key], tensor, err_msg=f"{name} {key}")


def test_the_seed_decides_the_weights(bases: dict[str, Path], binary: Path, tmp_path: Path):
    for name, seed in (("first", 1), ("second", 1), ("third", 2)):
        train_siamese(_settings(bases["bert"], binary, tmp_path / name, seed=seed), QUIET)
    _assert_equal_weights(tmp_path / "first", tmp_path / "second")
    with pytest.raises(AssertionError):
        _assert_equal_weights(tmp_path / "first", tmp_path / "third")


def test_the_best_checkpoint_is_kept_and_training_stops_when_nothing_gets_better(
    bases: dict[str, Path], binary: Path, tmp_path: Path
):
    output = tmp_path / "model"
    settings = _settings(
        bases["bert"], binary, output, dev=binary, epochs=40, evaluate_steps=2, patience=2, learning_rate=5e-3
    )
    result = train_siamese(settings, QUIET)
    measured = [entry["eval_spearman"] for entry in _history(output) if "eval_spearman" in entry]
    assert len(measured) < 80
    assert max(measured[-2:]) <= max(measured)
    assert result.metrics[binary]["spearman"] == pytest.approx(max(measured), abs=1e-6)


def test_the_learning_rate_follows_the_points(bases: dict[str, Path], binary: Path, tmp_path: Path):
    output = tmp_path / "model"
    settings = _settings(
        bases["bert"], binary, output, max_steps=40, lr_schedule="20:1,40:0.5", learning_rate=1e-3
    )
    train_siamese(settings, QUIET)
    rates = {entry["step"]: entry["learning_rate"] for entry in _history(output) if "learning_rate" in entry}
    # What is logged at a step is the rate that the step was made with.
    expected = {10: 0.45e-3, 20: 0.95e-3, 30: 0.775e-3, 40: 0.525e-3}
    assert rates == pytest.approx(expected, rel=1e-6)


def test_gradients_of_several_batches_make_one_step(bases: dict[str, Path], binary: Path, tmp_path: Path):
    output = tmp_path / "model"
    train_siamese(_settings(bases["bert"], binary, output, epochs=1, batch_size=8, accumulate=4), QUIET)
    assert _history(output)[-1]["step"] == 2


def test_bf16_trains(bases: dict[str, Path], binary: Path, tmp_path: Path):
    output = tmp_path / "model"
    result = train_siamese(_settings(bases["bert"], binary, output, dev=binary, bf16=True), QUIET)
    assert result.metrics[binary]["spearman"] > 0.3
    [weights] = [tensors for name, tensors in _weights(output).items() if name == "model.safetensors"]
    assert {tensor.dtype for tensor in weights.values()} == {np.dtype(np.float32)}


def _interrupting(patch: pytest.MonkeyPatch, place: str, call: int) -> None:
    """Ctrl-C in the given call of a function from 1."""
    target, _, name = place.rpartition(".")
    owner = resolve_name(target)
    original, calls = getattr(owner, name), iter(range(1, 1000))

    def interrupt_and_call(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            # Not sent: OpenVINO, where it has run before, leaves a freed stack for signals behind.
            handler = signal.getsignal(signal.SIGINT)
            assert callable(handler)
            handler(signal.SIGINT, None)
        return original(*arguments, **options)

    patch.setattr(owner, name, interrupt_and_call)


LOSS = "sentence_transformers.sentence_transformer.losses:SoftmaxLoss.forward"
EVALUATION = "training.evaluators:ClassEvaluator.measure"
OPTIMIZER = "training.fit:ShowProgress.on_optimizer_step"


@pytest.mark.parametrize(
    ("place", "call", "evaluate_steps", "has_dev", "step"),
    [
        # A step that was begun is discarded, one of the optimizer is finished.
        (LOSS, 7, 0, False, 6),
        (LOSS, 7, 0, True, 6),
        (LOSS, 8, 3, True, 7),
        (OPTIMIZER, 6, 3, True, 6),
        # Four steps are an epoch. The first evaluation is before the first step.
        (EVALUATION, 1, 0, True, 0),
        (EVALUATION, 2, 0, True, 4),
        (EVALUATION, 3, 3, True, 6),
        (EVALUATION, 4, 0, True, 12),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_weights(
    bases: dict[str, Path],
    classes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    call: int,
    evaluate_steps: int,
    has_dev: bool,
    step: int,
):
    """A softmax: its classifier must be in the checkpoint too. The best checkpoint must be the same."""

    def settings(name: str, **options: Any) -> SbertSettings:
        small = {"batch_size": 16, "max_length_tokens": 32, "learning_rate": 1e-3, "device": "cpu"}
        own = {"dev": classes, "evaluate_steps": evaluate_steps, "patience": 9} if has_dev else {}
        output = tmp_path / name
        return SbertSettings(
            base=str(bases["bert"]), train=[classes], output=output, epochs=3, **small, **own, **options
        )

    whole = train_sbert(settings("whole"), QUIET)
    console = Console(file=io.StringIO(), width=1000)
    with monkeypatch.context() as patch:
        _interrupting(patch, place, call)
        with pytest.raises(TrainingInterrupted):
            train_sbert(settings("parts"), console)
    assert f"stopped at step {step};" in console.file.getvalue()
    assert not (tmp_path / "parts").exists()

    with pytest.raises(InvalidInput, match="holds checkpoints of an earlier run: use --resume, or remove it"):
        train_sbert(settings("parts"), QUIET)
    parts = train_sbert(settings("parts", resume=True), QUIET)
    _assert_equal_weights(tmp_path / "whole", tmp_path / "parts")
    assert list(parts.metrics.values()) == list(whole.metrics.values())
    measured = [
        [(one["step"], one["eval_accuracy"]) for one in _history(tmp_path / name) if "eval_accuracy" in one]
        for name in ("whole", "parts")
    ]
    assert measured[0] == measured[1]


# Each evaluation and each epoch are four calls: in the first epoch, in its evaluation, and in the second one.
@pytest.mark.parametrize("call", [6, 12, 15])
def test_a_masked_language_model_masks_alike_after_an_interruption(
    vocabulary: Path, sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
):
    """Masks and the order of texts came from one generator, and the batches that are skipped need none."""

    def settings(name: str, **options: Any) -> MlmSettings:
        new = {"from_scratch": True, "vocab": vocabulary, "layers": 1, "hidden": 32, "heads": 2}
        return MlmSettings(
            output=tmp_path / name, train=[sentences], dev=sentences, batch_size=16, epochs=3, device="cpu",
            **new, **options,
        )  # fmt: skip

    train_mlm(settings("whole"), QUIET)
    with monkeypatch.context() as patch:
        _interrupting(patch, "training.trainers:MaskedLanguageModelTrainer.compute_loss", call)
        with pytest.raises(TrainingInterrupted):
            train_mlm(settings("parts"), QUIET)
    train_mlm(settings("parts", resume=True), QUIET)
    _assert_equal_weights(tmp_path / "whole", tmp_path / "parts")


def test_a_model_that_gets_worse_is_not_saved_but_its_start(
    bases: dict[str, Path], binary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The best checkpoint is never worse than the base on the dev file, and the exit status says so."""
    good = tmp_path / "good"
    train_siamese(_settings(bases["bert"], binary, good, dev=binary, epochs=20), QUIET)
    upside_down = tmp_path / "wrong.tsv"
    rows = [line.split("\t") for line in binary.read_text().splitlines()]
    upside_down.write_text("".join(f"{a}\t{b}\t{1 - int(label)}\n" for a, b, label in rows))
    words = ["train", "siamese", "--base", good, "--train", upside_down, "--dev", binary, "--output"]
    words += [tmp_path / "worse", "--batch-size", 16, "--device", "cpu", "--learning-rate", 1e-3]
    assert main(list(map(str, words))) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "warning: training did not make the model better: spearman on" in printed
    _assert_equal_weights(good, tmp_path / "worse")


def test_ctrl_c_of_the_command_saves(bases: dict[str, Path], binary: Path, tmp_path: Path):
    output = tmp_path / "model"
    options = ["--base", bases["bert"], "--train", binary, "--output", output, "--epochs", "100000"]
    process = subprocess.Popen(
        [Path(sys.executable).with_name("textmatch"), "train", "siamese", *options, "--device", "cpu"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    seen = ""
    while "training data" not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    checkpoints = output.with_name("model.checkpoints")
    while not any(checkpoints.glob("checkpoint-*")):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert "To continue, run the same command with --resume" in " ".join(stderr.split())
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_nothing_to_resume_and_an_output_in_use_are_reported(
    bases: dict[str, Path], binary: Path, tmp_path: Path
):
    settings = _settings(bases["bert"], binary, tmp_path / "model")
    with pytest.raises(InvalidInput, match="there is no checkpoint in"):
        train_siamese(replace(settings, resume=True), QUIET)
    with pytest.raises(InvalidInput, match="needs a --dev file"):
        train_siamese(replace(settings, patience=2), QUIET)
    settings.output.mkdir()
    (settings.output / "notes.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="is not empty"):
        train_siamese(settings, QUIET)

"""The distill recipe end to end on a tiny BERT, and several losses in one run of simcse."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft.tuners.lora import Linear as LoraLinear
from rich.console import Console
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import nn

from textmatch.errors import InvalidInput
from textmatch.models.bi_encoder import read_bi_encoder
from textmatch.models.lora import ADAPTER_WEIGHTS
from training.distill import DistillSettings, LossName, teacher_logits, train_distill
from training.evaluation.scorers import load_model_system
from training.examples import read_scored_pairs
from training.model_builder import add_adapter, build_bi_encoder, build_cross_encoder
from training.regression import logit
from training.simcse import SimcseSettings, train_simcse

from .conftest import WORDS

QUIET = Console(quiet=True)
ANIMALS = ["cat", "dog", "bird"]
PAIRS = [("red cat", "old cat"), ("green bird sings", "blue"), ("tree", "small tree runs")]


def _write_scores(path: Path, text_of: Callable[[random.Random, list[str], int], list[str]]) -> Path:
    """Eighty queries with four texts each, made with the numbers 0 to 3 and scored 2 x number - 1."""
    chance = random.Random(3)
    lines = ["query\ttext\tscore"]
    for _ in range(80):
        query = chance.sample(WORDS, 3)
        for number in range(4):
            text = text_of(chance, query, number)
            chance.shuffle(text)
            lines.append(f"{' '.join(query)}\t{' '.join(text)}\t{2 * number - 1}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def shared_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher counts the words that query and text share, which a tiny bi-encoder learns."""

    def text_of(chance: random.Random, query: list[str], number: int) -> list[str]:
        others = [word for word in WORDS if word not in query]
        return [*query[:number], *chance.sample(others, 3 - number)]

    return _write_scores(tmp_path_factory.mktemp("data") / "shared.tsv", text_of)


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher counts the animals of the text, which a tiny cross-encoder learns."""

    def text_of(chance: random.Random, query: list[str], number: int) -> list[str]:
        others = [word for word in WORDS if word not in ANIMALS]
        return [*chance.sample(ANIMALS, number), *chance.sample(others, 3 - number)]

    return _write_scores(tmp_path_factory.mktemp("data") / "animals.tsv", text_of)


@pytest.fixture(scope="module")
def labelled_animals(animals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pairs of `animals` with labels 0..1."""
    path = tmp_path_factory.mktemp("data") / "labels.tsv"
    pairs = read_scored_pairs(animals, score_range=None)
    path.write_text("".join(f"{one.first}\t{one.second}\t{(one.score + 1) / 6:.3f}\n" for one in pairs))
    return path


def _settings(bases: dict[str, Path], output: Path, **changes: Any) -> DistillSettings:
    settings = DistillSettings(
        output=output,
        base=str(bases["bert"]),
        epochs=12,
        batch_size=8,
        max_length_tokens=32,
        learning_rate=1e-3,
        temperature=0.2,
        dropout=0.0,
        device="cpu",
    )
    return replace(settings, **changes)


def _student_logits(settings: DistillSettings, scores: Path) -> NDArray[np.float32]:
    """(query, candidate) logits of the saved student, in the order of the file."""
    pairs = [(one.first, one.second) for one in read_scored_pairs(scores, score_range=None)]
    system = load_model_system(str(settings.output), "cpu")
    return teacher_logits(system, pairs, settings.temperature).reshape(-1, 4)


def _ordered_share(logits: NDArray[np.float32]) -> float:
    """Share of candidates that stand above one of a lower number: 0.5 by chance."""
    return float(np.mean([logits[:, more] > logits[:, fewer] for fewer, more in combinations(range(4), 2)]))


@pytest.mark.parametrize("student", ["cross-encoder", "bi-encoder"])
@pytest.mark.parametrize("loss", ["mse", "margin-mse", "kl"])
def test_a_student_learns_what_its_loss_asks_for(
    bases: dict[str, Path], animals: Path, shared_words: Path, tmp_path: Path, student: Any, loss: LossName
):
    scores = animals if student == "cross-encoder" else shared_words
    settings = _settings(
        bases, tmp_path / "model", teacher_scores=[scores], student=student, loss=loss, list_size=4
    )
    train_distill(settings, QUIET)
    logits = _student_logits(settings, scores)
    wanted = 2.0 * np.arange(4) - 1
    assert _ordered_share(logits) > 0.8
    if loss == "mse":
        assert float(np.mean((logits - wanted) ** 2)) < 0.5 * float(np.var(wanted))
    if loss == "margin-mse":
        margins, wanted_margins = (one[..., 3:] - one[..., :3] for one in (logits, wanted))
        assert float(np.mean((margins - wanted_margins) ** 2)) < 0.5 * float(np.mean(wanted_margins**2))
    assert f"Distilled {student}" in (settings.output / "README.md").read_text()


def test_a_model_teaches_lists_and_labels_are_learnt_too(
    bases: dict[str, Path], animals: Path, labelled_animals: Path, tmp_path: Path
):
    teacher = _settings(bases, tmp_path / "teacher", teacher_scores=[animals], loss="mse")
    train_distill(teacher, QUIET)
    rows = read_scored_pairs(animals, score_range=None)
    lists = tmp_path / "lists.jsonl"
    with lists.open("w") as file:
        for *worse, best in (rows[start : start + 4] for start in range(0, len(rows), 4)):
            record = {"query": best.first, "pos": [best.second], "neg": [one.second for one in worse]}
            file.write(json.dumps(record) + "\n")
    settings = _settings(
        bases,
        tmp_path / "student",
        candidates=[lists],
        teacher=str(teacher.output),
        train=[labelled_animals],
        labelled_lists=[lists],
        dev=labelled_animals,
        mix="1,3,1",
        adapter_rank=8,
        learning_rate=1e-2,
    )
    result = train_distill(settings, QUIET)
    taught, learnt = (_student_logits(one, animals).ravel() for one in (teacher, settings))
    assert np.corrcoef(taught, learnt)[0, 1] > 0.7
    assert result.metrics[labelled_animals]["spearman"] > 0.7
    assert "--teacher" in result.command
    assert "--mix 1,3,1" in result.command


def test_teachers_of_both_kinds_give_logits(bases: dict[str, Path], tmp_path: Path):
    torch.manual_seed(0)
    model = CrossEncoder(str(bases["bert"]), num_labels=1, device="cpu")
    model.save_pretrained(str(tmp_path / "cross"))
    found = teacher_logits(load_model_system(str(tmp_path / "cross"), "cpu"), PAIRS, 0.05)
    np.testing.assert_allclose(found, model.predict(PAIRS, activation_fn=nn.Identity()), atol=1e-4)
    bi_encoder = read_bi_encoder(bases["bert"], "base")
    first, second = (
        bi_encoder.encode([pair[side] for pair in PAIRS], normalize_embeddings=True) for side in (0, 1)
    )
    found = teacher_logits(load_model_system(str(bases["bert"]), "cpu"), PAIRS, 0.05)
    np.testing.assert_allclose(found, 20 * (first * second).sum(axis=1), atol=1e-3)


def test_a_list_of_one_teaches_no_margin(bases: dict[str, Path], tmp_path: Path):
    scores = tmp_path / "scores.tsv"
    scores.write_text("query\ttext\tscore\nred cat\told cat\t1\n")
    with pytest.raises(InvalidInput, match="no query has two candidates"):
        train_distill(_settings(bases, tmp_path / "model", teacher_scores=[scores]), QUIET)


def test_a_new_scoring_head_starts_at_the_mean_label(bases: dict[str, Path], tmp_path: Path):
    settings = _settings(bases, tmp_path / "model")
    torch.manual_seed(0)
    model = build_cross_encoder(
        settings, settings.base, activation=nn.Sigmoid(), dropout=0.0, adapter_rank=4, mean_label=logit(0.8)
    )
    # The random weights of the head move it by less than a logit.
    assert np.abs([logit(float(score)) - logit(0.8) for score in model.predict(PAIRS)]).max() < 1
    assert model[0].model.classifier.modules_to_save["default"].bias.item() == pytest.approx(logit(0.8))


def test_the_head_of_a_cross_encoder_is_kept(bases: dict[str, Path], tmp_path: Path):
    torch.manual_seed(0)
    model = CrossEncoder(str(bases["bert"]), num_labels=1, device="cpu")
    model.save_pretrained(str(tmp_path / "cross"))
    before = float(model.predict([("red cat", "old dog")])[0])
    rebuilt = build_cross_encoder(
        _settings(bases, tmp_path / "model"),
        str(tmp_path / "cross"),
        activation=nn.Sigmoid(),
        dropout=0.0,
        adapter_rank=0,
        mean_label=5.0,
    )
    assert float(rebuilt.predict([("red cat", "old dog")])[0]) == pytest.approx(before, abs=1e-5)


def _randomised(model: Any) -> list[LoraLinear]:
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    with torch.no_grad():
        for layer in layers:
            nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    return layers


def test_an_adapter_computes_and_learns_as_in_peft(bases: dict[str, Path]):
    model = read_bi_encoder(bases["bert"], "base")
    add_adapter(model, 4, "FEATURE_EXTRACTION", "base")
    layers = _randomised(model)
    assert len(layers) == 13
    states = torch.randn(3, 5, 32)
    for layer in (layers[0], layers[-1]):
        found = []
        for forward in (layer.forward, lambda x, layer=layer: type(layer).forward(layer, x)):
            layer.zero_grad()
            output = forward(states)
            output.square().sum().backward()
            gradients = [one["default"].weight.grad.clone() for one in (layer.lora_A, layer.lora_B)]
            found.append([output.detach(), *gradients])
        for own, theirs in zip(*found, strict=True):
            torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-4)


def test_an_adapter_starts_from_another(bases: dict[str, Path], triples: Path, tmp_path: Path):
    settings = SimcseSettings(
        train=[triples],
        output=tmp_path / "first",
        base=str(bases["bert"]),
        hard_negatives=True,
        adapter_rank=4,
        max_steps=3,
        batch_size=16,
        learning_rate=1e-2,
        device="cpu",
    )
    train_simcse(settings, QUIET)
    again = replace(settings, start_adapter=str(settings.output), output=tmp_path / "second")
    model = build_bi_encoder(again)
    saved = load_file(settings.output / ADAPTER_WEIGHTS)
    found = dict(model[0].model.named_parameters())["encoder.layer.1.output.dense.lora_B.default.weight"]
    [wanted] = [saved[name] for name in saved if "encoder.layer.1.output.dense.lora_B" in name]
    assert wanted.abs().max() > 0
    torch.testing.assert_close(found, wanted.float())
    student = build_cross_encoder(
        again,
        again.base,
        activation=nn.Sigmoid(),
        dropout=0.0,
        adapter_rank=4,
        mean_label=0.0,
        start_adapter=again.start_adapter,
    )
    found = dict(student[0].model.named_parameters())[
        "bert.encoder.layer.1.output.dense.lora_B.default.weight"
    ]
    torch.testing.assert_close(found, wanted.float())
    with pytest.raises(InvalidInput, match="is not an adapter of this base model and rank"):
        build_bi_encoder(replace(again, adapter_rank=8))


@pytest.fixture(scope="module")
def prompted(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model with prompts."""
    path = tmp_path_factory.mktemp("prompted") / "base"
    model = read_bi_encoder(bases["bert"], "base")
    model.prompts = {"query": "red: ", "document": "green: "}
    model.save_pretrained(str(path))
    return path


@pytest.mark.parametrize(("prompts", "expected"), [(True, "red: "), (False, "")])
@pytest.mark.parametrize("adapter_rank", [4, 0])
def test_a_model_says_which_prompts_it_was_trained_with(
    prompted: Path, triples: Path, tmp_path: Path, adapter_rank: int, prompts: bool, expected: str
):
    settings = SimcseSettings(
        train=[triples],
        output=tmp_path / "model",
        base=str(prompted),
        hard_negatives=True,
        adapter_rank=adapter_rank,
        prompts=prompts,
        max_steps=1,
        batch_size=16,
        device="cpu",
    )
    train_simcse(settings, QUIET)
    config = json.loads((settings.output / "config_sentence_transformers.json").read_text())
    assert config["prompts"].get("query", "") == expected


def _cosines(model: SentenceTransformer, pairs: Path) -> NDArray[np.float32]:
    read = read_scored_pairs(pairs)
    first, second = (
        np.asarray(model.encode([getattr(one, side) for one in read], normalize_embeddings=True))
        for side in ("first", "second")
    )
    return np.asarray((first * second).sum(axis=1))


@pytest.fixture(scope="module")
def translations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chance = random.Random(5)
    path = tmp_path_factory.mktemp("data") / "translations.tsv"
    samples = [chance.sample(WORDS, 3) for _ in range(40)]
    path.write_text("".join(f"{' '.join(words)}\t{' '.join(words[::-1])}\n" for words in samples))
    return path


def test_simcse_learns_several_files_in_one_run(
    bases: dict[str, Path], triples: Path, scored: Path, translations: Path, tmp_path: Path
):
    settings = SimcseSettings(
        train=[triples, triples],
        paraphrases=[translations],
        graded_pairs=[scored],
        mix="2,1,1,2",
        dev=scored,
        output=tmp_path / "model",
        base=str(bases["bert"]),
        hard_negatives=True,
        epochs=12,
        batch_size=16,
        learning_rate=2e-3,
        dropout=0.0,
        device="cpu",
    )
    result = train_simcse(settings, QUIET)
    alone = train_simcse(
        replace(
            settings, train=[triples], paraphrases=[], graded_pairs=[], mix="", output=tmp_path / "alone"
        ),
        QUIET,
    )
    assert result.metrics[scored]["spearman"] > alone.metrics[scored]["spearman"]
    assert result.metrics[scored]["spearman"] > 0.8
    assert "--graded-pairs" in result.command


def test_plain_sentences_are_learnt_with_graded_pairs(
    bases: dict[str, Path], sentences: Path, scored: Path, tmp_path: Path
):
    settings = SimcseSettings(
        train=[sentences],
        graded_pairs=[scored],
        output=tmp_path / "model",
        base=str(bases["bert"]),
        batch_size=16,
        learning_rate=1e-3,
        device="cpu",
    )
    assert train_simcse(settings, QUIET).output == settings.output
    with pytest.raises(InvalidInput, match="there are 2 parts"):
        train_simcse(replace(settings, mix="1", output=tmp_path / "other"), QUIET)

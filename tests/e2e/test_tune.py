"""Tuning the weights of a running stack on judged queries."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.support.encoder import make_tiny_bi_encoder, make_tiny_cross_encoder
from tests.support.qdrant import connect_to
from tests.support.stack import Stack, running_stack, wait_until
from textmatch.score_fusion import (
    FUSION_NOTE,
    NEVER,
    PART_SETS,
    ScoreModel,
    default_fusion,
    from_mapping,
    to_mapping,
)

TOPICS, DOCUMENTS_PER_TOPIC, TERMS = 30, 4, 10
FILLER = ("cat", "dog", "sits", "on", "the", "mat", "runs", "in", "park", "where", "what", "is")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Nothing that tells documents apart is in what the models read."""
    directory = tmp_path_factory.mktemp("tuned")
    make_tiny_bi_encoder(directory / "bi")
    make_tiny_cross_encoder(directory / "cross")
    environment = {
        "TEXTMATCH_BI_ENCODER": str(directory / "bi"),
        "TEXTMATCH_CROSS_ENCODER": str(directory / "cross"),
    }
    randomly = random.Random(0)
    with running_stack(directory / "data", environment) as running, running.client() as client:
        client.ingest_all(
            (
                {"id": f"d{topic}-{number}", "text": f"{filler(randomly, 130)} {terms(topic)}"}
                for topic in range(TOPICS)
                for number in range(DOCUMENTS_PER_TOPIC)
            ),
            wait=True,
        )
        yield running


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """A query for each topic, with the documents of the topic; and one query without judgements."""
    randomly = random.Random(1)
    queries = [
        {"_id": f"q{topic}", "text": f"{filler(randomly, 20)} {terms(topic)}"} for topic in range(TOPICS)
    ]
    queries.append({"_id": "unjudged", "text": "where is the cat"})
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    write_qrels(
        tmp_path,
        {
            f"q{topic}": {f"d{topic}-{number}": 1 for number in range(DOCUMENTS_PER_TOPIC)}
            for topic in range(TOPICS)
        },
    )
    return tmp_path


def filler(randomly: random.Random, count: int) -> str:
    return " ".join(randomly.choices(FILLER, k=count))


def terms(topic: int) -> str:
    return " ".join(f"term{topic}x{number}" for number in range(TERMS))


def write_qrels(directory: Path, grades: Mapping[str, Mapping[str, float]]) -> None:
    rows = [
        f"{query}\t{document}\t{grade}\n" for query, one in grades.items() for document, grade in one.items()
    ]
    (directory / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))


def tune(stack: Stack, *arguments: str | Path) -> dict[str, Any]:
    """Run the command with --json; it must succeed."""
    finished = stack.textmatch("tune", "--json", *map(str, arguments))
    assert finished.returncode == 0, finished.stderr
    answer: dict[str, Any] = json.loads(finished.stdout)
    return answer


def refused(stack: Stack, *arguments: str | Path) -> str:
    """Run the command; it must fail with one line on stderr, which is returned."""
    finished = stack.textmatch("tune", *map(str, arguments))
    assert finished.returncode in {1, 2}
    [line] = finished.stderr.splitlines()
    return str(line)


def used(stack: Stack) -> ScoreModel:
    """The model of a complete answer."""
    with stack.client() as client:
        [match] = client.match("cat", top_k=1, rerank=True, explain=True)
    assert match.explanation is not None
    return match.explanation.weights


def noted(stack: Stack, collection: str) -> Any:
    """The models that are stored with a collection."""
    with connect_to(stack.file["qdrant_url"]) as qdrant:
        return (qdrant.get_collection(collection).config.metadata or {}).get(FUSION_NOTE)


@pytest.mark.slow
def test_tuned_weights_are_stored_used_measured_and_taken_back(stack: Stack, judged: Path):
    shown = tune(stack, judged, "--dry-run")
    assert (shown["queries"], shown["left_out"], shown["stored"]) == (TOPICS, 1, False)
    default = default_fusion(shown["model_id"])
    assert shown["models_before"] == to_mapping(default)
    assert list(shown["parts"]) == list(PART_SETS)
    assert shown["ndcg@10"]["after"] >= shown["ndcg@10"]["before"]
    assert shown["log_loss"]["gain"] > 2 * shown["log_loss"]["standard_error"]
    for quality in shown["parts"].values():
        assert quality["calibration_error"]["after"] < 0.05
    assert shown["pair_score"]["ms_per_pair"] > 0
    # The tiny cross-encoder tells nothing apart.
    assert shown["models"]["pair_from"] == NEVER
    assert shown["pair_score"]["pairs_per_query"] == 0
    assert asdict(used(stack)) == pytest.approx(asdict(default.cosine_lexical_pair), rel=1e-5)

    before = used(stack)
    stored = tune(stack, judged)
    # Scores of pairs differ in their last bits by the pairs that share a batch.
    for name, weights in shown["models"].items():
        assert stored["models"][name] == pytest.approx(weights, rel=1e-5, abs=1e-6)
    assert (stored["is_better"], stored["stored"]) == (True, True)
    tuned = from_mapping(noted(stack, stored["collection"]))
    assert to_mapping(tuned) == stored["models"]
    wait_until(lambda: used(stack) != before, "the matcher to use the models", seconds=30)
    assert asdict(used(stack)) == pytest.approx(asdict(tuned.cosine_lexical_pair), rel=1e-5)
    with stack.client() as client:
        matches = client.match(f"where {terms(7)}", top_k=20).matches
    relevant = {f"d7-{number}" for number in range(DOCUMENTS_PER_TOPIC)}
    assert {match.document.id for match in matches[:DOCUMENTS_PER_TOPIC]} == relevant
    assert matches[DOCUMENTS_PER_TOPIC - 1].score > 2 * matches[DOCUMENTS_PER_TOPIC].score

    line = refused(stack, judged)
    assert "not stored" in line
    assert "--force" in line
    again = tune(stack, judged, "--force")
    assert (again["is_better"], again["stored"]) == (False, True)
    assert again["models_before"] == stored["models"]

    reset = {"collection": "default", "model_id": stored["model_id"], "reset": True}
    assert tune(stack, "--reset") == reset
    assert noted(stack, stored["collection"]) is None


def test_judgements_of_documents_that_are_not_there_are_refused(stack: Stack, judged: Path):
    write_qrels(judged, {"q1": {"d1-0": 1, "nobody": 1}, "q2": {"nothing": 2}})
    line = refused(stack, judged)
    assert '2 of 3 judged documents are not stored, such as "nobody", "nothing"' in line
    shown = tune(stack, judged, "--dry-run", "--skip-missing")
    assert (shown["queries"], shown["left_out"]) == (1, TOPICS)
    assert shown["ndcg@10"]["standard_error"] is None


def test_what_cannot_be_learned_from_is_named(stack: Stack, judged: Path):
    write_qrels(judged, {"q1": {"d1-0": 0}})
    assert "has a stored document with a grade above 0" in refused(stack, judged)
    write_qrels(judged, {"stranger": {"d1-0": 1}})
    assert 'qrels.tsv line 2: unknown query "stranger"' in refused(stack, judged)
    (judged / "qrels.tsv").unlink()
    assert "must contain qrels.tsv" in refused(stack, judged)
    assert "unexpected extra argument" in refused(stack, judged, "another")
    assert "give DIRECTORY or --reset" in refused(stack)

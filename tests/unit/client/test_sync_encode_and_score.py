from __future__ import annotations

import numpy as np
import pytest

from tests.support.scripted_encoder_servicer import DIMENSION, ScriptedEncoder
from tests.support.scripted_servicer import RunningServer
from textmatch.client import HealthState, ModelKind, Scorer, TextMatchClient, Truncation
from textmatch.errors import InvalidInput, NotReady
from textmatch.v1 import encoder_service_pb2 as pb


def test_embeddings_of_any_number_come_in_order(client: TextMatchClient, encoder: ScriptedEncoder):
    texts = ["x" * (1 + number % 90) for number in range(100)]
    result = client.encode(texts)
    assert result.embeddings.shape == (100, DIMENSION)
    assert result.embeddings.dtype == np.float32
    assert result.embeddings[:, 0].tolist() == [len(text) for text in texts]
    assert result.token_counts == (1,) * 100
    assert result.model_id == "tiny-0123456789ab"
    assert encoder.batch_sizes == [8] * 12 + [4]
    assert encoder.priorities == {pb.PRIORITY_BULK}


def test_one_text_may_be_given_as_it_is(client: TextMatchClient, encoder: ScriptedEncoder):
    result = client.encode("y" * 101)
    assert result.embeddings.shape == (1, DIMENSION)
    assert result.truncated == (True,)
    assert encoder.priorities == {pb.PRIORITY_INTERACTIVE}


def test_every_bad_text_is_named_by_its_position_before_sending(
    client: TextMatchClient, encoder: ScriptedEncoder
):
    texts = ["good"] * 20
    texts[9], texts[17], texts[19] = "", "\ud800", "x" * 1_001
    with pytest.raises(InvalidInput) as raised:
        client.encode(texts)
    assert [violation.field for violation in raised.value.violations] == [
        "texts[9]",
        "texts[17]",
        "texts[19]",
    ]
    assert "the limit is 1,000" in str(raised.value)
    assert encoder.batch_sizes == []


def test_a_text_that_the_server_finds_bad_has_the_callers_position(client: TextMatchClient):
    texts = ["good"] * 20
    texts[18] = "poison"
    with pytest.raises(InvalidInput, match=r"^texts\[18\]: the model failed on it$"):
        client.encode(texts)


def test_nothing_to_encode_is_an_error(client: TextMatchClient):
    with pytest.raises(InvalidInput, match="texts: is empty"):
        client.encode([])
    with pytest.raises(InvalidInput, match="pairs: is empty"):
        client.score_pairs([])


def test_embeddings_of_two_models_are_never_mixed(client: TextMatchClient, encoder: ScriptedEncoder):
    encoder.model_ids.extend(["tiny-old", "tiny-new"])
    with pytest.raises(NotReady, match=r"changed its model during the call \(tiny-new, tiny-old\)"):
        client.encode(["text"] * 16)


def test_scores_of_a_query_with_many_texts(client: TextMatchClient, encoder: ScriptedEncoder):
    result = client.score("abcd", ["ab", "abcd", "a"] * 5)
    assert result.scores.dtype == np.float32
    assert result.scores.tolist() == [0.5, 1.0, 0.25] * 5
    assert result.raw_scores.tolist() == [1.0, 2.0, 0.5] * 5
    assert result.model_id == "pair-0123456789ab"
    assert encoder.batch_sizes == [8, 7]


def test_scores_of_pairs(client: TextMatchClient):
    result = client.score_pairs([("ab", "abcd"), ("a", "b")], scorer=Scorer.COSINE)
    assert result.scores.tolist() == [0.5, 1.0]
    assert result.truncated == (False, False)


def test_bad_pairs_are_named(client: TextMatchClient):
    with pytest.raises(InvalidInput, match=r"^pairs\[1\]: is empty$"):
        client.score_pairs([("a", "b"), ("a", "")])
    with pytest.raises(InvalidInput, match=r"^query: is empty$"):
        client.score("", "a")


def test_models(client: TextMatchClient):
    [model] = client.models()
    assert (model.name, model.kind, model.dimension) == ("tiny", ModelKind.BI_ENCODER, DIMENSION)
    assert model.is_default


def test_health_tells_serving_from_not_serving_from_gone(
    client: TextMatchClient, encoder_server: RunningServer, client_class: type[TextMatchClient]
):
    assert [health.state for health in client.health()] == [HealthState.SERVING] * 2
    encoder_server.set_serving(is_serving=False)
    assert client.health()[0].state is HealthState.NOT_SERVING
    with client_class(matcher="127.0.0.1:1", encoder="127.0.0.1:1") as lonely:
        assert [(health.name, health.state) for health in lonely.health()] == [
            ("encoder", HealthState.UNREACHABLE),
            ("matcher", HealthState.UNREACHABLE),
        ]


def test_embeddings_may_keep_the_models_own_lengths(client: TextMatchClient):
    assert client.encode("abc").embeddings[0, 0] == 3.0
    assert client.encode("abc", normalize=False).embeddings[0, 0] == -3.0
    with pytest.raises(InvalidInput, match="normalize"):
        client.encode("abc", normalize="no")


def test_texts_that_are_too_long_are_refused_if_asked(client: TextMatchClient):
    texts = ["good"] * 20
    texts[18] = "x" * 101
    with pytest.raises(InvalidInput, match=r"^texts\[18\]: has 101 tokens; the model reads 100$"):
        client.encode(texts, truncate=Truncation.ERROR)
    with pytest.raises(InvalidInput, match=r"^texts\[18\]: has 101 tokens"):
        client.score("good", texts, truncate=Truncation.ERROR)
    assert client.encode(texts).truncated[18]


@pytest.mark.parametrize(
    ("truncate", "sent"),
    [
        (None, pb.TRUNCATION_UNSPECIFIED),
        (Truncation.END, pb.TRUNCATION_END),
        (Truncation.START, pb.TRUNCATION_START),
        (Truncation.ERROR, pb.TRUNCATION_ERROR),
    ],
)
def test_every_truncation_is_sent(
    client: TextMatchClient, encoder: ScriptedEncoder, truncate: Truncation | None, sent: int
):
    client.encode("a", truncate=truncate)
    client.score("a", "b", truncate=truncate)
    client.score_pairs([("a", "b")], truncate=truncate)
    assert encoder.truncations == [sent] * 3


def test_a_truncation_that_does_not_exist_is_named(client: TextMatchClient):
    with pytest.raises(InvalidInput, match="truncate"):
        client.encode("a", truncate="middle")


def test_the_scores_of_all_classes(client: TextMatchClient, encoder: ScriptedEncoder):
    plain = client.score("abcd", "ab")
    assert (plain.labels, plain.class_scores) == ((), None)
    encoder.labels = ("entailment", "neutral", "contradiction")
    result = client.score("abcd", ["ab", "abcd"] * 10)
    assert result.labels == encoder.labels
    assert result.class_scores is not None
    assert result.class_scores.shape == (20, 3)
    assert result.class_scores[:2].tolist() == [[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]

"""Methods of the client that call the encoder: for asyncio, and their synchronous twins."""

from __future__ import annotations

from collections.abc import Iterable

from textmatch.client import arguments
from textmatch.client.arguments import TextPair, to_seconds, with_checked_options
from textmatch.client.connection import run
from textmatch.client.encoder_calls import EncoderCalls
from textmatch.types import EncodeResult, ModelInfo, Role, Scorer, ScoreResult, Truncation
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.wire.encoding import ROLES, SCORERS, model_info


@with_checked_options
class AsyncEncoderMethods:
    """What `AsyncTextMatchClient` asks of the encoder. `EncoderMethods` documents the methods."""

    _encoder: EncoderCalls
    _timeout_seconds: float
    _bulk_timeout_seconds: float

    async def encode(
        self,
        texts: str | Iterable[str],
        *,
        role: Role = Role.DOCUMENT,
        dimension: int | None = None,
        model: str = "",
        normalize: bool = True,
        truncate: Truncation | None = None,
        timeout_seconds: float | None = None,
    ) -> EncodeResult:
        """As `EncoderMethods.encode`."""
        as_role = ROLES[arguments.to_choice("role", role, Role)]
        cut = None if dimension is None else arguments.to_whole_number("dimension", dimension)
        common = pb.EncodeRequest(
            role=as_role,
            dimension=cut,
            model=arguments.to_name("model", model),
            normalize=arguments.to_flag("normalize", normalize),
            truncate=arguments.to_truncation("truncate", truncate),
        )
        given = arguments.to_texts("texts", texts)

        def request(chunk: list[str]) -> pb.EncodeRequest:
            message = pb.EncodeRequest(texts=chunk)
            message.MergeFrom(common)
            return message

        return await self._encoder.encode(given, request, self._either(timeout_seconds))

    async def score(
        self,
        query: str,
        texts: str | Iterable[str],
        *,
        scorer: Scorer = Scorer.CROSS_ENCODER,
        model: str = "",
        truncate: Truncation | None = None,
        timeout_seconds: float | None = None,
    ) -> ScoreResult:
        """As `EncoderMethods.score`."""
        first, name = arguments.to_text("query", query), arguments.to_name("model", model)
        by = SCORERS[arguments.to_choice("scorer", scorer, Scorer)]
        too_long = arguments.to_truncation("truncate", truncate)
        given = arguments.to_texts("texts", texts)

        def request(chunk: list[str]) -> pb.ScoreRequest:
            return pb.ScoreRequest(query=first, texts=chunk, scorer=by, model=name, truncate=too_long)

        return await self._encoder.score("texts", given, request, self._either(timeout_seconds))

    async def score_pairs(
        self,
        pairs: Iterable[TextPair],
        *,
        scorer: Scorer = Scorer.CROSS_ENCODER,
        model: str = "",
        truncate: Truncation | None = None,
        timeout_seconds: float | None = None,
    ) -> ScoreResult:
        """As `EncoderMethods.score_pairs`."""
        by = SCORERS[arguments.to_choice("scorer", scorer, Scorer)]
        name = arguments.to_name("model", model)
        too_long = arguments.to_truncation("truncate", truncate)
        given = arguments.to_pairs("pairs", pairs)

        def request(chunk: list[TextPair]) -> pb.ScoreRequest:
            messages = [pb.TextPair(first=first, second=second) for first, second in chunk]
            return pb.ScoreRequest(pairs=messages, scorer=by, model=name, truncate=too_long)

        return await self._encoder.score("pairs", given, request, self._either(timeout_seconds))

    async def models(self, *, timeout_seconds: float | None = None) -> tuple[ModelInfo, ...]:
        """As `EncoderMethods.models`."""
        response = await self._encoder.get_models(self._interactive(timeout_seconds))
        return tuple(model_info(message) for message in response.models)

    def _interactive(self, timeout_seconds: float | None) -> float:
        return to_seconds(timeout_seconds, self._timeout_seconds)

    def _bulk(self, timeout_seconds: float | None) -> float:
        return to_seconds(timeout_seconds, self._bulk_timeout_seconds)

    def _either(self, timeout_seconds: float | None) -> tuple[float, float]:
        return self._interactive(timeout_seconds), self._bulk(timeout_seconds)


@with_checked_options
class EncoderMethods:
    """What `TextMatchClient` asks of the encoder."""

    _methods: AsyncEncoderMethods

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        role: Role = Role.DOCUMENT,
        dimension: int | None = None,
        model: str = "",
        normalize: bool = True,
        truncate: Truncation | None = None,
        timeout_seconds: float | None = None,
    ) -> EncodeResult:
        """Embed any number of texts: (count, dimension) float32 with rows of length 1.

        Args:
            texts: a list, or a single text.
            role: what the texts are used for.
            dimension: cuts the embeddings of a Matryoshka model to this many components.
            model: name or model id of a loaded bi-encoder; empty means the default one.
            normalize: False leaves the rows as long as the model makes them. That is 1 too if the model ends
                with a normalization.
            truncate: what is done with texts that have more tokens than the model reads. None: as the model's
                own tokenizer does, `Truncation.END` for nearly all models.

        Raises:
            InvalidInput: with `Truncation.ERROR`, naming the texts that are too long.
        """
        return run(
            self._methods.encode(
                texts,
                role=role,
                dimension=dimension,
                model=model,
                normalize=normalize,
                truncate=truncate,
                timeout_seconds=timeout_seconds,
            )
        )

    def score(
        self,
        query: str,
        texts: str | Iterable[str],
        *,
        scorer: Scorer = Scorer.CROSS_ENCODER,
        model: str = "",
        truncate: Truncation | None = None,
        timeout_seconds: float | None = None,
    ) -> ScoreResult:
        """Score how similar in meaning the query is to each text, 0 to 1.

        Of a cross-encoder with several classes, the score is the probability of the class "entailment", or of
        the last class. `class_scores` has the probabilities of all `labels`.

        Args:
            query: the text that each of the others is compared with.
            texts: a list of any length, or a single text.
            scorer: which kind of model scores.
            model: name or model id of a loaded model of that kind; empty means the default one.
            truncate: as for `encode`; of a pair, the longer text is truncated first.
        """
        return run(
            self._methods.score(
                query,
                texts,
                scorer=scorer,
                model=model,
                truncate=truncate,
                timeout_seconds=timeout_seconds,
            )
        )

    def score_pairs(
        self,
        pairs: Iterable[TextPair],
        *,
        scorer: Scorer = Scorer.CROSS_ENCODER,
        model: str = "",
        truncate: Truncation | None = None,
        timeout_seconds: float | None = None,
    ) -> ScoreResult:
        """Score how similar the two texts of each pair are; otherwise as `score`."""
        return run(
            self._methods.score_pairs(
                pairs, scorer=scorer, model=model, truncate=truncate, timeout_seconds=timeout_seconds
            )
        )

    def models(self, *, timeout_seconds: float | None = None) -> tuple[ModelInfo, ...]:
        """The models that the encoder has loaded."""
        return run(self._methods.models(timeout_seconds=timeout_seconds))

"""An encoder over real gRPC that does as a test tells it: refuses, fails, waits, changes its model.

For what the real encoder does only by accident. Embeddings derive from the texts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

import grpc
import numpy as np

from textmatch import vectors
from textmatch.documents import check_texts
from textmatch.errors import InvalidInput, ModelNotFound, TextMatchError, Violation
from textmatch.runtime.channel import MAX_MESSAGE_BYTES
from textmatch.runtime.grpc_errors import status_code, to_status, trailing_metadata
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.v1 import encoder_service_pb2_grpc as pb_grpc
from textmatch.v1 import error_reason_pb2
from textmatch.vectors import Embeddings

DIMENSION = 8
# The text that this encoder always refuses, by name.
REFUSED_TEXT = "refuse this text"


class ScriptedEncoder(pb_grpc.EncoderServiceServicer):
    """Listens on a free port of 127.0.0.1 from `start` to `stop`."""

    def __init__(self, model_id: str) -> None:
        # The default one; what else is served has embeddings of its own.
        self.model_id = model_id
        self.other_model_ids: tuple[str, ...] = ()
        self.target = ""
        # The texts of every call, in the order of the calls.
        self.calls: list[list[str]] = []
        # Raised by the next calls, first to last, before anything else is done.
        self.errors: list[TextMatchError] = []
        # Raises for texts that set off a bug.
        self.check: Callable[[Sequence[str]], None] = lambda texts: None
        # A text that one of the models cannot embed, by model id.
        self.refused_by_model: dict[str, str] = {}
        # Of a text; what is longer is cut. A word is a token.
        self.max_tokens = 256
        # Calls wait until it is set.
        self.may_answer = threading.Event()
        self.may_answer.set()
        # A request has up to the bytes that a client takes in an answer.
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
        self._server = grpc.server(ThreadPoolExecutor(8), options=options)

    def start(self, port: int = 0) -> None:
        pb_grpc.add_EncoderServiceServicer_to_server(self, self._server)
        self.target = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        self._server.start()

    def stop(self) -> None:
        self.may_answer.set()
        self._server.stop(grace=None).wait()

    def Encode(  # noqa: N802 -- the name of the call
        self, request: pb.EncodeRequest, context: grpc.ServicerContext
    ) -> pb.EncodeResponse:
        self.calls.append(list(request.texts))
        try:
            return self._encode(request)
        except TextMatchError as error:
            status = to_status(error)
            context.set_trailing_metadata(trailing_metadata(status))
            context.abort(status_code(status), status.message)
            raise AssertionError("abort() always raises") from error

    def GetModels(  # noqa: N802 -- the name of the call
        self, request: pb.GetModelsRequest, context: grpc.ServicerContext
    ) -> pb.GetModelsResponse:
        models = [
            pb.Model(model_id=one, name=one, kind=pb.MODEL_KIND_BI_ENCODER, dimension=DIMENSION)
            for one in self._model_ids
        ]
        return pb.GetModelsResponse(models=models)

    @property
    def _model_ids(self) -> tuple[str, ...]:
        return (self.model_id, *self.other_model_ids)

    def _encode(self, request: pb.EncodeRequest) -> pb.EncodeResponse:
        assert request.role == pb.ROLE_QUERY or request.priority == pb.PRIORITY_BULK
        if request.model and request.model not in self._model_ids:
            raise ModelNotFound(request.model)
        model_id = request.model or self.model_id
        self.may_answer.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.check(request.texts)
        check_texts("texts", request.texts, max_texts=1_000)
        _refuse(request.texts, {REFUSED_TEXT, self.refused_by_model.get(model_id)})
        counts = [len(text.split()) for text in request.texts]
        return pb.EncodeResponse(
            embeddings=vectors.pack(np.concatenate([embedding_of(text, model_id) for text in request.texts])),
            dimension=DIMENSION,
            token_counts=[min(count, self.max_tokens) for count in counts],
            truncated=[count > self.max_tokens for count in counts],
            model_id=model_id,
        )


def embedding_of(text: str, model_id: str) -> Embeddings:
    """(1, DIMENSION), of length 1."""
    seed = int.from_bytes(blake2b(f"{model_id} {text}".encode(), digest_size=8).digest())
    return vectors.normalise(np.random.default_rng(seed).standard_normal((1, DIMENSION)).astype(np.float32))


def _refuse(texts: Sequence[str], refused: Collection[str | None]) -> None:
    reason = error_reason_pb2.ERROR_REASON_TEXT_FAILED
    violations = [
        Violation(f"texts[{position}]", reason, "makes the model fail")
        for position, text in enumerate(texts)
        if text in refused
    ]
    if violations:
        raise InvalidInput(violations)

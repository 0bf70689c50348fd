"""Embeddings and models, as OpenAI's API and text-embeddings-inference have them.

curl localhost:8080/v1/embeddings -H 'content-type: application/json' -d '{"input": "剪切字符串"}'
"""

from __future__ import annotations

import base64
from importlib.metadata import version
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from fastapi import APIRouter, Response
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema
from pydantic_core import to_json

from services.gateway.caller import Caller, FromRequest, StrictBody
from services.gateway.problems import renamed_fields
from textmatch.client import EncodeResult, HealthState, ModelInfo, ModelKind, Role, Truncation
from textmatch.documents import check_item_count
from textmatch.errors import ModelNotFound, NotReady
from textmatch.vectors import Embeddings

MAX_TEXTS = 2_048

router = APIRouter()

_ROLES = {
    "query": Role.QUERY,
    "search_query": Role.QUERY,
    "document": Role.DOCUMENT,
    "passage": Role.DOCUMENT,
    "search_document": Role.DOCUMENT,
}
# As Cohere and NVIDIA have them.
_TRUNCATIONS = {"END": Truncation.END, "START": Truncation.START, "NONE": Truncation.ERROR}
InputType: TypeAlias = Literal["query", "search_query", "document", "passage", "search_document"]


def _to_texts(value: Any) -> Any:
    """One text or several. Token ids belong to the tokenizer of another model."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and all(isinstance(one, (int, list)) for one in value):
        raise ValueError("has lists of token ids; send strings")
    return value


Texts = Annotated[
    list[str],
    BeforeValidator(_to_texts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_TEXTS},
            ]
        }
    ),
]


# As text-embeddings-inference has them.
TeiDirection: TypeAlias = Literal["right", "Right", "left", "Left"]
TeiTruncate: TypeAlias = Annotated[
    bool, Field(description="False: a text that is too long for the model is an error.")
]


def to_truncation(*, truncate: bool, direction: TeiDirection) -> Truncation | None:
    """What is done with long texts; None: what the model does, to the right for nearly all models."""
    if not truncate:
        return Truncation.ERROR
    return Truncation.START if direction.lower() == "left" else None


class EmbeddingsRequest(StrictBody):
    """As OpenAI's `embeddings.create`, with `input_type`."""

    input: Texts
    model: str = Field("", description="Name, id or alias of a bi-encoder. Empty: the default one.")
    dimensions: int | None = Field(None, ge=1, le=65_536, description="For Matryoshka models.")
    encoding_format: Literal["float", "base64"] = "float"
    input_type: InputType = Field("document", description="What the texts are used for.")
    normalize: bool = Field(True, description="False: embeddings are as long as the model makes them.")
    truncate: Literal["END", "START", "NONE"] | None = Field(
        None,
        description="The part of a long text that is not read; NONE: it is an error. Default: as the model.",
    )
    user: str | None = Field(None, description="Ignored.")


class EmbeddingItem(BaseModel):
    """One embedding: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    truncated: bool = Field(False, description="The model did not read all of the text.")


class EmbeddingUsage(BaseModel):
    """Tokens that the model read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """As OpenAI's, with `truncated`."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage


class ModelItem(BaseModel):
    """A model that the encoder serves."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "textmatch"
    model_id: str
    kind: ModelKind
    dimension: int
    max_tokens: int
    is_default: bool


class ModelList(BaseModel):
    """As OpenAI's."""

    object: Literal["list"] = "list"
    data: list[ModelItem]


class EmbedRequest(StrictBody):
    """As `/embed` of text-embeddings-inference."""

    inputs: Texts
    dimensions: int | None = Field(None, ge=1, le=65_536)
    normalize: bool = Field(True, description="False: embeddings are as long as the model makes them.")
    prompt_name: InputType = "document"
    truncate: TeiTruncate = True
    truncation_direction: TeiDirection = "right"


class InfoResponse(BaseModel):
    """As `/info` of text-embeddings-inference."""

    model_id: str
    model_dtype: str
    model_type: dict[str, dict[str, str]]
    max_input_length: int
    max_client_batch_size: int = MAX_TEXTS
    auto_truncate: bool = True
    version: str


@router.post("/v1/embeddings", response_model=EmbeddingsResponse, tags=["OpenAI"])
async def embeddings(body: EmbeddingsRequest, caller: FromRequest) -> Response:
    """Embed texts. The official clients of OpenAI can call it."""
    result = await _encode(
        caller,
        "input",
        body.input,
        role=_ROLES[body.input_type],
        dimension=body.dimensions,
        model=caller.gateway.model(body.model),
        normalize=body.normalize,
        truncate=_TRUNCATIONS.get(body.truncate or ""),
    )
    is_base64 = body.encoding_format == "base64"
    rows = _to_base64(result.embeddings) if is_base64 else result.embeddings.tolist()
    token_count = sum(result.token_counts)
    content = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": row, "truncated": truncated}
            for index, (row, truncated) in enumerate(zip(rows, result.truncated, strict=True))
        ],
        "model": result.model_id,
        "usage": {"prompt_tokens": token_count, "total_tokens": token_count},
    }
    return _json(content)


@router.get("/v1/models", tags=["OpenAI"])
async def list_models(caller: FromRequest) -> ModelList:
    """All models that the encoder serves."""
    found = await caller.client.models(timeout_seconds=caller.timeout_seconds)
    return ModelList(data=[_model_item(one) for one in found])


@router.get("/v1/models/{model:path}", tags=["OpenAI"])
async def get_model(model: str, caller: FromRequest) -> ModelItem:
    """A model by its name, id or alias."""
    name = caller.gateway.model(model)
    for one in await caller.client.models(timeout_seconds=caller.timeout_seconds):
        is_meant = name in (one.name, one.model_id) or (not name and _is_default_bi_encoder(one))
        if is_meant:
            return _model_item(one)
    raise ModelNotFound(model)


@router.post("/embed", response_model=list[list[float]], tags=["text-embeddings-inference"])
async def embed(body: EmbedRequest, caller: FromRequest) -> Response:
    """Embed texts by the default bi-encoder."""
    result = await _encode(
        caller,
        "inputs",
        body.inputs,
        role=_ROLES[body.prompt_name],
        dimension=body.dimensions,
        normalize=body.normalize,
        truncate=to_truncation(truncate=body.truncate, direction=body.truncation_direction),
    )
    return _json(result.embeddings.tolist())


@router.get("/info", tags=["text-embeddings-inference"])
async def info(caller: FromRequest) -> InfoResponse:
    """The default bi-encoder, and the limits of the gateway."""
    for one in await caller.client.models(timeout_seconds=caller.timeout_seconds):
        if _is_default_bi_encoder(one):
            return InfoResponse(
                model_id=one.model_id,
                model_dtype=one.dtype,
                model_type={"embedding": {}},
                max_input_length=one.max_tokens,
                version=version("textmatch"),
            )
    raise ModelNotFound("", "the encoder serves no bi-encoder")


@router.get("/health", tags=["text-embeddings-inference"])
async def health(caller: FromRequest) -> dict[str, HealthState]:
    """200 if encoder and matcher answer and are serving, else 503."""
    states = {one.name: one.state for one in await caller.client.health()}
    down = [f"the {name} is {state}" for name, state in states.items() if state is not HealthState.SERVING]
    if down:
        raise NotReady("; ".join(down))
    return states


async def _encode(caller: Caller, field: str, texts: list[str], **options: Any) -> EncodeResult:
    """The embeddings of the texts in this field of the body, by which errors name them."""
    check_item_count(field, len(texts), MAX_TEXTS)
    with renamed_fields({"texts": field, "dimension": "dimensions"}):
        return await caller.client.encode(texts, timeout_seconds=caller.timeout_seconds, **options)


def _to_base64(vectors: Embeddings) -> list[str]:
    """Each row as base64 of little-endian float32."""
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    return [base64.b64encode(row).decode() for row in rows]


def _json(content: Any) -> Response:
    return Response(to_json(content), media_type="application/json")


def _model_item(model: ModelInfo) -> ModelItem:
    return ModelItem(
        id=model.name,
        model_id=model.model_id,
        kind=model.kind,
        dimension=model.dimension,
        max_tokens=model.max_tokens,
        is_default=model.is_default,
    )


def _is_default_bi_encoder(model: ModelInfo) -> bool:
    return model.is_default and model.kind is ModelKind.BI_ENCODER

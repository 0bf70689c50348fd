"""CollectionService: collections are made, listed, deleted and adopted here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from services.matcher.servicer import noted
from textmatch.collection_config import CollectionConfig, name_violation
from textmatch.collection_store import Collection, CollectionStore
from textmatch.encoder_client import EncoderClient
from textmatch.errors import CollectionNotFound, CollectionNotOwned, ModelNotFound, raise_violations
from textmatch.index.schema import PayloadIndexes
from textmatch.runtime.auth import allows_collection, charge_collections
from textmatch.time_slices import in_slices
from textmatch.types import CollectionSummary, ModelInfo, ModelKind
from textmatch.v1 import collection_service_pb2 as pb
from textmatch.v1 import collection_service_pb2_grpc as pb_grpc
from textmatch.wire.collections import page_of, settings_from_proto, summary_to_proto

if TYPE_CHECKING:
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]  # generic in the stubs only

_GET_MODELS_SECONDS = 10.0


class CollectionServicer(pb_grpc.CollectionServiceServicer):
    """The service as protos/textmatch/v1/collection_service.proto describes it."""

    def __init__(self, store: CollectionStore, encoder: EncoderClient) -> None:
        self._store = store
        self._encoder = encoder

    async def CreateCollection(
        self, request: pb.CreateCollectionRequest, context: Context
    ) -> pb.CreateCollectionResponse:
        settings = settings_from_proto(request.collection)
        settings.check()
        PayloadIndexes(settings.payload_indexes)
        bi_encoder = await self._bi_encoder(settings)
        collection = noted(await self._store.create(settings))
        # An earlier call may have made it, and its model may have been changed since.
        if not await collection.index.model_in_use():
            await collection.index.collections.prepare(bi_encoder.model_id, bi_encoder.dimension)
        return pb.CreateCollectionResponse(collection=summary_to_proto(await _summary(collection)))

    async def GetCollection(
        self, request: pb.GetCollectionRequest, context: Context
    ) -> pb.GetCollectionResponse:
        collection = noted(await self._store.get(request.name))
        return pb.GetCollectionResponse(collection=summary_to_proto(await _summary(collection)))

    async def ListCollections(
        self, request: pb.ListCollectionsRequest, context: Context
    ) -> pb.ListCollectionsResponse:
        configs = {one.name: one for one in await self._store.registry.all() if allows_collection(one.name)}
        names, next_page_token = page_of(request, list(configs))
        charge_collections(len(names))
        response = pb.ListCollectionsResponse(next_page_token=next_page_token)
        async for name in in_slices(names):
            if summary := await self._listed(configs[name]):
                response.collections.append(summary_to_proto(summary))
        return response

    async def DeleteCollection(
        self, request: pb.DeleteCollectionRequest, context: Context
    ) -> pb.DeleteCollectionResponse:
        # No name means `default` elsewhere, but nothing is deleted or adopted without being named.
        raise_violations([name_violation("name", request.name)])
        await self._store.delete(request.name)
        return pb.DeleteCollectionResponse()

    async def AdoptCollection(
        self, request: pb.AdoptCollectionRequest, context: Context
    ) -> pb.AdoptCollectionResponse:
        raise_violations([name_violation("name", request.name)])
        collection = noted(await self._store.adopt(request.name))
        return pb.AdoptCollectionResponse(collection=summary_to_proto(await _summary(collection)))

    async def _bi_encoder(self, settings: CollectionConfig) -> ModelInfo:
        """The model for the first document.

        Raises:
            ModelNotFound: the encoder does not serve a model of the settings.
        """
        served = await self._encoder.models(timeout_seconds=_GET_MODELS_SECONDS)
        if settings.cross_encoder:
            _find(served, ModelKind.CROSS_ENCODER, settings.cross_encoder)
        return _find(served, ModelKind.BI_ENCODER, settings.bi_encoder)

    async def _listed(self, config: CollectionConfig) -> CollectionSummary | None:
        try:
            return await _summary(await self._store.get(config.name))
        except CollectionNotFound:
            # It has just been deleted.
            return None
        except CollectionNotOwned:
            # Another installation has adopted it. It can still be deleted here.
            return CollectionSummary(config, "", 0)


async def _summary(collection: Collection) -> CollectionSummary:
    index = collection.index
    return CollectionSummary(collection.config, await index.model_in_use(), await index.count())


def _find(served: list[ModelInfo], kind: ModelKind, name: str) -> ModelInfo:
    """The model of that kind with a name or an id; the default one if the name is empty."""
    models = [one for one in served if one.kind is kind]
    for model in models:
        if name in ("", model.name, model.model_id):
            return model
    known = ", ".join(one.model_id for one in models) or "none"
    raise ModelNotFound(name or kind, f'no {kind} "{name}" is served; served: {known}')

"""The gRPC service `qdrant.Collections`."""

from __future__ import annotations

from qdrant_client import grpc as pb

from standalone.qdrant_edge.catalog import Catalog
from standalone.qdrant_edge.server import Handlers


class CollectionsServicer:
    """Collections and aliases."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    @property
    def handlers(self) -> Handlers:
        """The methods that are served, by their names in the API."""
        return {
            "Get": self._get,
            "List": self._list,
            "Create": self._create,
            "Update": self._update,
            "Delete": self._delete,
            "UpdateAliases": self._update_aliases,
            "ListCollectionAliases": self._list_collection_aliases,
            "ListAliases": self._list_aliases,
            "CollectionExists": self._exists,
        }

    async def _get(self, request: pb.GetCollectionInfoRequest) -> pb.GetCollectionInfoResponse:
        return pb.GetCollectionInfoResponse(result=self._catalog.resolve(request.collection_name).info())

    async def _list(self, _request: pb.ListCollectionsRequest) -> pb.ListCollectionsResponse:
        descriptions = [pb.CollectionDescription(name=name) for name in sorted(self._catalog.names)]
        return pb.ListCollectionsResponse(collections=descriptions)

    async def _create(self, request: pb.CreateCollection) -> pb.CollectionOperationResponse:
        self._catalog.create(request)
        return pb.CollectionOperationResponse(result=True)

    async def _update(self, request: pb.UpdateCollection) -> pb.CollectionOperationResponse:
        self._catalog.resolve(request.collection_name).change_settings(request)
        return pb.CollectionOperationResponse(result=True)

    async def _delete(self, request: pb.DeleteCollection) -> pb.CollectionOperationResponse:
        return pb.CollectionOperationResponse(result=await self._catalog.delete(request.collection_name))

    async def _update_aliases(self, request: pb.ChangeAliases) -> pb.CollectionOperationResponse:
        self._catalog.change_aliases(request.actions)
        return pb.CollectionOperationResponse(result=True)

    async def _list_collection_aliases(
        self, request: pb.ListCollectionAliasesRequest
    ) -> pb.ListAliasesResponse:
        name = self._catalog.resolve(request.collection_name).name
        return self._described({alias: one for alias, one in self._catalog.aliases.items() if one == name})

    async def _list_aliases(self, _request: pb.ListAliasesRequest) -> pb.ListAliasesResponse:
        return self._described(self._catalog.aliases)

    async def _exists(self, request: pb.CollectionExistsRequest) -> pb.CollectionExistsResponse:
        name = self._catalog.aliases.get(request.collection_name, request.collection_name)
        return pb.CollectionExistsResponse(result=pb.CollectionExists(exists=name in self._catalog.names))

    @staticmethod
    def _described(aliases: dict[str, str]) -> pb.ListAliasesResponse:
        return pb.ListAliasesResponse(
            aliases=[
                pb.AliasDescription(alias_name=alias, collection_name=collection)
                for alias, collection in sorted(aliases.items())
            ]
        )

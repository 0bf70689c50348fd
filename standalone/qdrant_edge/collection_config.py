"""The configuration of a collection, a `CreateCollection` message as received, and its file."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import qdrant_edge as edge
from google.protobuf import json_format
from qdrant_client import grpc as pb

from standalone.qdrant_edge.atomic_files import read_json, write_json
from standalone.qdrant_edge.conversions import DEFAULT_VECTOR, VectorSchema, to_edge_enum
from standalone.qdrant_edge.errors import invalid, unsupported
from standalone.qdrant_edge.strict_mode import check_available

RECORD_FILE: Final = "collection.json"

MAX_VECTOR_SIZE: Final = 65_536
DEFAULT_INDEXING_THRESHOLD_KB: Final = 10_000
FLUSH_INTERVAL_SECONDS: Final = 30

_HNSW_DEFAULTS: Final = pb.HnswConfigDiff(
    m=16, ef_construct=100, full_scan_threshold=10_000, max_indexing_threads=0
)
_OPTIMIZER_DEFAULTS: Final = pb.OptimizersConfigDiff(
    deleted_threshold=0.2,
    vacuum_min_vector_number=1_000,
    default_segment_number=0,
    indexing_threshold=DEFAULT_INDEXING_THRESHOLD_KB,
    flush_interval_sec=FLUSH_INTERVAL_SECONDS,
)
_WAL_DEFAULTS: Final = pb.WalConfigDiff(wal_capacity_mb=32, wal_segments_ahead=0)
_OPTIMIZER_FIELDS: Final = (
    "deleted_threshold",
    "vacuum_min_vector_number",
    "default_segment_number",
    "max_segment_size",
)
_UNSUPPORTED_CHANGES: Final = (
    "params",
    "vectors_config",
    "quantization_config",
    "sparse_vectors_config",
    "strict_mode_config",
)


@dataclass(frozen=True)
class CollectionRecord:
    """The file that makes a folder a collection.

    `unindexed` is the number of points written since the index was built, as of the last flush.
    """

    name: str
    shard: str
    created_at: dt.datetime
    settings: pb.CreateCollection
    unindexed: int

    @classmethod
    def load(cls, folder: Path) -> CollectionRecord | None:
        """The record in a folder, or None if a crash left the folder half-created or half-deleted."""
        path = folder / RECORD_FILE
        if not path.exists():
            return None
        stored = read_json(path)
        settings = json_format.ParseDict(stored["settings"], pb.CreateCollection())
        created_at = dt.datetime.fromisoformat(stored["created_at"])
        return cls(settings.collection_name, stored["shard"], created_at, settings, stored["backlog"])

    def save(self, folder: Path) -> None:
        """Write the record."""
        settings = json_format.MessageToDict(self.settings, preserving_proto_field_name=True)
        stored = {
            "shard": self.shard,
            "created_at": self.created_at.isoformat(),
            "settings": settings,
            "backlog": self.unindexed,
        }
        write_json(folder / RECORD_FILE, stored)


def check_supported(settings: pb.CreateCollection) -> None:
    """Refuse settings that a real server would apply and this one would ignore.

    Raises:
        RequestError: naming the part.
    """
    if settings.sharding_method == pb.Custom:
        raise unsupported("custom sharding")
    check_available(settings.strict_mode_config)
    dense = dense_params(settings)
    if not dense and not settings.sparse_vectors_config.map:
        raise invalid("a collection needs at least one vector")
    for name, params in dense.items():
        if not 1 <= params.size <= MAX_VECTOR_SIZE:
            raise invalid(f"size of vector `{name}` is {params.size}, must be from 1 to {MAX_VECTOR_SIZE}")
        if params.distance == pb.UnknownDistance:
            raise invalid(f"vector `{name}` needs a distance")
        if params.HasField("multivector_config"):
            raise unsupported("multivector_config")


def dense_params(settings: pb.CreateCollection) -> dict[str, pb.VectorParams]:
    """Dense vectors by name."""
    kind = settings.vectors_config.WhichOneof("config")
    if kind == "params":
        return {DEFAULT_VECTOR: settings.vectors_config.params}
    return dict(settings.vectors_config.params_map.map)


def vector_schema(settings: pb.CreateCollection) -> VectorSchema:
    """The schema that the vectors of a point are checked against."""
    sizes = {name: params.size for name, params in dense_params(settings).items()}
    return VectorSchema(sizes, frozenset(settings.sparse_vectors_config.map))


def indexing_threshold_kb(settings: pb.CreateCollection) -> int:
    """Size of unindexed vectors that makes an HNSW graph worth building; 0 means never."""
    if settings.optimizers_config.HasField("indexing_threshold"):
        return settings.optimizers_config.indexing_threshold
    return DEFAULT_INDEXING_THRESHOLD_KB


def edge_config(settings: pb.CreateCollection) -> edge.EdgeConfig:
    """The configuration for the engine."""
    sparse = {name: _sparse_params(one) for name, one in settings.sparse_vectors_config.map.items()}
    dense = {
        name: _dense_params(params, settings.hnsw_config) for name, params in dense_params(settings).items()
    }
    return edge.EdgeConfig(
        vectors=dense or None,
        sparse_vectors=sparse or None,
        on_disk_payload=_optional(settings, "on_disk_payload"),
        payload_memory=_memory(settings.payload),
        id_tracker_memory=_memory(settings.id_tracker),
        hnsw_config=_hnsw(settings.hnsw_config),
        quantization_config=_quantization(settings),
        optimizers=edge.EdgeOptimizersConfig(
            indexing_threshold=indexing_threshold_kb(settings),
            **{name: _optional(settings.optimizers_config, name) for name in _OPTIMIZER_FIELDS},
        ),
    )


def described(settings: pb.CreateCollection) -> pb.CollectionConfig:
    """The configuration as `GetCollectionInfo` shows it, defaults filled in."""
    config = pb.CollectionConfig(
        params=pb.CollectionParams(
            shard_number=1,
            replication_factor=1,
            write_consistency_factor=1,
            on_disk_payload=settings.on_disk_payload if settings.HasField("on_disk_payload") else True,
            vectors_config=settings.vectors_config,
        ),
        hnsw_config=_HNSW_DEFAULTS,
        optimizer_config=_OPTIMIZER_DEFAULTS,
        wal_config=_WAL_DEFAULTS,
        metadata=settings.metadata,
        strict_mode_config=settings.strict_mode_config,
    )
    config.hnsw_config.MergeFrom(settings.hnsw_config)
    config.optimizer_config.MergeFrom(settings.optimizers_config)
    if settings.HasField("sparse_vectors_config"):
        config.params.sparse_vectors_config.CopyFrom(settings.sparse_vectors_config)
    if settings.HasField("quantization_config"):
        config.quantization_config.CopyFrom(settings.quantization_config)
    return config


def merged(settings: pb.CreateCollection, change: pb.UpdateCollection) -> pb.CreateCollection:
    """The configuration after `UpdateCollection`; the engine applies it at the next rebuild or start.

    Raises:
        RequestError: the change would need the stored vectors to be rewritten.
    """
    for part in _UNSUPPORTED_CHANGES:
        if change.HasField(part):
            raise unsupported(f"changing {part}")
    result = pb.CreateCollection()
    result.CopyFrom(settings)
    result.hnsw_config.MergeFrom(change.hnsw_config)
    result.optimizers_config.MergeFrom(change.optimizers_config)
    for key, value in change.metadata.items():
        result.metadata[key].CopyFrom(value)
    return result


def _dense_params(params: pb.VectorParams, shared_hnsw: pb.HnswConfigDiff) -> edge.EdgeVectorParams:
    hnsw = None
    if params.HasField("hnsw_config"):
        own = pb.HnswConfigDiff()
        own.CopyFrom(shared_hnsw)
        own.MergeFrom(params.hnsw_config)
        hnsw = _hnsw(own)
    return edge.EdgeVectorParams(
        params.size,
        to_edge_enum(edge.Distance, pb.Distance, params.distance),
        on_disk=_optional(params, "on_disk"),
        datatype=_datatype(params),
        hnsw_config=hnsw,
        quantization_config=_quantization(params),
        memory=_memory(params),
    )


def _sparse_params(params: pb.SparseVectorParams) -> edge.EdgeSparseVectorParams:
    return edge.EdgeSparseVectorParams(
        full_scan_threshold=_optional(params.index, "full_scan_threshold"),
        on_disk=_optional(params.index, "on_disk"),
        modifier=edge.Modifier.Idf if params.modifier == pb.Idf else None,
        datatype=_datatype(params.index),
        memory=_memory(params.index),
    )


def _hnsw(diff: pb.HnswConfigDiff) -> edge.HnswIndexConfig:
    config = pb.HnswConfigDiff()
    config.CopyFrom(_HNSW_DEFAULTS)
    config.MergeFrom(diff)
    arguments = {field.name: value for field, value in config.ListFields() if field.name != "memory"}
    return edge.HnswIndexConfig(**arguments, memory=_memory(config))


def _quantization(message: Any) -> Any:
    """Quantization of a collection or of one vector."""
    if not message.HasField("quantization_config"):
        return None
    kind = message.quantization_config.WhichOneof("quantization")
    if kind is None:
        raise invalid("quantization_config is empty")
    if kind != "scalar":
        raise unsupported(f"{kind} quantization")
    scalar = message.quantization_config.scalar
    return edge.ScalarQuantizationConfig(
        edge.ScalarType.Int8,
        quantile=_optional(scalar, "quantile"),
        always_ram=_optional(scalar, "always_ram"),
        memory=_memory(scalar),
    )


def _datatype(message: Any) -> Any:
    if message.datatype == pb.Default:
        return None
    return to_edge_enum(edge.VectorStorageDatatype, pb.Datatype, message.datatype)


def _memory(message: Any) -> Any:
    if message.memory == pb.MemoryUnknown:
        return None
    return to_edge_enum(edge.Memory, pb.Memory, message.memory)


def _optional(message: Any, field: str) -> Any:
    return getattr(message, field) if message.HasField(field) else None

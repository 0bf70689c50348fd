"""One collection: an engine shard with its configuration, its flushes and its counters."""

from __future__ import annotations

import asyncio
import datetime as dt
import shutil
import struct
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import qdrant_edge as edge
from google.protobuf.message import Message
from qdrant_client import grpc as pb

from standalone.qdrant_edge.atomic_files import sync_files
from standalone.qdrant_edge.collection_config import (
    FLUSH_INTERVAL_SECONDS,
    RECORD_FILE,
    CollectionRecord,
    described,
    edge_config,
    indexing_threshold_kb,
    merged,
    vector_schema,
)
from standalone.qdrant_edge.conversions import EdgeId
from standalone.qdrant_edge.errors import engine_call
from standalone.qdrant_edge.strict_mode import check_filters
from standalone.qdrant_edge.updates import parse_update, to_operations, written_ids

_BYTES_PER_COMPONENT: Final = 4
# A start replays writes that are not flushed; this limit keeps it to seconds.
_MAX_UNFLUSHED_BYTES: Final = 256 * 2**20
# A larger index may have more unindexed points, up to a number that is still scanned within milliseconds.
_UNINDEXED_SHARE: Final = 0.25
_MAX_UNINDEXED_THRESHOLDS: Final = 8
_MAX_COUNTED_IDS: Final = 100_000
# Header of a request in the journal: lengths of the method's name and of the request.
_JOURNAL_HEADER: Final = struct.Struct("<II")


class Journal:
    """A queue of write requests on disk, used during a rebuild.

    It is not durable, because the log of the shard has the same writes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = path.open("wb")
        self._reader = path.open("rb")
        self._pending = 0
        self.total_bytes = 0

    def append(self, method: str, request: Message) -> None:
        """Add a request at the end."""
        name, data = method.encode(), request.SerializeToString()
        self._writer.write(_JOURNAL_HEADER.pack(len(name), len(data)) + name + data)
        self._pending += 1
        self.total_bytes += len(data)

    def drain(self, limit: int) -> Iterator[tuple[str, Message]]:
        """Take up to `limit` requests off the front."""
        self._writer.flush()
        for _ in range(min(limit, self._pending)):
            name_size, data_size = _JOURNAL_HEADER.unpack(self._reader.read(_JOURNAL_HEADER.size))
            name = self._reader.read(name_size).decode()
            self._pending -= 1
            yield name, parse_update(name, self._reader.read(data_size))

    def __len__(self) -> int:
        return self._pending

    def close(self) -> None:
        """Remove the file."""
        self._writer.close()
        self._reader.close()
        self._path.unlink(missing_ok=True)


class UnindexedCounter:
    """Counts the points written since the index was built; repeated writes of a point mostly count once.

    The engine does not report this: a changed point moves from the HNSW graph to a segment that is scanned,
    but still counts as an indexed vector.
    """

    def __init__(self, carried: int) -> None:
        """Continue from the number that the previous process saved."""
        self._carried = carried
        self._ids: set[EdgeId] = set()

    def add(self, ids: Iterable[EdgeId]) -> None:
        """Count points that have been written."""
        self._ids.update(ids)
        if len(self._ids) >= _MAX_COUNTED_IDS:
            self._carried += len(self._ids)
            self._ids = set()

    def __len__(self) -> int:
        return self._carried + len(self._ids)

    def take(self) -> int:
        """Reset to zero; returns the number so far."""
        taken = len(self)
        self._carried = 0
        self._ids = set()
        return taken

    def give_back(self, taken: int) -> None:
        """Add back a number that `take` returned, because those points have not been indexed."""
        self._carried += taken


class EdgeCollection:
    """Reads and writes of one collection; belongs to one event loop."""

    def __init__(self, folder: Path, record: CollectionRecord, shard: edge.EdgeShard) -> None:
        self.folder = folder
        self.write_lock = asyncio.Lock()
        self.journal: Journal | None = None
        self.rebuild_task: asyncio.Task[None] | None = None
        self.unindexed = UnindexedCounter(record.unindexed)
        self._record = record
        self.shard = shard
        self._schema = vector_schema(record.settings)
        self._unflushed_bytes = 0
        self._is_synced = True
        self._flushed_at = time.monotonic()
        self._left_over = 0.0
        self._optimized_hnsw = record.settings.hnsw_config

    @classmethod
    def create(cls, folder: Path, settings: pb.CreateCollection) -> EdgeCollection:
        """Make a collection in a new folder; it exists once the record is written, which comes last."""
        now = dt.datetime.now(tz=dt.UTC)
        record = CollectionRecord(settings.collection_name, new_shard_name(), now, settings, unindexed=0)
        path = folder / record.shard
        path.mkdir(parents=True)
        shard = engine_call(edge.EdgeShard.create, str(path), edge_config(settings))
        engine_call(shard.flush)
        record.save(folder)
        return cls(folder, record, shard)

    @classmethod
    def open(cls, folder: Path, record: CollectionRecord) -> EdgeCollection:
        """Load a collection, remove the files of an interrupted rebuild and replay the engine's log."""
        for path in folder.iterdir():
            if path.name not in {RECORD_FILE, record.shard}:
                _remove(path)
        config = edge_config(record.settings)
        shard = engine_call(edge.EdgeShard.load, str(folder / record.shard), config)
        # Without a flush the next start would replay the same log again, and more.
        engine_call(shard.flush)
        return cls(folder, record, shard)

    @property
    def name(self) -> str:
        """The collection's own name, never an alias."""
        return self._record.name

    @property
    def settings(self) -> pb.CreateCollection:
        """The current configuration."""
        return self._record.settings

    @property
    def shard_folder(self) -> Path:
        """The folder of the engine's files."""
        return self.folder / self._record.shard

    async def update(self, method: str, request: Message) -> None:
        """Apply a write request of that gRPC method; afterwards it survives a crash of the process."""
        operations = to_operations(method, request, self._schema)
        async with self.write_lock:
            if self.journal is not None:
                self.journal.append(method, request)
            self._unflushed_bytes += request.ByteSize()
            self._is_synced = False
            self.unindexed.add(written_ids(request))
            for operation in operations:
                engine_call(self.shard.update, operation)

    def replay(self, shard: edge.EdgeShard, method: str, request: Message) -> None:
        """Apply a request that was applied here to a copy of the shard."""
        for operation in to_operations(method, request, self._schema):
            engine_call(shard.update, operation)

    def query(self, request: edge.QueryRequest) -> list[edge.ScoredPoint]:
        """Hits of one query, best first."""
        return engine_call(self.shard.query, request)

    def scroll(self, request: edge.ScrollRequest) -> tuple[list[edge.Record], Any]:
        """A page of points and the id that the next one starts with."""
        return engine_call(self.shard.scroll, request)

    def retrieve(self, ids: list[Any], with_payload: Any, with_vectors: Any) -> list[edge.Record]:
        """Those of the points that are stored."""
        return engine_call(self.shard.retrieve, ids, with_payload, with_vectors)

    def count(self, request: edge.CountRequest) -> int:
        """How many points match the filter."""
        return engine_call(self.shard.count, request)

    def info(self) -> pb.CollectionInfo:
        """State, size, configuration and payload indexes; yellow while a rebuild runs or waits."""
        info = engine_call(self.shard.info)
        is_settled = self.rebuild_task is None and not self.needs_rebuild()
        described_info = pb.CollectionInfo(
            status=pb.Green if is_settled else pb.Yellow,
            optimizer_status=pb.OptimizerStatus(ok=True),
            segments_count=info.segments_count,
            points_count=info.points_count,
            indexed_vectors_count=info.indexed_vectors_count,
            config=described(self.settings),
            payload_schema={field: _described_index(one) for field, one in info.payload_schema.items()},
        )
        described_info.created_at.FromDatetime(self._record.created_at)
        return described_info

    def check_filters(self, request: Message, *, is_update: bool) -> None:
        """Refuse a request that strict mode forbids."""
        if self.settings.strict_mode_config.enabled:
            indexed = engine_call(self.shard.info).payload_schema.keys()
            check_filters(request, self.settings.strict_mode_config, indexed, is_update=is_update)

    def change_settings(self, change: pb.UpdateCollection) -> None:
        """Store changed parameters; the next rebuild applies them."""
        self._record = replace(self._record, settings=merged(self.settings, change))
        self._record.save(self.folder)

    def needs_rebuild(self) -> bool:
        """Whether enough vectors are outside the HNSW graph, or parameters wait to be applied."""
        threshold_kb = indexing_threshold_kb(self.settings)
        if not self._schema.dense or threshold_kb == 0:
            return False
        info = engine_call(self.shard.info)
        if self._optimized_hnsw != self.settings.hnsw_config:
            return bool(info.points_count)
        vector_kb = max(self._schema.dense.values()) * _BYTES_PER_COMPONENT / 1024
        threshold = threshold_kb / vector_kb
        limit = min(
            max(threshold, info.points_count * _UNINDEXED_SHARE), threshold * _MAX_UNINDEXED_THRESHOLDS
        )
        return max(len(self.unindexed), self._missing_points(info) - self._left_over) > limit

    def unindexed_points(self, shard: edge.EdgeShard) -> float:
        """Points outside the graph by the engine's count, which includes points that lack a vector."""
        return self._missing_points(engine_call(shard.info))

    def rebuild_settled(self, settings: pb.CreateCollection, left_over: float) -> None:
        """Note that a rebuild with these settings is done; the same rebuild is not started again."""
        self._optimized_hnsw = settings.hnsw_config
        self._left_over = left_over

    def adopt(self, shard_name: str, shard: edge.EdgeShard, replayed_bytes: int) -> Path:
        """Switch to an optimised copy of the shard; returns the folder that is no longer used.

        Args:
            replayed_bytes: size of the writes that the copy has only in its log.
        """
        abandoned = self.shard_folder
        self._record = replace(self._record, shard=shard_name)
        self._record.save(self.folder)
        self.shard = shard
        self._unflushed_bytes = replayed_bytes
        self._is_synced = False
        return abandoned

    def flush(self) -> None:
        """Write everything to the segments and empty the engine's log."""
        engine_call(self.shard.flush)
        self._save_unindexed()
        self._unflushed_bytes = 0
        self._flushed_at = time.monotonic()

    def is_flush_due(self) -> bool:
        """Whether the log is old or long enough to justify the pause of a flush."""
        age_seconds = time.monotonic() - self._flushed_at
        is_old = self._unflushed_bytes > 0 and age_seconds >= FLUSH_INTERVAL_SECONDS
        return is_old or self._unflushed_bytes >= _MAX_UNFLUSHED_BYTES

    async def sync_log(self) -> None:
        """Sync the engine's log to the disk, without blocking anything."""
        if self._is_synced:
            return
        self._is_synced = True
        await asyncio.to_thread(sync_files, self.shard_folder / "wal")

    async def close(self) -> None:
        """End a running rebuild and write everything to disk."""
        if self.rebuild_task is not None:
            self.rebuild_task.cancel()
            await asyncio.gather(self.rebuild_task, return_exceptions=True)
        self.flush()
        engine_call(self.shard.close)

    async def delete(self) -> None:
        """Remove the collection from disk; once the record is deleted, a restart finishes the removal."""
        await self.close()
        (self.folder / RECORD_FILE).unlink()
        await asyncio.to_thread(shutil.rmtree, self.folder)

    def _save_unindexed(self) -> None:
        if self._record.unindexed != len(self.unindexed):
            self._record = replace(self._record, unindexed=len(self.unindexed))
            self._record.save(self.folder)

    def _missing_points(self, info: edge.ShardInfo) -> float:
        vectors_a_point = len(self._schema.dense) + len(self._schema.sparse)
        missing = info.points_count * vectors_a_point - info.indexed_vectors_count
        return missing / max(1, len(self._schema.dense))


def _described_index(info: edge.PayloadIndexInfo) -> pb.PayloadSchemaInfo:
    # The engine's members print as `PayloadSchemaType.Keyword`.
    data_type = pb.PayloadSchemaType.Value(str(info.data_type).rpartition(".")[2])
    return pb.PayloadSchemaInfo(data_type=data_type, points=info.points)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def new_shard_name() -> str:
    """A name for a shard's folder that was never used."""
    return f"shard-{uuid.uuid4().hex}"

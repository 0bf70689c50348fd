"""What a collection's folder says about itself."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf import json_format
from qdrant_client import grpc as pb

from standalone.qdrant_edge.atomic_files import read_json, write_json

RECORD_FILE: Final = "collection.json"


@dataclass(frozen=True)
class CollectionRecord:
    """What a collection's file says; a folder without one is no collection (any more)."""

    name: str
    shard: str
    created_at: dt.datetime
    settings: pb.CreateCollection
    # Points written since the index was built, as of the last flush.
    backlog: int

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
        """Write the record, which makes the folder a collection."""
        settings = json_format.MessageToDict(self.settings, preserving_proto_field_name=True)
        stored = {
            "shard": self.shard,
            "created_at": self.created_at.isoformat(),
            "settings": settings,
            "backlog": self.backlog,
        }
        write_json(folder / RECORD_FILE, stored)

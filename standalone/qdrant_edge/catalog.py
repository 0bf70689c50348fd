"""All collections and aliases of a data folder."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from qdrant_client import grpc as pb

from standalone.qdrant_edge.atomic_files import read_json, sync_folder, write_json
from standalone.qdrant_edge.collection import EdgeCollection
from standalone.qdrant_edge.collection_config import CollectionRecord, check_supported
from standalone.qdrant_edge.errors import already_exists, internal, invalid, not_found
from standalone.qdrant_edge.strict_mode import STRICT

_log = logging.getLogger(__name__)

_MAX_NAME_LENGTH = 255
_FORBIDDEN_IN_NAMES = frozenset('<>:"/\\|?*\0\x1f')


class Catalog:
    """Finds collections by name or alias; every change is on disk before it is visible."""

    def __init__(self, data_dir: Path, *, is_strict: bool = False) -> None:
        """Load a data folder, and finish creations and deletions that a crash interrupted.

        Args:
            is_strict: new collections are in strict mode unless their settings say otherwise.
        """
        self._is_strict = is_strict
        self._folder = data_dir / "collections"
        self._aliases_path = data_dir / "aliases.json"
        self._collections: dict[str, EdgeCollection] = {}
        # Collections that the engine cannot load: folder and reason.
        self._broken: dict[str, tuple[Path, str]] = {}
        self._folder.mkdir(exist_ok=True)
        for folder in sorted(self._folder.iterdir()):
            self._load(folder)
        stored = read_json(self._aliases_path) if self._aliases_path.exists() else {}
        self.aliases = {alias: target for alias, target in stored.items() if target in self.names}

    @property
    def collections(self) -> list[EdgeCollection]:
        """All collections that could be loaded."""
        return list(self._collections.values())

    @property
    def names(self) -> list[str]:
        """Names of all collections, aliases not included."""
        return [*self._collections, *self._broken]

    def resolve(self, name: str) -> EdgeCollection:
        """The collection of that name or alias.

        Raises:
            RequestError: NOT_FOUND, or INTERNAL if the engine could not load it.
        """
        name = self.aliases.get(name, name)
        if name in self._broken:
            raise internal(f"Collection `{name}` could not be loaded: {self._broken[name][1]}")
        if name not in self._collections:
            raise not_found(f"Collection `{name}` doesn't exist!")
        return self._collections[name]

    def create(self, settings: pb.CreateCollection) -> None:
        """Make a new collection."""
        name = settings.collection_name
        _check_name(name)
        if name in self.names:
            raise already_exists(f"Collection `{name}` already exists!")
        if name in self.aliases:
            raise invalid(
                f"Can't create collection with name {name}. Alias with the same name already exists"
            )
        if self._is_strict and not settings.HasField("strict_mode_config"):
            settings.strict_mode_config.CopyFrom(STRICT)
        check_supported(settings)
        folder = self._folder / uuid.uuid4().hex
        folder.mkdir()
        sync_folder(self._folder)
        try:
            self._collections[name] = EdgeCollection.create(folder, settings)
        except Exception:
            shutil.rmtree(folder)
            raise

    async def delete(self, name: str) -> bool:
        """Remove a collection with its aliases; returns whether it existed."""
        if name not in self.names:
            return False
        self._save_aliases({alias: target for alias, target in self.aliases.items() if target != name})
        if name in self._broken:
            folder, _ = self._broken.pop(name)
            shutil.rmtree(folder)
        else:
            await self._collections.pop(name).delete()
        return True

    def change_aliases(self, actions: Iterable[pb.AliasOperations]) -> None:
        """Apply all actions in order, in one step; none if one of them is invalid."""
        aliases = dict(self.aliases)
        for action in actions:
            self._change_alias(aliases, action)
        self._save_aliases(aliases)

    async def close(self) -> None:
        """Write everything to disk."""
        for collection in self.collections:
            await collection.close()

    def _load(self, folder: Path) -> None:
        name = folder.name
        try:
            record = CollectionRecord.load(folder)
            if record is None:
                _log.warning("removing %s: the collection in it is incomplete", folder)
                shutil.rmtree(folder)
                return
            name = record.name
            self._collections[name] = EdgeCollection.open(folder, record)
        except Exception as error:  # noqa: BLE001 (the other collections must be served)
            _log.exception("cannot load collection %s", name)
            self._broken[name] = (folder, str(error))

    def _save_aliases(self, aliases: dict[str, str]) -> None:
        if aliases != self.aliases:
            write_json(self._aliases_path, aliases)
            self.aliases = aliases

    def _change_alias(self, aliases: dict[str, str], action: pb.AliasOperations) -> None:
        match action.WhichOneof("action"):
            case "create_alias":
                created = action.create_alias
                if created.collection_name not in self.names:
                    raise not_found(f"Collection `{created.collection_name}` doesn't exist!")
                if created.alias_name in self.names:
                    raise already_exists(f"Collection `{created.alias_name}` already exists!")
                _check_name(created.alias_name)
                aliases[created.alias_name] = created.collection_name
            case "delete_alias":
                aliases.pop(action.delete_alias.alias_name, None)
            case "rename_alias":
                renamed = action.rename_alias
                if renamed.old_alias_name not in aliases:
                    raise not_found(f"Alias {renamed.old_alias_name} does not exists!")
                aliases[renamed.new_alias_name] = aliases.pop(renamed.old_alias_name)
            case _:
                raise invalid("Malformed AliasOperation type")


def _check_name(name: str) -> None:
    """Refuse the names that a real server refuses."""
    if not 1 <= len(name) <= _MAX_NAME_LENGTH:
        raise invalid(f"a name must have 1 to {_MAX_NAME_LENGTH} characters, not {len(name)}")
    if forbidden := _FORBIDDEN_IN_NAMES.intersection(name):
        raise invalid(f"the name `{name}` must not contain {sorted(forbidden)}")

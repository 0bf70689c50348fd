"""The roles of a collection's physical collections, and where they are decided.

    in use       answers queries, and gets every write and delete
    next         is being built, and gets every write and delete too
    previous     was in use, is kept for a rollback, and gets every write and delete too
    abandoned    was next or previous, and has missed some

Redis decides which physical collection has which role: one record, in which every change counts the `epoch`
up by one. A change names the epoch that it was derived from, and fails if there has been another one. All
processes therefore see the same roles at the same time, which nodes of a Qdrant cluster do not.

Redis may lose its last seconds, or may be restored from a backup. Qdrant has a copy of the record, with its
epoch. `Roles.after_loss` says which roles hold when the copy is ahead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from typing import Any, Protocol

from textmatch.collection_config import SEPARATOR


class CollectionRole(Enum):
    """A role other than "in use". The value is the suffix of its alias."""

    NEXT = f"{SEPARATOR}next"
    PREVIOUS = f"{SEPARATOR}previous"
    ABANDONED = f"{SEPARATOR}abandoned"


@dataclass(frozen=True)
class Roles:
    """The model id of the physical collection in each role; "" if there is none.

    Attributes:
        epoch: the number of changes so far; 0 if there was none.
    """

    in_use: str = ""
    next: str = ""
    previous: str = ""
    abandoned: str = ""
    epoch: int = 0

    @property
    def dual_write_targets(self) -> tuple[str, ...]:
        """The collections that receive every write and delete too, after the one in use."""
        return tuple(one for one in (self.next, self.previous) if one)

    @property
    def written(self) -> tuple[str, ...]:
        """The one in use, if there is one, and the dual-write targets."""
        return tuple(one for one in (self.in_use, *self.dual_write_targets) if one)

    def of(self, role: CollectionRole) -> str:
        """The model id in a role other than "in use"."""
        others = {
            CollectionRole.NEXT: self.next,
            CollectionRole.PREVIOUS: self.previous,
            CollectionRole.ABANDONED: self.abandoned,
        }
        return others[role]

    def without(self, model_id: str) -> Roles:
        """The roles without those of a physical collection that is gone.

        Those that were written besides the one in use are incomplete without it.
        """
        if model_id == self.in_use:
            return Roles(abandoned=self.next or self.previous or self.abandoned, epoch=self.epoch)

        def kept(one: str) -> str:
            return "" if one == model_id else one

        return replace(
            self, next=kept(self.next), previous=kept(self.previous), abandoned=kept(self.abandoned)
        )

    def after_loss(self, ahead: Roles) -> Roles:
        """The roles that hold after Redis went back from `ahead` to these. The epoch is a new one.

        Writes that were acknowledged before the loss are in all collections that `ahead` writes to, and
        later ones in all that these write to. A collection of `ahead` that these do not write to may lack
        some. If the one in use here is complete in `ahead`, it is therefore used, and the other one is
        abandoned. In all other cases the roles are those of `ahead`.
        """
        epoch = max(self.epoch, ahead.epoch) + 1
        is_complete = self.in_use in (ahead.in_use, ahead.previous)
        if self.in_use and is_complete and not set(ahead.written) <= set(self.written):
            [other] = set(ahead.written) - {self.in_use}
            return Roles(self.in_use, abandoned=other, epoch=epoch)
        return replace(ahead, epoch=epoch)

    def to_mapping(self) -> dict[str, Any]:
        """JSON-like values."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: object) -> Roles:
        """The reverse of `to_mapping`; no roles if the values have another form."""
        if not isinstance(values, Mapping) or not {one.name for one in fields(cls)} <= values.keys():
            return cls()
        return cls(
            in_use=str(values["in_use"]),
            next=str(values["next"]),
            previous=str(values["previous"]),
            abandoned=str(values["abandoned"]),
            epoch=int(values["epoch"]),
        )


class RoleRecord(Protocol):
    """The record of a collection's roles (textmatch/queue/registry.py).

    Every method raises DependencyUnavailable when Redis does not answer.
    """

    async def read(self) -> Roles:
        """The roles now; none, with epoch 0, if there is no record."""

    async def change(self, epoch: int, roles: Roles) -> bool:
        """Replace the record of this epoch; False if it has another one by now.

        Raises:
            CollectionNotFound: the collection has been deleted.
        """

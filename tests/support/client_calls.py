"""A call of every method of the clients. `test_arguments_options.py` checks that none is missing."""

from __future__ import annotations

from types import NoneType
from typing import Any

from textmatch.collection_config import CollectionConfig
from textmatch.documents import Document
from textmatch.filters import FieldMatch
from textmatch.types import (
    CollectionSummary,
    EncodeResult,
    FoundDocuments,
    IngestStatus,
    IngestSummary,
    MatchResult,
    ScoreResult,
)

EXAMPLES: dict[str, tuple[Any, ...]] = {
    "match": ("the cat",),
    "batch_match": (["the cat"],),
    "find_duplicates": (),
    "ingest": ([{"id": "a", "text": "the cat"}],),
    "ingest_all": ([{"id": "a", "text": "the cat"}],),
    "wait_until_searchable": (),
    "get_document": ("a",),
    "get_documents": (["a"],),
    "list_documents": (),
    "count_documents": (),
    "delete": (["a"],),
    "delete_where": (FieldMatch("colour", ("red",)),),
    "ingest_status": (),
    "document_states": (["a"],),
    "list_dead_letters": (),
    "replay_dead_letters": (["a"],),
    "drop_dead_letters": (["a"],),
    "create_collection": (CollectionConfig("faq"),),
    "get_collection": ("faq",),
    "list_collections": (),
    "adopt_collection": ("faq",),
    "delete_collection": ("faq",),
    "encode": (["the cat"],),
    "score": ("the cat", ["a cat"]),
    "score_pairs": ([("the cat", "a cat")],),
    "models": (),
    "health": (),
}
ANSWERS: dict[str, type] = {
    "match": MatchResult,
    "batch_match": list,
    "find_duplicates": list,
    "ingest": list,
    "ingest_all": IngestSummary,
    "wait_until_searchable": NoneType,
    "get_document": Document,
    "get_documents": FoundDocuments,
    "list_documents": list,
    "count_documents": int,
    "delete": int,
    "delete_where": int,
    "ingest_status": IngestStatus,
    "document_states": tuple,
    "list_dead_letters": list,
    "replay_dead_letters": int,
    "drop_dead_letters": int,
    "create_collection": CollectionSummary,
    "get_collection": CollectionSummary,
    "list_collections": list,
    "adopt_collection": CollectionSummary,
    "delete_collection": NoneType,
    "encode": EncodeResult,
    "score": ScoreResult,
    "score_pairs": ScoreResult,
    "models": tuple,
    "health": tuple,
}
# Methods that send nothing until their results are read.
STREAMS = ("batch_match", "find_duplicates", "ingest", "list_documents", "list_dead_letters")


def call(client: Any, method: str, **options: Any) -> Any:
    """Call a method as in the example, and read its results."""
    answer = getattr(client, method)(*EXAMPLES[method], **options)
    return list(answer) if method in STREAMS else answer

"""Prompts before queries and documents: from settings, from the model, or from its family.

    prompts_of("intfloat/e5-base-v2", own={}, configured=None)  # Prompts("query: ", "passage: ")

Some families of models were trained with prompts before sentence-transformers could store them.
Does not import torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textmatch.errors import TextMatchError

_QUERY, _DOCUMENT = "query", "document"
# The first that is not empty: sentence-transformers adds an empty "document" prompt by default.
_DOCUMENT_NAMES = (_DOCUMENT, "passage", "corpus")


class BadPrompts(TextMatchError):
    """The setting of the prompts is not what it must be; the message says why."""


@dataclass(frozen=True)
class Prompts:
    """What is prepended to queries, and to documents."""

    query: str
    document: str

    @property
    def text(self) -> str:
        """Both, as one text that no other prompts have."""
        return json.dumps([self.query, self.document])


_FOR_RETRIEVAL = "Represent this sentence for searching relevant passages: "

# Each pattern covers the last part of a model's name. The model cards are the sources.
_FAMILIES: Mapping[str, Prompts] = {
    # https://huggingface.co/intfloat/e5-base-v2 and https://huggingface.co/intfloat/multilingual-e5-base
    r"(multilingual-)?e5-(small|base|large)(-v2|-unsupervised)?": Prompts("query: ", "passage: "),
    # https://huggingface.co/intfloat/multilingual-e5-large-instruct
    r"multilingual-e5-large-instruct": Prompts(
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: ", ""
    ),
    # https://huggingface.co/BAAI/bge-base-en-v1.5
    r"bge-(small|base|large)-en(-v1\.5)?": Prompts(_FOR_RETRIEVAL, ""),
    # https://huggingface.co/BAAI/bge-base-zh-v1.5
    r"bge-(small|base|large)-zh(-v1\.5)?": Prompts("为这个句子生成表示以用于检索相关文章：", ""),
    # https://huggingface.co/mixedbread-ai/mxbai-embed-large-v1
    r"mxbai-embed-large-v1": Prompts(_FOR_RETRIEVAL, ""),
    # https://huggingface.co/nomic-ai/nomic-embed-text-v1.5
    r"nomic-embed-text-v1(\.5)?": Prompts("search_query: ", "search_document: "),
}


def prompts_of(name: str, own: Mapping[str, str | None], configured: Prompts | None) -> Prompts:
    """The prompts of a model.

    Args:
        name: the requested name, a path or a hub name with or without a revision.
        own: the prompts in the model's configuration, by their names.
        configured: those of the settings, which replace all others.
    """
    if configured is not None:
        return configured
    document = next((prompt for key in _DOCUMENT_NAMES if (prompt := own.get(key))), "")
    found = Prompts(own.get(_QUERY) or "", document)
    if any(own.values()):
        return found
    short_name = Path(name.partition("@")[0]).name.lower()
    families = (family for pattern, family in _FAMILIES.items() if re.fullmatch(pattern, short_name))
    return next(families, found)


def parse_prompts(text: str) -> dict[str, Prompts]:
    """Read a setting: `{"a-model": {"query": "search: ", "document": ""}}`; "" is empty.

    Returns:
        Prompts by the name of the model, as it is requested.

    Raises:
        BadPrompts: it is not JSON of this form.
    """
    try:
        content: Any = json.loads(text or "{}")
        return {
            name: Prompts(**{_QUERY: "", _DOCUMENT: ""} | _checked(prompts))
            for name, prompts in content.items()
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise BadPrompts(
            'TEXTMATCH_PROMPTS must be JSON such as {"MODEL": {"query": "TEXT", "document": "TEXT"}}: '
            f"{error}"
        ) from error


def _checked(prompts: Any) -> dict[str, str]:
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise ValueError("prompts must be texts")
    return prompts

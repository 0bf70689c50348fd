"""A peer: sentence-transformers in bfloat16 behind mosec, run by a Python that has both but not textmatch.

`PEER_MODEL` is the model's directory; mosec itself reads `MOSEC_ADDRESS` and `MOSEC_PORT`.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from mosec import Server, Worker
from sentence_transformers import SentenceTransformer

_BATCH_CALLS = 64
_WAIT_MS = 5


class Embedder(Worker):  # type: ignore[misc]
    """Batches calls of `{"input": [text, ...]}` and embeds all their texts together."""

    def __init__(self) -> None:
        self._model = SentenceTransformer(
            os.environ["PEER_MODEL"], device="cpu", model_kwargs={"torch_dtype": torch.bfloat16}
        )

    def forward(self, data: list[dict[str, Any]]) -> list[list[list[float]]]:
        texts = [text for call in data for text in call["input"]]
        rows = self._model.encode(texts, batch_size=64, show_progress_bar=False, convert_to_tensor=True)
        embeddings = iter(rows.float().tolist())
        return [[next(embeddings) for _ in call["input"]] for call in data]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Embedder, num=1, max_batch_size=_BATCH_CALLS, max_wait_time=_WAIT_MS)
    server.run()

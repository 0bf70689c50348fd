"""Low-rank adapters: what is trained and saved in place of all weights of a BERT."""

from __future__ import annotations

from typing import Any, Literal

from peft import LoraConfig

from textmatch.errors import InvalidInput

AdapterTask = Literal["SEQ_CLS", "FEATURE_EXTRACTION"]


def add_adapter(model: Any, rank: int, task: AdapterTask, base_name: str) -> None:
    """Put an adapter beside the weights of a model of sentence-transformers, which then stay as they are.

    Raises:
        InvalidInput: its transformer is no BERT, whose layers the adapter is for.
    """
    model_type = getattr(model[0].model.config, "model_type", "unknown")
    if model_type != "bert":
        problem = f"adapters are for BERT; {base_name} is {model_type}: use 0"
        raise InvalidInput.of_field("adapter-rank", problem)
    config = LoraConfig(
        task_type=task,
        r=rank,
        lora_alpha=2 * rank,
        # "dense" covers the output, both feed-forward layers and the pooler.
        target_modules=["query", "key", "value", "dense"],
        modules_to_save=["classifier"] if task == "SEQ_CLS" else None,
    )
    model.add_adapter(config)

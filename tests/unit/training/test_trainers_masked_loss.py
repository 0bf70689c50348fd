"""The loss of masked tokens is the model's own, without the work for all other tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, TrainingArguments

from training.trainers import MaskedLanguageModelTrainer

_SIZES = {"vocab_size": 17, "max_position_embeddings": 66, "pad_token_id": 0}
_WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_CONFIGS = {
    "bert": _WIDTHS,
    "albert": {**_WIDTHS, "embedding_size": 16},
    "roberta": _WIDTHS,
    "xlm-roberta": _WIDTHS,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "electra": {**_WIDTHS, "embedding_size": 16},
}


@pytest.mark.parametrize("kind", _CONFIGS)
def test_loss_and_gradients_are_those_of_the_whole_model(kind: str, tmp_path: Path):
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(kind, **_SIZES, **_CONFIGS[kind])).eval()
    trainer = MaskedLanguageModelTrainer(
        model=model, args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    )
    input_ids = torch.randint(1, 17, (4, 9))
    labels = torch.where(torch.rand(4, 9) < 0.3, input_ids, -100)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}

    model(**inputs).loss.backward()
    expected = {
        name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }
    model.zero_grad()
    loss = trainer.compute_loss(model, dict(inputs))
    loss.backward()

    assert loss.item() == pytest.approx(model(**inputs).loss.item(), rel=1e-5)
    assert expected
    for name, weight in model.named_parameters():
        if name in expected:
            assert weight.grad is not None
            torch.testing.assert_close(weight.grad, expected[name], atol=1e-5, rtol=1e-4)

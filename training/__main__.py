"""Train a model, or measure one on a file of scored pairs: `textmatch train`, `python -m training`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from sentence_transformers import SentenceTransformer

from textmatch.errors import TextMatchError
from textmatch.models.resolve import BI_ENCODER_ORGANISATION, DEFAULT_BI_ENCODER, find_model
from training.evaluation.comparison import Comparison, compare
from training.regression import (
    ADAPTER_LEARNING_RATES,
    FULL_LEARNING_RATES,
    LearningRates,
    RegressionSettings,
    load_trained,
    train_regression,
)

DEFAULT_BASE_NAME = f"{BI_ENCODER_ORGANISATION}/{DEFAULT_BI_ENCODER}"

app = typer.Typer(add_completion=False, no_args_is_help=True)

BaseOption = Annotated[
    str, typer.Option(help="Base model: a local directory or a name on the Hugging Face hub.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, ...; chosen by PyTorch when left out.")]


@app.command()
def regression(
    train: Annotated[Path, typer.Option(help="Pairs to train on: sentence TAB sentence TAB score in 0..1.")],
    dev: Annotated[Path, typer.Option(help="Pairs to measure on, in the same form.")],
    output: Annotated[Path, typer.Option(help="Directory to write the model to.")],
    held_out: Annotated[
        list[Path] | None, typer.Option(help="More pairs to measure on; may be given again.")
    ] = None,
    warm_up_sentences: Annotated[
        list[Path] | None,
        typer.Option(help="More files of pairs to mine from; labels are ignored; may be given again."),
    ] = None,
    data_note: Annotated[
        str, typer.Option(help="Origin and licence of the training pairs, for the model card.")
    ] = RegressionSettings.data_note,
    base: BaseOption = DEFAULT_BASE_NAME,
    adapter_rank: Annotated[
        int, typer.Option(min=0, help="Rank of the saved adapter; 0 trains and saves all weights.")
    ] = RegressionSettings.adapter_rank,
    warm_up_pairs: Annotated[
        int, typer.Option(min=0, help="Mined pairs to warm up on; 0 skips the warm-up.")
    ] = RegressionSettings.warm_up_pairs,
    warm_up_learning_rate: Annotated[
        float | None, typer.Option(help="5e-4 for an adapter, 1e-4 for all weights when left out.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1)] = RegressionSettings.epochs,
    learning_rate: Annotated[
        float | None, typer.Option(help="2e-4 for an adapter, 3e-5 for all weights when left out.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = RegressionSettings.batch_size,
    max_length_tokens: Annotated[
        int, typer.Option(min=8, help="Longest pair in tokens; what is longer is cut.")
    ] = RegressionSettings.max_length_tokens,
    seed: int = RegressionSettings.seed,
    bf16: Annotated[bool, typer.Option(help="Compute in bfloat16.")] = RegressionSettings.bf16,
    device: DeviceOption = RegressionSettings.device,
) -> None:
    """Train the regression cross-encoder."""
    found = ADAPTER_LEARNING_RATES if adapter_rank > 0 else FULL_LEARNING_RATES
    settings = RegressionSettings(
        train=train,
        dev=dev,
        output=output,
        held_out=tuple(held_out or ()),
        warm_up_sentences=tuple(warm_up_sentences or ()),
        data_note=data_note,
        base_name=base,
        base=find_model(base, BI_ENCODER_ORGANISATION),
        adapter_rank=adapter_rank,
        warm_up_pairs=warm_up_pairs,
        epochs=epochs,
        learning_rates=LearningRates(
            warm_up=warm_up_learning_rate or found.warm_up, training=learning_rate or found.training
        ),
        batch_size=batch_size,
        max_length_tokens=max_length_tokens,
        seed=seed,
        bf16=bf16,
        device=device,
    )
    for comparison in train_regression(settings):
        _print_comparison(comparison)


@app.command()
def evaluate_pairs(
    model: Annotated[Path, typer.Argument(help="Directory of a cross-encoder, full or adapter.")],
    pairs: Annotated[Path, typer.Argument(help="Pairs: sentence TAB sentence TAB score in 0..1.")],
    base: BaseOption = DEFAULT_BASE_NAME,
    device: DeviceOption = None,
) -> None:
    """Measure a cross-encoder on scored pairs, beside the cosine of its base bi-encoder."""
    directory = find_model(base, BI_ENCODER_ORGANISATION)
    bi_encoder = SentenceTransformer(str(directory), device=device, local_files_only=True)
    _print_comparison(compare(load_trained(model, directory, device), bi_encoder, pairs))


def _print_comparison(comparison: Comparison) -> None:
    typer.echo(f"{comparison.path} ({comparison.cross_encoder.pair_count} pairs)")
    for name, measured in (("cross-encoder", comparison.cross_encoder), ("cosine", comparison.cosine)):
        typer.echo(
            f"  {name:14} Spearman {measured.spearman:.4f}  "
            f"Pearson {measured.pearson:.4f}  MSE {measured.mse:.4f}"
        )


def main() -> None:
    """Runs the command; failures of the caller are one line on stderr and exit code 1."""
    try:
        app()
    except TextMatchError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

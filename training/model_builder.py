"""Builds the model to train: a base with pooling, LSTM, dropout, towers, scoring head and adapter as set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Annotated, Any, Literal, TypeAlias, cast

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Module, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import LSTM, Pooling, WeightedLayerPooling
from torch import Tensor, nn
from typer import Option

from textmatch.errors import InvalidInput
from textmatch.models.bi_encoder import feed_lstm, read_bi_encoder
from textmatch.models.lora import ADAPTER_WEIGHTS, merge_adapter, set_normalization
from textmatch.models.model_resolver import (
    BI_ENCODER_ORGANISATION,
    UnusableModel,
    find_model,
    is_adapter_directory,
    is_cross_encoder_adapter,
)
from training.base_models import freeze_word_embeddings
from training.evaluation.scorers import is_cross_encoder
from training.settings import FreezeOption, RunSettings

AdapterTask: TypeAlias = Literal["SEQ_CLS", "FEATURE_EXTRACTION"]
PoolingName: TypeAlias = Literal["base", "cls", "pooler", "mean", "last", "first-last-avg", "last2-avg"]

AdapterRankOption = Annotated[
    int, Option(min=0, help="Rank of the adapter to train and save; 0: train and save all weights.")
]
StartAdapterOption = Annotated[
    str, Option(help="Adapter of the same base and rank, of a bi-encoder or cross-encoder, to start from.")
]


@dataclass(frozen=True)
class LstmConfig:
    """LSTM layers between transformer and pooling. `width` is of one direction."""

    width: int
    layers: int
    is_bidirectional: bool


@dataclass(frozen=True, kw_only=True)
class BiEncoderSettings(RunSettings):
    """Settings of every bi-encoder recipe."""

    freeze_embeddings: FreezeOption = None
    pooling: Annotated[
        PoolingName,
        Option(
            help="Pooling of the token vectors; base: that of the base model, or mean if it has none;"
            " last: the last token, or the last state of each direction of an LSTM."
        ),
    ] = "base"
    dropout: Annotated[
        float | None, Option(min=0.0, max=0.9, help="Dropout rate. Default: that of the base model.")
    ] = None
    adapter_rank: AdapterRankOption = 0
    start_adapter: StartAdapterOption = ""
    prompts: Annotated[
        bool, Option(help="Whether to use the prompts of the base model. A model trained without has none.")
    ] = True
    query_prompt: Annotated[
        str, Option(help='Text before each query, such as "query: "; saved with the model.')
    ] = ""
    document_prompt: Annotated[
        str, Option(help='Text before each document, such as "passage: "; saved with the model.')
    ] = ""
    matryoshka: Annotated[
        str,
        Option(help="Shorter lengths at which embeddings are to be useful too, as in 256,128,64."),
    ] = ""

    def check(self) -> None:
        """Validate before any data is read.

        Raises:
            InvalidInput: as for every recipe, or an adapter is combined with its own pooling.
        """
        super().check()
        if self.adapter_rank and self.pooling != "base":
            raise InvalidInput.of_field("pooling", "an adapter uses the pooling of its base model: use base")
        if self.start_adapter and not self.adapter_rank:
            raise InvalidInput.of_field("start-adapter", "needs the --adapter-rank of that adapter")
        _ = self.matryoshka_dimensions

    @property
    def matryoshka_dimensions(self) -> tuple[int, ...]:
        """The shorter lengths of embeddings, the longest first; empty: none.

        Raises:
            InvalidInput: the option is not a list of whole numbers above 0.
        """
        if not self.matryoshka:
            return ()
        texts = [one.strip() for one in self.matryoshka.split(",")]
        if not all(one.isdecimal() and int(one) for one in texts):
            problem = f'"{self.matryoshka}" is not a list of whole numbers, such as 256,128,64'
            raise InvalidInput.of_field("matryoshka", problem)
        return tuple(sorted({int(one) for one in texts}, reverse=True))


def build_bi_encoder(
    settings: BiEncoderSettings, *, lstm: LstmConfig | None = None, has_separate_towers: bool = False
) -> SentenceTransformer:
    """The model before training. Its embeddings have length 1.

    Raises:
        ModelNotFound: there is no such base model.
        UnusableModel: the base model does not start with a transformer.
        InvalidInput: pooling by the pooler is set, but the model has none; or an adapter is combined with an
            LSTM or two towers.
    """
    if settings.adapter_rank and (lstm is not None or has_separate_towers):
        raise InvalidInput.of_field("adapter-rank", "an adapter has one tower and no LSTM: use 0")
    base = find_model(settings.base, BI_ENCODER_ORGANISATION)
    loaded = read_bi_encoder(base, settings.base)
    modules = _modules(loaded, settings, lstm)
    if has_separate_towers:
        document_modules = _modules(read_bi_encoder(base, settings.base), settings, lstm)
        modules = [Router.for_query_document(query_modules=modules, document_modules=document_modules)]
    if not isinstance(modules[-1], Normalize):
        modules.append(Normalize())
    prompts = {name: prompt for name, prompt in loaded.prompts.items() if prompt and settings.prompts}
    own = {"query": settings.query_prompt, "document": settings.document_prompt}
    prompts |= {name: prompt for name, prompt in own.items() if prompt}
    model = SentenceTransformer(modules=[*modules], device=settings.torch_device, prompts=prompts)
    feed_lstm(model)
    if settings.adapter_rank:
        add_adapter(model, settings.adapter_rank, "FEATURE_EXTRACTION", settings.base, settings.start_adapter)
    else:
        freeze_word_embeddings(model, settings.torch_device, settings.freeze_embeddings)
    return model


def build_cross_encoder(
    settings: RunSettings,
    base_name: str,
    *,
    activation: nn.Module,
    dropout: float,
    adapter_rank: int,
    mean_label: float,
    start_adapter: str = "",
    freeze_embeddings: bool | None = None,
) -> CrossEncoder:
    """The cross-encoder before training. A new scoring head starts near the mean label.

    Args:
        settings: of the run.
        base_name: of the base model.
        activation: from the output of the model to a score.
        dropout: rate.
        adapter_rank: 0: all weights are trained.
        mean_label: before the activation.
        start_adapter: adapter whose weights are the initial ones; "": none. If all weights are trained, it is
            a cross-encoder's, and its scoring head is taken too.
        freeze_embeddings: whether the word embeddings stay as they are; None: if they are many.

    Raises:
        ModelNotFound: there is no such base model or adapter.
        UnusableModel: the base model cannot be a cross-encoder.
        InvalidInput: an adapter is asked for, and the base model is not a BERT.
    """
    base = find_model(base_name, BI_ENCODER_ORGANISATION)
    try:
        model: CrossEncoder = CrossEncoder(
            str(base),
            num_labels=1,
            max_length=settings.max_length_tokens,
            device=settings.torch_device,
            local_files_only=True,
            activation_fn=activation,
            # For short sentences eager attention trains faster on a CPU than SDPA.
            model_kwargs={"attn_implementation": "eager", "dtype": torch.float32},
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        raise UnusableModel(f'cannot train "{base_name}" as a cross-encoder: {error}') from error
    set_dropout(model, dropout)
    if start_adapter and not adapter_rank:
        _start_from(model, start_adapter)
    elif not is_cross_encoder(base):
        head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        # Its weights stay random: with zeros, a short training leaves all scores nearly equal.
        nn.init.constant_(head.bias, mean_label)
    if adapter_rank > 0:
        add_adapter(model, adapter_rank, "SEQ_CLS", base_name, start_adapter)
    else:
        freeze_word_embeddings(model, settings.torch_device, freeze_embeddings)
    return model


def _start_from(model: CrossEncoder, name: str) -> None:
    """Merge a cross-encoder's adapter into the weights.

    Raises:
        ModelNotFound: there is no such adapter.
        InvalidInput: it is a bi-encoder's, or of another base model.
    """
    adapter = find_model(name, BI_ENCODER_ORGANISATION)
    if not is_adapter_directory(adapter) or not is_cross_encoder_adapter(adapter):
        raise InvalidInput.of_field("start-adapter", f'"{name}" is not an adapter of a cross-encoder')
    try:
        merge_adapter(model[0], adapter)
    except (RuntimeError, ValueError) as error:
        raise InvalidInput.of_field("start-adapter", f'"{name}" is of another base model: {error}') from error
    set_normalization(model, adapter)


def add_adapter(model: Any, rank: int, task: AdapterTask, base_name: str, start: str = "") -> None:
    """Add a low-rank adapter to a sentence-transformers model and freeze its other weights.

    Args:
        model: a bi-encoder or a cross-encoder.
        rank: of the adapter.
        task: of the model.
        base_name: for messages.
        start: adapter whose weights are the initial ones; "": its product starts at 0.

    Raises:
        InvalidInput: the transformer is not a BERT, the only architecture that adapters support; or `start`
            has another rank or base.
        ModelNotFound: there is no adapter `start`.
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
    if start:
        _copy_adapter(find_model(start, BI_ENCODER_ORGANISATION), model)
    if model.device.type == "cpu":
        for module in model.modules():
            if isinstance(module, LoraLinear):
                module.forward = MethodType(_summed_forward, module)  # type: ignore[method-assign]


def _copy_adapter(directory: Path, model: nn.Module) -> None:
    """Copy the low-rank weights of an adapter. A scoring head is not copied."""
    path = directory / ADAPTER_WEIGHTS
    saved = load_file(path) if path.is_file() else {}
    # Of "base_model.model.bert.encoder.layer.0...": the part that bi-encoders and cross-encoders share.
    start_of = {_name_in_layers(name): tensor for name, tensor in saved.items() if ".lora_" in name}
    weights = {
        _name_in_layers(name.replace(".default.", ".")): weight
        for name, weight in model.named_parameters()
        if ".lora_" in name
    }
    shared = {name for name in start_of.keys() & weights.keys() if "pooler" not in name}
    if not shared or any(start_of[name].shape != weights[name].shape for name in shared):
        problem = f'"{directory.name}" is not an adapter of this base model and rank'
        raise InvalidInput.of_field("start-adapter", problem)
    with torch.no_grad():
        for name in shared:
            weights[name].copy_(start_of[name])


def _name_in_layers(name: str) -> str:
    return name[name.find("encoder.layer") :]


def _summed_forward(layer: LoraLinear, states: Tensor) -> Tensor:
    """One product with the sum of both weights. PEFT makes three, which takes longer on a CPU."""
    base = cast("nn.Linear", layer.get_base_layer())
    [name] = layer.active_adapters
    return nn.functional.linear(states, base.weight + layer.get_delta_weight(name), base.bias)


def set_dropout(model: nn.Module, rate: float) -> None:
    """Set the rate of every dropout layer, attention included: configurations name these differently."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate


def _modules(
    loaded: SentenceTransformer, settings: BiEncoderSettings, lstm: LstmConfig | None
) -> list[Module]:
    first, *following = cast("Iterable[Module]", loaded.children())
    if not isinstance(first, Transformer):
        problem = f'"{settings.base}" starts with {type(first).__name__}; it must start with a transformer'
        raise UnusableModel(problem)
    first.max_seq_length = min(settings.max_length_tokens, first.max_seq_length or settings.max_length_tokens)
    if settings.dropout is not None:
        set_dropout(first, settings.dropout)
    if settings.pooling == "base" and lstm is None:
        return [first, *following]
    return [first, *_pooling(first, settings.pooling, lstm)]


def _pooling(first: Transformer, name: PoolingName, lstm: LstmConfig | None) -> Sequence[Module]:
    width = first.get_embedding_dimension()
    if name == "pooler":
        return _pooler(first, lstm)
    before: list[Module] = []
    if name in ("first-last-avg", "last2-avg"):
        before.append(_average_of_layers(first, is_first_and_last=name == "first-last-avg"))
    if lstm is not None:
        layers = LSTM(width, lstm.width, num_layers=lstm.layers, bidirectional=lstm.is_bidirectional)
        before.append(layers)
        width = layers.get_embedding_dimension()
    if name == "last" and lstm is not None and lstm.is_bidirectional:
        return [*before, *_last_states(width)]
    mode = {"cls": "cls", "last": "lasttoken"}.get(name, "mean")
    return [*before, Pooling(width, mode)]


def _last_states(width: int) -> list[Module]:
    """Pooling of a bidirectional LSTM (token, width): forwards at the last token, backwards at the first."""
    half = width // 2
    # The backward half of the first token and the forward half of the last one.
    columns = [*range(half, width), *range(width, width + half)]
    weight = nn.functional.one_hot(torch.tensor(columns), 2 * width).float()  # (width, 2 x width)
    select = Dense(2 * width, width, bias=False, activation_function=nn.Identity(), init_weight=weight)
    select.requires_grad_(False)
    return [Pooling(width, ("cls", "lasttoken")), select]


def _pooler(first: Transformer, lstm: LstmConfig | None) -> Sequence[Module]:
    """No further modules: the transformer itself returns its pooler output as the embedding."""
    if lstm is not None or getattr(first.model, "pooler", None) is None:
        reason = "an LSTM has none" if lstm is not None else f"{first.config.model_type} has none"
        raise InvalidInput.of_field("pooling", f"pooler needs a model with a pooler; {reason}")
    first.modality_config = {"text": {"method": "forward", "method_output_name": "pooler_output"}}
    first.module_output_name = "sentence_embedding"
    return []


def _average_of_layers(first: Transformer, *, is_first_and_last: bool) -> WeightedLayerPooling:
    """The mean of two layers: first and last, or the last two. The embedding layer does not count."""
    layer_count = int(first.config.num_hidden_layers)
    if layer_count < 2:
        raise InvalidInput.of_field("pooling", "the average of two layers needs a model with two layers")
    weights = torch.zeros(layer_count)
    weights[[0 if is_first_and_last else -2, -1]] = 1.0
    first.model.config.output_hidden_states = True
    return WeightedLayerPooling(
        first.get_embedding_dimension(),
        num_hidden_layers=layer_count,
        layer_start=1,
        layer_weights=nn.Parameter(weights, requires_grad=False),
    )

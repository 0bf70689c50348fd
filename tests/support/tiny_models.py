"""Tiny models of many architectures with random weights, saved as sentence-transformers directories.

    maker = BI_ENCODERS["modernbert"]
    maker.make(tmp_path / "modernbert")  # ModernBERT of 3 layers with a window of 16 tokens

Random weights are large (`initializer_range` 0.2 and more): a wrong mask or position changes every output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import (
    LSTM,
    LayerNorm,
    Pooling,
    StaticEmbedding,
    WeightedLayerPooling,
    WordEmbeddings,
)
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer
from transformers import PreTrainedTokenizerFast

from tests.support.tiny_tokenizers import WORDS, bert_tokenizer, decoder_tokenizer, roberta_tokenizer

LIMIT_TOKENS = 48
WINDOW_TOKENS = 16
_SEED = 7
_NLI = ("entailment", "neutral", "contradiction")

_SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
_WIDE = {"initializer_range": 0.25}
_DECODER = {
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    **_SMALL,
    **_WIDE,
}
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)
_RERANK_CHAT = (
    "<|im_start|>system\nis the text what the query find?<|im_end|>\n<|im_start|>user\n"
    "query: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}\n"
    "text: {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}"
    "<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@dataclass(frozen=True)
class TinyModel:
    """How to make a model, and what is expected of it.

    Attributes:
        make: writes the model into a directory that does not exist yet.
        packs: whether texts of different lengths share rows. Other models run in sentence-transformers.
        native: whether the native kernel can run it.
        window: tokens of its narrowest attention window; 0: none.
        refused: what the message says if it is not served; "": it is served.
        refused_unpacked: the same if no engine runs it.
    """

    make: Callable[[Path], object]
    packs: bool = True
    native: bool = False
    window: int = 0
    refused: str = ""
    refused_unpacked: str = ""


def _backbone(
    directory: Path, config: Any, tokenizer: PreTrainedTokenizerFast, auto: Any = transformers.AutoModel
) -> Path:
    torch.manual_seed(_SEED)
    folder = directory.with_name(f"{directory.name}-backbone")
    model = auto.from_config(config)
    _roughen(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _roughen(model: torch.nn.Module) -> None:
    """Give biases and norms random values: fresh ones are 0 and 1, which hide mistakes."""
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
            elif "embed" not in name and weight.std() < 0.1:
                weight.add_(0.15 * torch.randn(weight.shape, generator=generator))


def _bi(
    config: Callable[[int], Any],
    *following: Callable[[], torch.nn.Module],
    tokenizer: Callable[[], PreTrainedTokenizerFast] = bert_tokenizer,
    limit: int | None = LIMIT_TOKENS,
    **saved: Any,
) -> Callable[[Path], object]:
    def make(directory: Path) -> None:
        made = tokenizer()
        folder = _backbone(directory, config(len(made)), made)
        modules = [Transformer(str(folder), **({"max_seq_length": limit} if limit else {}))]
        torch.manual_seed(_SEED)
        modules += [module() for module in following] or [Pooling(32)]
        model = SentenceTransformer(modules=modules, device="cpu", **saved)
        model.save(str(directory), create_model_card=False)

    return make


def _cross(
    config: Callable[[int], Any],
    *,
    tokenizer: Callable[[], PreTrainedTokenizerFast] = bert_tokenizer,
    labels: int | Sequence[str] = 1,
    activation: str = "Identity",
    limit: int | None = LIMIT_TOKENS,
) -> Callable[[Path], object]:
    def make(directory: Path) -> None:
        made = tokenizer()
        wanted = config(len(made))
        if isinstance(labels, int):
            wanted.num_labels = labels
        else:
            wanted.id2label = dict(enumerate(labels))
        folder = _backbone(directory, wanted, made, transformers.AutoModelForSequenceClassification)
        model = CrossEncoder(
            str(folder), device="cpu", max_length=limit, activation_fn=getattr(torch.nn, activation)()
        )
        model.save_pretrained(str(directory))

    return make


def _make_causal_reranker(directory: Path) -> None:
    made = decoder_tokenizer(_RERANK_CHAT)
    folder = _backbone(directory, _qwen3(len(made)), made, transformers.AutoModelForCausalLM)
    CrossEncoder(str(folder), device="cpu", max_length=LIMIT_TOKENS).save_pretrained(str(directory))


def _make_modules(directory: Path) -> None:
    """A bare transformer with a pooling and a scoring layer, as newer rerankers are saved."""
    made = bert_tokenizer(type_ids=False)
    folder = _backbone(directory, _modernbert(len(made)), made)
    transformer = Transformer(str(folder), max_seq_length=96)
    torch.manual_seed(_SEED)
    head = Dense(
        32,
        1,
        activation_function=torch.nn.Identity(),
        module_input_name="sentence_embedding",
        module_output_name="scores",
    )
    model = CrossEncoder(modules=[transformer, Pooling(32, "cls"), head], device="cpu")
    model.save_pretrained(str(directory))


def _make_towers(directory: Path) -> None:
    made = bert_tokenizer()
    routes = {}
    for number, task in enumerate(("query", "document")):
        folder = _backbone(directory.with_name(f"{directory.name}-{task}"), _bert(len(made)), made)
        tower = Transformer(str(folder), max_seq_length=LIMIT_TOKENS)
        with torch.no_grad():
            for weight in tower.parameters():
                weight.add_(0.1 * number)
        routes[task] = [tower, Pooling(32)]
    model = SentenceTransformer(
        modules=[Router.for_query_document(routes["query"], routes["document"])], device="cpu"
    )
    model.save(str(directory), create_model_card=False)


def _make_static(directory: Path) -> None:
    torch.manual_seed(_SEED)
    static = StaticEmbedding(bert_tokenizer().backend_tokenizer, embedding_dim=32)
    SentenceTransformer(modules=[static], device="cpu").save(str(directory), create_model_card=False)


def _make_words(directory: Path) -> None:
    torch.manual_seed(_SEED)
    words = WordEmbeddings(
        WhitespaceTokenizer(list(WORDS), stop_words=[]),
        torch.randn(len(WORDS), 16),
        max_seq_length=LIMIT_TOKENS,
    )
    modules = [words, LSTM(16, 16), Pooling(32)]
    SentenceTransformer(modules=modules, device="cpu").save(str(directory), create_model_card=False)


def _bert(size: int, **more: Any) -> Any:
    return transformers.BertConfig(vocab_size=size, max_position_embeddings=64, **_SMALL | _WIDE | more)


def _roberta(size: int, **more: Any) -> Any:
    # As published: 2 more positions than tokens, because positions begin behind the padding's.
    values = {"pad_token_id": 1, "max_position_embeddings": LIMIT_TOKENS + 2, "type_vocab_size": 1}
    return transformers.RobertaConfig(vocab_size=size, **_SMALL | _WIDE | values | more)


def _xlm_roberta(size: int) -> Any:
    values = {"pad_token_id": 1, "max_position_embeddings": LIMIT_TOKENS + 2, "type_vocab_size": 1}
    return transformers.XLMRobertaConfig(vocab_size=size, **_SMALL | _WIDE | values)


def _electra(size: int) -> Any:
    return transformers.ElectraConfig(vocab_size=size, embedding_size=32, **_SMALL | _WIDE)


def _distilbert(size: int) -> Any:
    return transformers.DistilBertConfig(
        vocab_size=size, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64, **_WIDE
    )


def _albert(size: int, embedding: int = 16) -> Any:
    return transformers.AlbertConfig(
        vocab_size=size, embedding_size=embedding, max_position_embeddings=64, **_SMALL | _WIDE
    )


def _mpnet(size: int) -> Any:
    values = {"pad_token_id": 1, "max_position_embeddings": LIMIT_TOKENS + 2}
    return transformers.MPNetConfig(vocab_size=size, **_SMALL | _WIDE | values)


def _deberta(size: int, **more: Any) -> Any:
    values = {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 8,
        "max_position_embeddings": 64,
    }
    return transformers.DebertaV2Config(vocab_size=size, **_SMALL | _WIDE | values | more)


def _modernbert(size: int, **more: Any) -> Any:
    values = {
        "local_attention": WINDOW_TOKENS,
        "global_attn_every_n_layers": 3,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    return transformers.ModernBertConfig(vocab_size=size, **_SMALL | _WIDE | values | more)


def _gemma3(size: int, **more: Any) -> Any:
    values = {
        "sliding_window": WINDOW_TOKENS,
        "sliding_window_pattern": 3,
        "use_bidirectional_attention": True,
    }
    return transformers.Gemma3TextConfig(vocab_size=size, **_DECODER | values | more)


def _qwen3(size: int, **more: Any) -> Any:
    return transformers.Qwen3Config(vocab_size=size, tie_word_embeddings=False, **_DECODER | more)


def _mistral(size: int) -> Any:
    return transformers.MistralConfig(vocab_size=size, sliding_window=WINDOW_TOKENS, **_DECODER)


def _t5(size: int) -> Any:
    return transformers.T5Config(
        vocab_size=size, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, pad_token_id=0,
        relative_attention_num_buckets=8, relative_attention_max_distance=16,
    )  # fmt: skip


def _nomic(size: int) -> Any:
    return transformers.NomicBertConfig(vocab_size=size, max_position_embeddings=64, **_SMALL | _WIDE)


def _gte(size: int) -> Any:
    return transformers.GteConfig(vocab_size=size, max_position_embeddings=64, **_SMALL | _WIDE)


_WHOLE = {"limit": None}
_PROMPTS = {"query": "find the text: ", "document": "passage: "}

BI_ENCODERS: Mapping[str, TinyModel] = {
    "bert-mean": TinyModel(_bi(_bert), native=True),
    "bert-cls-normalised": TinyModel(_bi(_bert, lambda: Pooling(32, "cls"), Normalize), native=True),
    "bert-max": TinyModel(_bi(_bert, lambda: Pooling(32, "max")), native=True),
    "bert-last-token": TinyModel(_bi(_bert, lambda: Pooling(32, "lasttoken")), native=True),
    "bert-weighted-mean": TinyModel(_bi(_bert, lambda: Pooling(32, "weightedmean")), native=True),
    "bert-cls-and-mean": TinyModel(_bi(_bert, lambda: Pooling(32, ("cls", "mean"))), native=True),
    "bert-prompts": TinyModel(_bi(_bert, prompts=_PROMPTS), native=True),
    "bert-mean-without-prompt": TinyModel(
        _bi(_bert, lambda: Pooling(32, "mean", include_prompt=False), prompts=_PROMPTS), native=True
    ),
    "bert-cls-without-prompt": TinyModel(
        _bi(_bert, lambda: Pooling(32, "cls", include_prompt=False), prompts=_PROMPTS), native=True
    ),
    "bert-default-prompt": TinyModel(
        _bi(_bert, prompts={"task": "find: "}, default_prompt_name="task"), native=True
    ),
    "bert-dense": TinyModel(
        _bi(_bert, lambda: Pooling(32, "cls"), lambda: Dense(32, 24), Normalize), native=True
    ),
    "bert-matryoshka": TinyModel(_bi(_bert, lambda: Pooling(32), lambda: LayerNorm(32)), native=True),
    "bert-lstm": TinyModel(_bi(_bert, lambda: LSTM(32, 16), lambda: Pooling(32)), native=True),
    "bert-no-type-ids": TinyModel(_bi(_bert, tokenizer=lambda: bert_tokenizer(type_ids=False)), native=True),
    "bert-left-truncation": TinyModel(_bi(_bert, tokenizer=lambda: _cut_left(bert_tokenizer())), native=True),
    # Its positions depend on the padding, in sentence-transformers too.
    "bert-left-padding": TinyModel(
        _bi(_bert, tokenizer=lambda: bert_tokenizer(side="left")),
        native=True,
        refused_unpacked="share a batch",
    ),
    "bert-layers": TinyModel(
        _bi(
            lambda size: _bert(size, output_hidden_states=True),
            lambda: WeightedLayerPooling(32, num_hidden_layers=3, layer_start=1),
            lambda: Pooling(32),
        ),
        packs=False,
    ),
    "bert-decoder": TinyModel(_bi(lambda size: _bert(size, is_decoder=True))),
    "bert-dot-product": TinyModel(_bi(_bert, similarity_fn_name="dot"), refused="dot"),
    "bert-dot-product-normalised": TinyModel(
        _bi(_bert, lambda: Pooling(32), Normalize, similarity_fn_name="dot"), native=True
    ),
    "roberta": TinyModel(_bi(_roberta, tokenizer=roberta_tokenizer), native=True),
    "roberta-all-positions": TinyModel(_bi(_roberta, tokenizer=roberta_tokenizer, **_WHOLE), native=True),
    "xlm-roberta": TinyModel(_bi(_xlm_roberta, tokenizer=roberta_tokenizer), native=True),
    "electra": TinyModel(_bi(_electra), native=True),
    "distilbert": TinyModel(_bi(_distilbert, tokenizer=lambda: bert_tokenizer(type_ids=False)), native=True),
    "albert": TinyModel(_bi(_albert), native=True),
    "albert-wide-embedding": TinyModel(_bi(lambda size: _albert(size, 96)), native=True),
    "mpnet": TinyModel(_bi(_mpnet, tokenizer=roberta_tokenizer)),
    "deberta": TinyModel(_bi(_deberta), packs=False),
    "modernbert": TinyModel(
        _bi(
            _modernbert,
            lambda: Pooling(32, "cls"),
            tokenizer=lambda: bert_tokenizer(type_ids=False),
            limit=96,
        ),
        window=WINDOW_TOKENS,
    ),
    "modernbert-mean": TinyModel(
        _bi(_modernbert, tokenizer=lambda: bert_tokenizer(type_ids=False), limit=96), window=WINDOW_TOKENS
    ),
    "gemma3-bidirectional": TinyModel(
        _bi(
            _gemma3,
            lambda: Pooling(32),
            lambda: Dense(32, 48, bias=False),
            lambda: Dense(48, 32, bias=False),
            Normalize,
            tokenizer=decoder_tokenizer,
            limit=96,
            prompts={"query": "task: find | query: ", "document": "title: | text: "},
        ),
        window=WINDOW_TOKENS,
    ),
    "gemma3-causal": TinyModel(
        _bi(
            lambda size: _gemma3(size, use_bidirectional_attention=False),
            lambda: Pooling(32, "lasttoken"),
            tokenizer=decoder_tokenizer,
            limit=96,
        ),
        window=WINDOW_TOKENS,
    ),
    "qwen3-last-token": TinyModel(
        _bi(
            _qwen3,
            lambda: Pooling(32, "lasttoken"),
            Normalize,
            tokenizer=decoder_tokenizer,
            prompts={"query": "find: ", "document": ""},
        )
    ),
    "qwen3-chat": TinyModel(
        _bi(
            _qwen3,
            lambda: Pooling(32, "lasttoken"),
            Normalize,
            tokenizer=lambda: decoder_tokenizer(_CHAT),
            prompts={"query": "find: ", "document": ""},
        )
    ),
    "mistral": TinyModel(
        _bi(_mistral, lambda: Pooling(32, "lasttoken"), tokenizer=decoder_tokenizer, limit=96),
        window=WINDOW_TOKENS,
    ),
    "t5-encoder": TinyModel(_bi(_t5, tokenizer=decoder_tokenizer)),
    "nomic": TinyModel(_bi(_nomic)),
    "gte": TinyModel(_bi(_gte, lambda: Pooling(32, "cls"), Normalize)),
    "towers": TinyModel(_make_towers, packs=False),
    "static": TinyModel(_make_static, packs=False),
    "words-lstm": TinyModel(_make_words, packs=False),
}

CROSS_ENCODERS: Mapping[str, TinyModel] = {
    "bert": TinyModel(_cross(_bert), native=True),
    "bert-sigmoid": TinyModel(_cross(_bert, activation="Sigmoid"), native=True),
    "bert-two-labels": TinyModel(_cross(_bert, labels=2), native=True),
    "bert-three-labels": TinyModel(_cross(_bert, labels=3), native=True),
    "bert-two-sigmoids": TinyModel(_cross(_bert, labels=2, activation="Sigmoid"), refused="2 outputs"),
    "roberta-nli": TinyModel(_cross(_roberta, tokenizer=roberta_tokenizer, labels=_NLI), native=True),
    "deberta-nli": TinyModel(_cross(_deberta, labels=_NLI), packs=False),
    "modernbert-nli": TinyModel(
        _cross(
            lambda size: _modernbert(size, classifier_pooling="mean"),
            tokenizer=lambda: bert_tokenizer(type_ids=False),
            limit=96,
            labels=_NLI,
        ),
        window=WINDOW_TOKENS,
    ),
    "roberta": TinyModel(_cross(_roberta, tokenizer=roberta_tokenizer), native=True),
    "roberta-all-positions": TinyModel(_cross(_roberta, tokenizer=roberta_tokenizer, **_WHOLE), native=True),
    "xlm-roberta": TinyModel(_cross(_xlm_roberta, tokenizer=roberta_tokenizer), native=True),
    "electra": TinyModel(_cross(_electra), native=True),
    "electra-no-type-ids": TinyModel(
        _cross(_electra, tokenizer=lambda: bert_tokenizer(type_ids=False)), native=True
    ),
    "distilbert": TinyModel(
        _cross(_distilbert, tokenizer=lambda: bert_tokenizer(type_ids=False)), native=True
    ),
    "albert": TinyModel(_cross(_albert), native=True),
    "mpnet": TinyModel(_cross(_mpnet, tokenizer=roberta_tokenizer)),
    "deberta": TinyModel(_cross(_deberta), packs=False),
    "modernbert": TinyModel(
        _cross(_modernbert, tokenizer=lambda: bert_tokenizer(type_ids=False), limit=96), window=WINDOW_TOKENS
    ),
    "modernbert-mean": TinyModel(
        _cross(
            lambda size: _modernbert(size, classifier_pooling="mean"),
            tokenizer=lambda: bert_tokenizer(type_ids=False),
            limit=96,
        ),
        window=WINDOW_TOKENS,
    ),
    "qwen3": TinyModel(_cross(_qwen3, tokenizer=decoder_tokenizer)),
    "qwen3-chat-reranker": TinyModel(_make_causal_reranker),
    "modernbert-modules": TinyModel(_make_modules, window=WINDOW_TOKENS),
    "gte": TinyModel(_cross(_gte, tokenizer=lambda: bert_tokenizer(type_ids=False))),
}


def _cut_left(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.truncation_side = "left"
    return tokenizer

"""Columns of data files by their usual names in English and Chinese, and what labels look like."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

_NOT_A_LETTER_OR_DIGIT = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Column:
    """A column that a recipe reads, and the header names that identify it, the best first."""

    name: str
    header_names: tuple[str, ...]
    is_optional: bool = False


def _column(name: str, header_names: str) -> Column:
    return Column(name, tuple(header_names.split()))


# Header names are compared without case, spaces and punctuation: "Sentence_1" is "sentence1".
SENTENCE_1 = _column(
    "sentence 1",
    "sentence1 text1 question1 sent1 question premise query sentencea texta questiona anchor q1 s1"
    " 句子1 文本1 问题1 问句1 语句1 句1 句子一 文本一 问题一 句子a 文本a 问题a"
    " 标准问题 标准问 前提 查询 原句 问题",
)
SENTENCE_2 = _column(
    "sentence 2",
    "sentence2 text2 question2 sent2 hypothesis document sentenceb textb questionb positive text passage"
    " q2 s2 句子2 文本2 问题2 问句2 语句2 句2 句子二 文本二 问题二 句子b 文本b 问题b"
    " 相似问题 相似问 扩展问 假设 文档 改写 answer 答案 回答",
)
_CLASS_NAMES = "label goldlabel class isduplicate duplicate target 标签 类别 标注 是否相似 是否相同 是否重复"
_SCORE_NAMES = "score similarity similarityscore relatednessscore 相似度 分数 得分 评分"
LABEL = _column("label", f"{_CLASS_NAMES} {_SCORE_NAMES}")
ANY_LABEL = replace(LABEL, is_optional=True)
SCORE = _column("score", f"{_SCORE_NAMES} {_CLASS_NAMES}")
ANCHOR = _column(
    "anchor", "anchor query question sentence1 premise 锚点 查询 原句 问题 句子1 标准问题 标准问"
)
POSITIVE = _column(
    "positive", "positive pos answer document sentence2 entailment 正例 正样本 答案 相似句 句子2"
)
NEGATIVE = _column("negative", "negative neg hardnegative sentence3 contradiction 负例 负样本 难负例 句子3")
TEXT = _column("text", "text sentence content 文本 句子 内容 语句 正文")
ID = _column("id", "id docid documentid 编号 序号 文档id 文档编号 标识")
BODY = _column("text", "text content passage document sentence 文本 正文 内容 文档 句子")

PAIR = (SENTENCE_1, SENTENCE_2)
TRIPLE = (ANCHOR, POSITIVE, NEGATIVE)
TEXT_NAMES = frozenset(name for column in (TEXT, *PAIR, *TRIPLE) for name in column.header_names)
KNOWN_NAMES = TEXT_NAMES | frozenset(LABEL.header_names)
# Class names that are understood without `--classes`, each group in the order of its worth.
KNOWN_CLASSES: Sequence[Mapping[str, float]] = (
    {"contradiction": 0.0, "neutral": 0.5, "entailment": 1.0},
    {"矛盾": 0.0, "中立": 0.5, "蕴含": 1.0},
    {"no": 0.0, "yes": 1.0},
    {"false": 0.0, "true": 1.0},
    {"different": 0.0, "same": 1.0},
    {"否": 0.0, "是": 1.0},
    {"不相似": 0.0, "相似": 1.0},
    {"不同": 0.0, "相同": 1.0},
)
WORTH_OF_NAME = {name: worth for group in KNOWN_CLASSES for name, worth in group.items()}
# SNLI writes "-" and many Chinese sets "-1" where the annotators did not agree, or a test set has no labels.
UNLABELLED = frozenset({"", "-", "-1"})


def normalised(name: str) -> str:
    """A header name without case, spaces and punctuation."""
    return _NOT_A_LETTER_OR_DIGIT.sub("", name).lower()


def split_names(text: str) -> tuple[str, ...]:
    """The names or numbers of the option `--columns`, which commas separate; none for ""."""
    return tuple(name.strip() for name in text.split(",")) if text else ()


def position_of(names: Sequence[str], chosen: str) -> int | None:
    """The position of a column that was chosen by name or by number from 1; None: there is none."""
    if chosen in names:
        return list(names).index(chosen)
    return int(chosen) - 1 if chosen.isdecimal() and 1 <= int(chosen) <= len(names) else None


def is_label(text: str) -> bool:
    """Whether a cell is a number or a known class name, as labels are and sentences are not."""
    name = text.strip()
    return name in UNLABELLED or name.lower() in WORTH_OF_NAME or parse_number(name) is not None


def parse_number(text: str) -> float | None:
    """The number that a cell holds; None if it is none."""
    try:
        # Python's digit separator would make the name "1_2" a number.
        return None if "_" in text else float(text)
    except ValueError:
        return None

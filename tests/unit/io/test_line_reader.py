"""Lines in other encodings."""

from __future__ import annotations

import pytest

from textmatch.io.line_reader import START, Line, UnreadableLine


def _problem(content: bytes) -> str:
    with pytest.raises(UnreadableLine) as raised:
        Line(1, content, START).text()
    return str(raised.value)


def test_gbk_is_named_with_what_converts_it():
    assert _problem('{"text": "如何修改收货地址"}'.encode("gbk")) == (
        "is not UTF-8: byte 0xc8 at byte 11 of the line"
        "; it seems to be GBK: convert it with iconv -f GB18030 -t UTF-8"
    )


@pytest.mark.parametrize("content", [b"a\xffb", "naïve café".encode("latin-1"), "Übermut".encode("cp1252")])
def test_other_bytes_are_not_called_gbk(content: bytes):
    assert "GBK" not in _problem(content)

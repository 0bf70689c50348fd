"""A name server on loopback that gives every name the addresses it is told to."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

_ADDRESS_RECORD = 1
_HEADER_BYTES = 12
# A pointer to the name in the question; class IN; a time to live of nought.
_ANSWER = b"\xc0\x0c" + struct.pack(">HHIH", _ADDRESS_RECORD, 1, 0, 4)


class NameServer:
    """Answers questions for A records over UDP while it is entered."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = tuple(addresses)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._answer_all)
        self._stopping = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping = True
        # Wakes the thread up.
        self._socket.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def _answer_all(self) -> None:
        while True:
            question, caller = self._socket.recvfrom(512)
            if self._stopping:
                return
            self._socket.sendto(self._answer(question), caller)

    def _answer(self, message: bytes) -> bytes:
        end_of_name = message.index(b"\0", _HEADER_BYTES) + 1
        (kind,) = struct.unpack(">H", message[end_of_name : end_of_name + 2])
        addresses = self.addresses if kind == _ADDRESS_RECORD else ()
        head = message[:2] + b"\x81\x80" + struct.pack(">4H", 1, len(addresses), 0, 0)
        answers = b"".join(_ANSWER + socket.inet_aton(address) for address in addresses)
        return head + message[_HEADER_BYTES : end_of_name + 4] + answers

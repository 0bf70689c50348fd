"""An encoder as a process of its own, which dies of a certain text and is started again at once.

python -m tests.integration.ingest.mortal_encoder PORT MODEL_ID
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from tests.support.redis import free_port

DEADLY_TEXT = "deadly"
# Keeps the encoder busy while a test kills it.
SLOW_TEXT = "slow"


class MortalEncoder:
    """Runs from `start` to `stop`, dead moments aside."""

    def __init__(self, model_id: str) -> None:
        self.port = free_port()
        self.target = f"127.0.0.1:{self.port}"
        self.deaths = 0
        self._command = [sys.executable, "-m", __name__, str(self.port), model_id]
        # Held while the next process starts: none may come after `stop`.
        self._turn = threading.Lock()
        self._is_stopping = False
        self._process = subprocess.Popen(self._command)
        self._guard = threading.Thread(target=self._start_again)
        self._guard.start()

    def kill(self) -> None:
        """SIGKILL; it comes back."""
        self._process.kill()

    def stop(self) -> None:
        """For good."""
        with self._turn:
            self._is_stopping = True
            self._process.kill()
        self._guard.join()

    def _start_again(self) -> None:
        while True:
            self._process.wait()
            with self._turn:
                if self._is_stopping:
                    return
                self.deaths += 1
                self._process = subprocess.Popen(self._command)


def _die(texts: Sequence[str]) -> None:
    if DEADLY_TEXT in texts:
        os.kill(os.getpid(), signal.SIGKILL)
    if SLOW_TEXT in texts:
        threading.Event().wait(1.0)


def main() -> None:
    """Serve until killed."""
    encoder = ScriptedEncoder(model_id=sys.argv[2])
    encoder.check = _die
    encoder.start(int(sys.argv[1]))
    threading.Event().wait()


if __name__ == "__main__":
    main()

"""One library in its process: started, asked, ended; a crash or a hang is an answer."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rayjepa.bench import peer

START_S = 120.0
"""To import torch on a loaded machine."""


class Refused(Exception):
    """What a library said, or how it ended, instead of giving clips."""


class Library:
    """A process that speaks the lines of `rayjepa.bench.peer`; started anew after it has died.

    Raises:  Refused at the start if it cannot be imported there.
    """

    def __init__(self, name: str, command: Sequence[str], *, answer_s: float) -> None:
        self.name = name
        self.answer_s = answer_s
        """Seconds for one answer, after which it counts as hung."""
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._read = b""
        hello = self._start()
        self.entrants: list[str] = hello["entrants"]
        self.versions: dict[str, str] = hello["versions"]

    def ask(self, entrant: str, clips: Sequence[dict[str, Any]], *, size_px: int, show: bool = False) -> dict[str, Any]:
        """The answer to one request. Raises Refused."""
        if self._process is None:
            self._start()
        request = {"entrant": entrant, "clips": list(clips), "size_px": size_px, "show": show}
        answer = self._exchange(json.dumps(request).encode() + b"\n", self.answer_s)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> "Library":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> dict[str, Any]:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),  # ours only: -I ignores it
        }
        self._read = b""
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the benchmark, which ends this process
            )
        except OSError as error:
            raise Refused(f"{self._command[0]}: {error.strerror}") from error
        hello = self._exchange(b"", START_S)
        if "missing" in hello:
            self.close()
            raise Refused(hello["missing"])
        return hello

    def _exchange(self, line: bytes, seconds: float) -> dict[str, Any]:
        """Send a line, wait for one."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        channel = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        end = time.monotonic() + seconds
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it is dead; how it died is found below
        while b"\n" not in self._read:
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                self.close()
                raise Refused(f"no answer within {seconds:g} s")
            block = os.read(channel, 1 << 16)
            if not block:
                raise Refused(self._ended())
            self._read += block
        answer, _, self._read = self._read.partition(b"\n")
        return json.loads(answer)

    def _ended(self) -> str:
        assert self._process is not None
        self._process.wait()
        status = self._process.returncode
        self.close()
        return f"its process died of {signal.Signals(-status).name}" if status < 0 else f"its process ended: {status}"


def ours(data: dict[str, Any], *, answer_s: float) -> Library:
    """Our decoder, by this interpreter; `data` is the section of the configuration."""
    command = [sys.executable, "-m", "rayjepa.bench.ours", json.dumps(data)]
    return Library("ours", command, answer_s=answer_s)


def foreign(name: str, python: str, *, answer_s: float) -> Library:
    """Another library, by the interpreter that has it. Raises Refused if it has it not."""
    return Library(name, [python, "-I", str(Path(peer.__file__)), name], answer_s=answer_s)

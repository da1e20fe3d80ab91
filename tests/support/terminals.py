"""Programs on a terminal of their own, as their users see them."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from support.live_server import PATIENCE_S
from support.served_process import ROOT, environment


class Terminal:
    """A running program whose input, output and errors are one pseudo-terminal."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        self._ours, theirs = pty.openpty()
        self.screen = ""
        """Everything that was written so far, escape sequences included."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server", *arguments],
            cwd=ROOT,
            env=environment(TERM="xterm-256color", COLUMNS="80", **variables),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        """Press these keys; `\\x03` is Ctrl-C, `\\x04` Ctrl-D."""
        os.write(self._ours, text.encode())

    def wait_for(self, text: str, after: int = 0) -> int:
        """Read until `text` was written behind the position `after`; returns where it ends."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := self.screen.find(text, after)) < 0:
            assert self._read(deadline), f"{text!r} did not come:\n{self.screen}"
        return found + len(text)

    def interrupt(self, text: str, after: int) -> int:
        """Press Ctrl-C until `text` was written behind `after`; returns where it ends.

        A program that is just about to read may not notice the first.
        """
        deadline = time.monotonic() + PATIENCE_S
        while (found := self.screen.find(text, after)) < 0:
            self.type("\x03")
            while select.select([self._ours], [], [], 2.0)[0] and text not in self.screen[after:]:
                assert self._read(deadline), f"{text!r} did not come:\n{self.screen}"
            assert time.monotonic() < deadline, self.screen
        return found + len(text)

    def finish(self) -> int:
        """Read to the end; returns the exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read(deadline):
            pass
        return self.process.wait(PATIENCE_S)

    def _read(self, deadline: float) -> bool:
        """Read a part; False at the end."""
        remaining_s = deadline - time.monotonic()
        assert remaining_s > 0 and select.select([self._ours], [], [], remaining_s)[0], self.screen
        try:
            part = os.read(self._ours, 65536)
        except OSError:  # What Linux says when the last writer has gone.
            return False
        self.screen += part.decode(errors="replace")
        return bool(part)

    def close(self) -> None:
        """End the program, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)


def _take_terminal() -> None:
    """Make standard input the process's controlling terminal, so that Ctrl-C reaches it."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def terminal(*arguments: str, **variables: str) -> Iterator[Terminal]:
    """`bitskip` with these arguments on a terminal, for the length of a `with`."""
    program = Terminal(*arguments, **variables)
    try:
        yield program
    finally:
        program.close()

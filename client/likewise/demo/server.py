"""A server of its own for the demo: `likewise serve` in another process, on a free port, on a scratch directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from likewise.demo.extras import DemoError

COMMAND = (sys.executable, "-m", "likewise.cli", "serve")
# Its own loopback server, whatever the settings of another say.
OPEN = {"LIKEWISE_TLS_CERT": "", "LIKEWISE_TLS_KEY": "", "LIKEWISE_TLS_CLIENT_CA": "", "LIKEWISE_REQUIRE_TOKENS": "0"}
START_S = 180.0  # loading torch and weights from a slow disk
STOP_S = 20.0
LINES = 15  # of the log, where the server failed


@contextmanager
def running(backbone: str, log: Path) -> Iterator[str]:
    """Start a server, yield its address, and stop it whatever happens.

    `log`: the file its log goes to. Raises DemoError with the end of it if the server does not come up.
    """
    with TemporaryDirectory(prefix="likewise-demo-") as data, log.open("w") as output, _terminable():
        options = ["--data", data, "--host", "127.0.0.1", "--port", "0", "--json", "--backbone", backbone]
        # Out of the terminal's process group, Ctrl-C reaches the demo alone, which then stops the server in order.
        process = subprocess.Popen(  # noqa: S603  # our own command
            [*COMMAND, *options],
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            start_new_session=True,
            env=os.environ | OPEN,
        )
        try:
            yield f"127.0.0.1:{_port(process, log)}"
        finally:
            _stop(process)


def _port(process: subprocess.Popen[str], log: Path) -> int:
    """Return the port from the line that says the server is ready."""
    assert process.stdout is not None  # noqa: S101  # it is a pipe
    too_long = threading.Timer(START_S, process.kill)
    too_long.start()
    try:
        line = process.stdout.readline()
    finally:
        too_long.cancel()
    try:
        return int(json.loads(line)["port"])
    except (ValueError, KeyError, TypeError) as error:
        process.kill()
        process.wait()
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LINES:])
        raise DemoError(f"the server did not start. The end of its log, {log}:\n{tail or '(nothing)'}") from error


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the demo like Ctrl-C does, through every `finally`: no server is left behind."""

    def end(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

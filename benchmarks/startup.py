"""How long things take to begin: `import likewise`, `likewise --help`, a server until ready. Medians, in seconds.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

ROUNDS = 7


def main() -> None:
    """Print a line for each."""
    python = [sys.executable]
    print(f"interpreter alone   {median(lambda: run([*python, '-c', 'pass'])):.3f}")
    print(f"import likewise     {median(lambda: run([*python, '-c', 'import likewise'])):.3f}")
    print(f"a connected Client  {median(lambda: run([*python, '-c', 'from likewise import Client; Client()'])):.3f}")
    print(f"likewise --help     {median(lambda: run([*python, '-m', 'likewise.cli', '--help'])):.3f}")
    print(f"likewise serve      {median(serve, 3):.3f}")


def run(command: list[str]) -> None:
    """Run a command to its end."""
    subprocess.run(command, check=True, capture_output=True)


def serve() -> None:
    """Start a server with the bundled backbone, wait until it is ready, and stop it."""
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-m", "likewise.cli", "serve", "--data", data, "--port", "0", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            if process.stdout is None or not process.stdout.readline():
                raise RuntimeError("the server did not start")
            process.terminate()


def median(work: Callable[[], None], rounds: int = ROUNDS) -> float:
    """Return the median seconds of `rounds` runs."""
    times: list[float] = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    main()

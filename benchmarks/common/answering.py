"""The other end of processes.worker: requests in on stdin, answers out on stdout, a line of JSON each."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any


class Answers:
    """Takes stdout for itself: what libraries print from here on goes to stderr."""

    def __init__(self) -> None:
        self._stdout = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def serve(self, jobs: Mapping[str, Callable[..., dict[str, Any]]], hello: Mapping[str, Any]) -> None:
        """Say `hello`, then run the job that each line names with the arguments it brings, until stdin ends."""
        self._say(hello)
        for line in sys.stdin:
            request = json.loads(line)
            self._say(jobs[request.pop("what")](**request))

    def _say(self, message: Mapping[str, Any]) -> None:
        self._stdout.write(json.dumps(message) + "\n")
        self._stdout.flush()

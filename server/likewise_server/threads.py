"""Threads that outlive their mistakes: one that dies of what nobody foresaw says so in the log and begins again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

PAUSE_S = 0.1  # before a thread begins again, so that one that dies at once does not take the processor with it

logger = logging.getLogger(__name__)


class LastingThread:
    """Runs `work` in a daemon thread until it returns; whatever it raises, SystemExit included, it begins again.

    `work` itself answers, before it lets the error pass, whoever waits for what it had in hand.
    """

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self._work = work
        self.deaths = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        """Return whether `work` has not returned yet."""
        return self._thread.is_alive()

    def join(self, timeout: float | None = None) -> None:
        """Wait until `work` has returned, `timeout` seconds at most."""
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            try:
                self._work()
            except BaseException:  # it ends here, and must not end the thread
                logger.critical("The thread %s died and begins again", threading.current_thread().name, exc_info=True)
                self.deaths += 1
                time.sleep(PAUSE_S)
            else:
                return

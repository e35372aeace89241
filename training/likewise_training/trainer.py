"""The loop: AdamW, a warm-up, a falling learning rate, averaged weights, early stopping, checkpoints, a log."""

from __future__ import annotations

import copy
import csv
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import torch
from torch import Tensor, nn

from likewise.progress import bar
from likewise_server.errors import FailedPrecondition
from likewise_training import checkpoints
from likewise_training.settings import Schedule

S = TypeVar("S", bound=nn.Module)
B = TypeVar("B")

CHECKPOINT: Final = "checkpoint.pt"
LOG: Final = "log.csv"
LOG_EVERY: Final = 10  # steps
LONGEST_GRADIENT: Final = 1.0
FALL: Final = 3.0  # of the learning rate on a plateau


class Trainer(Generic[S, B]):
    """One run of a student in a folder; `average` is what it is for.

    `losses(student, batch, progress 0..1)` gives losses by name, their sum is descended. `score(average)` is watched,
    more is better. `together(student, seconds)` joins the gradients of several processes and agrees on the seconds
    gone, of which processes one leads: it alone writes. The state is all in the checkpoint: every draw of a step
    comes from the seed and the step.
    """

    def __init__(
        self,
        student: S,
        losses: Callable[[S, B, float], Mapping[str, Tensor]],
        schedule: Schedule,
        folder: Path,
        *,
        decided_by: Mapping[str, Any] | None = None,
        score: Callable[[S], float] | None = None,
        together: Callable[[S, float], float] = lambda _student, seconds: seconds,
        leads: bool = True,
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.student, self.average = student, copy.deepcopy(student).eval().requires_grad_(requires_grad=False)
        self.schedule, self.folder = schedule, folder
        self.step, self.seconds = 0, 0.0
        self.scores: dict[int, float] = {}
        self.best: dict[str, Tensor] = {}
        self._began, self._falls = 0.0, 0
        self._losses, self._score, self._together = losses, score, together
        self._leads, self._say = leads, say
        self._decided_by = schedule.decisive() | dict(decided_by or {})
        trained = [p for p in student.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": schedule.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self._optimiser = torch.optim.AdamW([group for group in groups if group["params"]], 1.0)

    @property
    def best_step(self) -> int:
        """The step after training began whose score was the best, 0 if none was scored."""
        return max((step for step in self.scores if step), key=lambda step: (self.scores[step], -step), default=0)

    @property
    def kept_step(self) -> int:
        """The step that the averaged weights of a run that has ended are of."""
        return self.best_step if self.schedule.patience and self.best else self.step

    @property
    def stale(self) -> int:
        """The scores since the best one."""
        return sum(step > self.best_step for step in self.scores)

    @property
    def progress(self) -> float:
        """The share of the run that is done: 1 or more at its end, also an early one."""
        if self.schedule.patience and self.stale >= self.schedule.patience:
            return 1.0
        if self.schedule.minutes is not None:
            return self.seconds / (60 * self.schedule.minutes)
        return self.step / self.schedule.steps

    def run(self, batches: Callable[[int], Iterator[B]]) -> bool:
        """Train on from the checkpoint, if there is one; return whether the end was reached, which stop_at may prevent.

        `batches(step)` yields the batches of that step on. With patience `average` then is that of the best score.
        Raises FailedPrecondition where a loss is no number any more.
        """
        self._resume()
        schedule, ahead = self.schedule, batches(self.step)
        self._began, saved = time.monotonic() - self.seconds, time.monotonic()
        total = schedule.steps if schedule.minutes is None else None
        with bar("training", total, wanted=None if self._leads else False) as advance:
            advance(self.step)
            self._judge()
            while self.progress < 1 and self.step != schedule.stop_at:
                rate = self._learning_rate()
                parts = self._descend(next(ahead), rate)
                self.step += 1
                self._follow()
                advance(1)
                if self.step % schedule.evaluate_every == 0:
                    self._judge()
                if not (self.step % LOG_EVERY and self.step % schedule.evaluate_every):
                    self._log(rate, parts)
                if time.monotonic() - saved >= schedule.save_every:
                    self._save()
                    saved = time.monotonic()
            ended = self.progress >= 1
            if ended:
                self._judge()
        self._save()
        if ended and schedule.patience and self.best:
            self.average.load_state_dict(self.best)
        return ended

    def _descend(self, batch: B, rate: float) -> dict[str, float]:
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        torch.manual_seed(self.schedule.seed * 1_000_003 + self.step)  # of what the network itself draws, as dropout
        parts = self._losses(self.student.train(), batch, self.progress)
        loss = torch.stack(list(parts.values())).sum()
        if not math.isfinite(loss.item()):
            raise FailedPrecondition(
                f"the loss at step {self.step} is no number: start again with a lower learning_rate, or precision=fp32"
            )
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no type here
        self.seconds = self._together(self.student, time.monotonic() - self._began)
        nn.utils.clip_grad_norm_(self.student.parameters(), LONGEST_GRADIENT)
        self._optimiser.step()
        return {name: round(part.item(), 4) for name, part in parts.items()}

    def _learning_rate(self) -> float:
        """Rise in a line; then fall in a cosine, or by FALL at each plateau."""
        schedule, progress = self.schedule, self.progress
        if progress < schedule.warm_up:
            return schedule.learning_rate * (progress + 1e-3) / (schedule.warm_up + 1e-3)
        if schedule.schedule == "plateau":
            return float(schedule.learning_rate / FALL**self._falls)
        return (
            schedule.learning_rate
            * 0.5
            * (1 + math.cos(math.pi * (progress - schedule.warm_up) / (1 - schedule.warm_up)))
        )

    def _follow(self) -> None:
        """Move the averaged weights, and the norms' statistics, a step towards the student's."""
        share = 1 - min(self.schedule.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, now in zip(_tensors(self.average), _tensors(self.student), strict=True):
                if mean.is_floating_point():
                    mean.lerp_(now, share)

    def _judge(self) -> None:
        if self._score is None or self.step in self.scores:
            return
        self.scores[self.step] = self._score(self.average)
        if self.step == self.best_step and self.step:
            self.best = {name: value.clone() for name, value in self.average.state_dict().items()}
        elif self.stale and self.stale % (self.schedule.patience // 3 or 1) == 0:
            self._falls += 1

    def _log(self, rate: float, parts: Mapping[str, float]) -> None:
        if not self._leads:
            return
        path = self.folder / LOG
        new = not path.exists()
        with path.open("a", newline="") as stream:
            log = csv.writer(stream, lineterminator="\n")
            if new:
                log.writerow(["step", "seconds", "learning_rate", *parts, "score"])
            score = self.scores.get(self.step)
            seconds, shown = round(self.seconds, 1), "" if score is None else round(score, 4)
            log.writerow([self.step, seconds, f"{rate:.3g}", *parts.values(), shown])
        if self.step in self.scores:
            self._say(f"step {self.step}: score {self.scores[self.step]:.4f}")

    def _save(self) -> None:
        if self._leads:
            state = {name: getattr(self, name) for name in ("step", "seconds", "scores", "best", "_falls")}
            state |= {"student": self.student.state_dict(), "average": self.average.state_dict()}
            state["optimiser"] = self._optimiser.state_dict()
            checkpoints.save(self.folder / CHECKPOINT, state, self._decided_by)

    def _resume(self) -> None:
        state = checkpoints.load(self.folder / CHECKPOINT, self._decided_by)
        if state:
            self.student.load_state_dict(state.pop("student"))
            self.average.load_state_dict(state.pop("average"))
            self._optimiser.load_state_dict(state.pop("optimiser"))
            for name, value in state.items():
                setattr(self, name, value)
            self._say(f"goes on at step {self.step}")
        if self._leads:
            self.folder.mkdir(parents=True, exist_ok=True)
            checkpoints.trim(self.folder / LOG, self.step)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield each parameter and buffer once, also where two names share it."""
    yield from module.parameters()
    yield from module.buffers()

"""A queue that is fair between callers: interactive work first, bulk work still moving, callers taking turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from likewise_server.pipeline.jobs import Job

BULK_SHARE = 4  # while both wait, every fourth place is bulk's


class Lane:
    """Jobs of one urgency. Callers take turns; each caller's own jobs keep their order."""

    def __init__(self) -> None:
        self._callers: OrderedDict[int, deque[Job]] = OrderedDict()
        self._jobs = 0

    def __len__(self) -> int:
        return self._jobs

    def put(self, job: Job) -> None:
        """Append a job behind its caller's others."""
        self._callers.setdefault(job.request.caller, deque()).append(job)
        self._jobs += 1

    def take(self) -> Job:
        """Remove the next job. Raises KeyError if there is none."""
        caller, jobs = self._callers.popitem(last=False)
        job = jobs.popleft()
        if jobs:
            self._callers[caller] = jobs  # at the end of the line
        self._jobs -= 1
        return job

    def heads(self) -> Iterator[Job]:
        """Yield each caller's oldest job."""
        return (jobs[0] for jobs in self._callers.values())


class FairQueue:
    """Two lanes. Not locked: whoever owns it is."""

    def __init__(self) -> None:
        self.interactive = Lane()
        self.bulk = Lane()
        self._turn = 0

    def __len__(self) -> int:
        return len(self.interactive) + len(self.bulk)

    def put(self, job: Job) -> None:
        """Append a job to its lane."""
        (self.bulk if job.request.bulk else self.interactive).put(job)

    def take(self) -> Job:
        """Remove the next job. Raises KeyError if there is none."""
        if self.interactive and self.bulk:
            self._turn = (self._turn + 1) % BULK_SHARE
            return (self.interactive if self._turn else self.bulk).take()
        return (self.interactive or self.bulk).take()

    def _peek(self) -> Job:
        """Return what `take` would."""
        turn = (self._turn + 1) % BULK_SHARE
        lane = self.bulk if self.bulk and (not self.interactive or not turn) else self.interactive
        return next(lane.heads())

    def take_alike(self, most: int) -> list[Job]:
        """Remove up to `most` jobs in turn, as long as they are for the backbone, and the views, of the first."""
        jobs = [self.take()]
        first = jobs[0].request
        while len(self) and len(jobs) < most:
            following = self._peek().request
            if following.backbone is not first.backbone or following.views != first.views:
                break
            jobs.append(self.take())
        return jobs

    def oldest(self) -> float | None:
        """Return when the job that has waited longest came, in time.monotonic() seconds."""
        return min((job.since for lane in (self.interactive, self.bulk) for job in lane.heads()), default=None)

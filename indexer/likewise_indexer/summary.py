"""What a run did, in numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class Summary:
    """Items by what became of them, and why the run ended early, if it did.

    `new`, `updated` and `unchanged` are the server's answers to what was uploaded (`unchanged`: it had
    just that); `skipped` was known from the journal and not uploaded; `pruned` was deleted.
    """

    collection: str = ""
    backbone: str = ""
    labels: str = ""  # where labels came from, "" for none
    new: int = 0
    updated: int = 0
    unchanged: int = 0
    skipped: int = 0
    failed: int = 0
    pruned: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    stopped: str = ""  # the reason, "" for a run that came to its end
    journal: str = ""
    failures: str = ""

    @property
    def uploaded(self) -> int:
        """Items sent to the server and acknowledged."""
        return self.new + self.updated + self.unchanged

    @property
    def total(self) -> int:
        """Items dealt with."""
        return self.uploaded + self.skipped + self.failed

    @property
    def images_per_s(self) -> float:
        """Uploaded items per second."""
        return self.uploaded / self.seconds if self.seconds else 0.0

    @property
    def exit_code(self) -> int:
        """0: all is in; 1: stopped early; 3: some items failed."""
        return 1 if self.stopped else 3 if self.failed else 0

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON object, derived numbers included."""
        return asdict(self) | {
            "total": self.total,
            "images_per_s": round(self.images_per_s, 2),
            "seconds": round(self.seconds, 3),
            "exit_code": self.exit_code,
        }

    def __str__(self) -> str:
        counts = [f"{self.new} new", f"{self.updated} updated", f"{self.unchanged} unchanged on the server"]
        counts += [f"{self.skipped} skipped", f"{self.failed} failed"]
        counts += [f"{self.pruned} pruned"] if self.pruned else []
        labels = f"labels from {self.labels}" if self.labels else "no labels"
        lines = [
            f"{self.collection} ({self.backbone}, {labels}): {', '.join(counts)}",
            f"{self.uploaded} images in {self.seconds:.1f} s, {self.images_per_s:.1f} images/s",
        ]
        lines += [f"note: {note}" for note in self.notes]
        if self.failed:
            lines.append(f"failures: {self.failures}")
        if self.stopped:
            lines.append(f"stopped: {self.stopped}\nthe same command continues where this one stopped")
        return "\n".join(lines)

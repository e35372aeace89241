"""The two commands: what is taught to whom, by whom, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from likewise_server.backbones import registry, weights
from likewise_server.backbones.base import BackboneRef, Network
from likewise_server.backbones.precision import native_bf16
from likewise_server.errors import InvalidArgument
from likewise_training import looks, pictures, targets
from likewise_training.lesson import Lesson, Teachers, axes_for, sample
from likewise_training.looks import Batch
from likewise_training.pictures import Picture
from likewise_training.publishing import check_name, publish
from likewise_training.scoring import accuracy, score_on
from likewise_training.settings import Distill, FineTune, Training
from likewise_training.student import Student
from likewise_training.trainer import CHECKPOINT, Trainer

Say = Callable[[str], None]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Report:
    """What came of a run. Scores are few-shot accuracies in percent, or a correlation, as `measure` says."""

    name: str
    weights: str
    """The file; "" if the run was left off before its end."""
    fingerprint: str
    """Of the default feature in fp32."""
    dim: int
    steps: int
    kept_step: int
    """Whose averaged weights were kept."""
    pictures: int
    held_out: int
    broken: list[tuple[str, str]]
    measure: str
    before: float | None
    after: float | None
    test: dict[str, list[float]]
    """Few-shot accuracy on the test pictures as "before" and "after": mean, half-width of the 95 % interval."""


def distill(settings: Distill, say: Say = lambda _: None) -> Report:
    """Train a student from random weights to say what its teachers say. Raises LikewiseError, OSError."""
    device = _prepare(settings)
    torch.manual_seed(settings.seed)
    network = registry.untrained(settings.student)
    if not (settings.feature or settings.relation):
        raise InvalidArgument("with feature=0 and relation=0 no teacher is listened to: give one of them a weight")
    teachers = Teachers(settings.teacher, settings.weights_dir, device, settings.precision)
    return _teach(settings, network, settings.student, teachers, device, say)


def finetune(settings: FineTune, say: Say = lambda _: None) -> Report:
    """Train the last blocks of a backbone with labelled pictures. Raises LikewiseError, OSError."""
    device = _prepare(settings)
    torch.manual_seed(settings.seed)
    network = registry.network(settings.backbone, settings.weights_dir)
    found = weights.find(settings.weights_dir, settings.backbone) if settings.backbone != registry.BUNDLED else None
    architecture = (weights.architecture(found) if found else "") or settings.backbone
    itself = settings.feature or settings.relation
    teachers = Teachers([settings.backbone], settings.weights_dir, device, settings.precision) if itself else None
    return _teach(settings, network, architecture, teachers, device, say)


def _prepare(settings: Training) -> torch.device:
    check_name(settings.name, settings.weights_dir, force=settings.force)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return registry.choose_devices(settings.device)[0]


def _teach(
    settings: Training, network: Network, architecture: str, teachers: Teachers | None, device: torch.device, say: Say
) -> Report:
    gathered = pictures.gather(settings.data, settings.label_from)
    kept, held = pictures.hold_out(gathered.pictures, settings.hold_out, settings.held_share, settings.seed)
    test = pictures.gather(settings.test, settings.label_from).pictures if settings.test else []
    classes = _classes(settings, kept)
    say(f"{len(kept)} pictures to train on, {len(held)} held out, {len(gathered.broken)} that cannot be read")
    decided_by = {"pictures": gathered.hash(), "architecture": architecture}
    axes = None
    if teachers and isinstance(settings, FineTune):  # its teacher is itself, before
        axes = targets.as_they_are(sum(teachers.widths))
    elif teachers:
        axes = axes_for(Student(network).dim, teachers, kept, settings, decided_by)
    student = _student(settings, network, kept, classes, axes.axes.shape[1] if axes else 0, device)
    tested = {"before": accuracy(student, test, shots=settings.shots, seed=settings.seed)} if test else {}
    measure, score = score_on(held, teachers, shots=settings.shots, seed=settings.seed)
    half = settings.precision == "bf16" or (settings.precision == "auto" and native_bf16(device))
    lesson = Lesson(settings, teachers, axes, half=half)
    trainer: Trainer[Student, Batch] = Trainer(
        student,
        lambda student, batch, _progress: lesson(student, batch),
        settings,
        settings.run,
        decided_by=decided_by,
        score=score,
        say=say,
    )
    side = max(network.preprocessing.crop, teachers.side if teachers else 0)
    ended = trainer.run(_batches(settings, kept, classes, side))
    file = fingerprint = ""
    if ended:
        if test:
            tested["after"] = accuracy(trainer.average, test, shots=settings.shots, seed=settings.seed)
        origin = _origin(settings, trainer, len(kept))
        file = str(publish(trainer.average.network, architecture, settings.name, settings.weights_dir, origin))
        # Loaded as a server would: what cannot be served is better known now.
        loaded = registry.load(settings.name, weights_dir=settings.weights_dir, device=CPU, precision="fp32")
        fingerprint = loaded.fingerprint(BackboneRef(settings.name))
    return Report(
        name=settings.name,
        weights=file,
        fingerprint=fingerprint,
        dim=student.dim,
        steps=trainer.step,
        kept_step=trainer.kept_step,
        pictures=len(kept),
        held_out=len(held),
        broken=gathered.broken,
        measure=measure,
        before=trainer.scores.get(0),
        after=trainer.scores.get(trainer.kept_step),
        test={when: [round(value, 2) for value in found] for when, found in tested.items()},
    )


def _classes(settings: Training, kept: Sequence[Picture]) -> list[str]:
    """Return the classes to learn. Raises InvalidArgument where nothing else would be learned and there are none."""
    classes = pictures.classes_of(kept) if settings.label else []
    if isinstance(settings, FineTune) and len(classes) < 2:  # noqa: PLR2004
        raise InvalidArgument(
            f"fine-tuning needs two classes to tell apart, with label above 0, and {settings.data} has {len(classes)}: "
            "put the pictures of each class in a folder of its own, or name a list with a label column"
        )
    return classes


def _student(
    settings: Training,
    network: Network,
    kept: Sequence[Picture],
    classes: Sequence[str],
    target_dim: int,
    device: torch.device,
) -> Student:
    still = isinstance(settings, FineTune) and settings.freeze_norms
    student = Student(network, target_dim=target_dim, classes=len(classes), freeze_norms=still).to(device)
    if isinstance(settings, FineTune):
        student.keep_still(settings.blocks)
        if student.classifier is not None and not (settings.run / CHECKPOINT).exists():
            some = sample(kept, settings.seed)
            features = torch.from_numpy(student.embed(some))
            student.classifier.imprint(features, torch.from_numpy(pictures.numbered(some, classes)))
    return student


def _batches(
    settings: Training, kept: Sequence[Picture], classes: Sequence[str], side: int
) -> Callable[[int], Iterator[Batch]]:
    transform = looks.augmentation(side, settings.augment, flip=settings.flip)
    made = looks.Looks(kept, pictures.numbered(kept, classes), transform)
    return lambda start: looks.batches(
        made,
        len(kept),
        len(classes),
        start=start,
        batch=settings.batch,
        mixup=settings.mixup,
        seed=settings.seed,
        workers=settings.workers,
    )


def _origin(settings: Training, trainer: Trainer[Student, Batch], count: int) -> dict[str, Any]:
    """Return where the weights came from; no path of this machine."""
    taken = {"pictures": count, "steps_taken": trainer.step, "kept_step": trainer.kept_step}
    return {"made_by": type(settings).__name__.lower(), **taken, **settings.decisive()}

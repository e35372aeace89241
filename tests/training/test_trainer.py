"""The loop on a network of one layer: schedules, early stopping, and runs that must not be mixed up."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from likewise_server.errors import FailedPrecondition, InvalidArgument
from likewise_training import losses, targets
from likewise_training.settings import Schedule
from likewise_training.trainer import CHECKPOINT, LOG, Trainer

Toy = Trainer[nn.Linear, Tensor]


def toy(folder: Path, score: Callable[[nn.Linear], float] | None = None, **settings: Any) -> Toy:
    """A layer that is to become zero."""
    torch.manual_seed(0)
    given = {"steps": 20, "batch": 2, "evaluate_every": 1, "learning_rate": 0.1, "average": 0.0, **settings}

    def loss(layer: nn.Linear, x: Tensor, _progress: float) -> dict[str, Tensor]:
        return {"square": layer(x).square().mean()}

    return Trainer(nn.Linear(2, 2), loss, Schedule.model_validate(given), folder, score=score)


def pictures(step: int) -> Iterator[Tensor]:
    while True:
        yield torch.ones(2, 2) * (1 + step % 3)
        step += 1


def column(folder: Path, name: str) -> list[float]:
    with (folder / LOG).open(newline="") as stream:
        return [float(row[name]) for row in csv.DictReader(stream)]


def test_a_cosine_rises_in_a_line_and_falls_to_nought(tmp_path: Path) -> None:
    assert toy(tmp_path, warm_up=0.25).run(pictures)
    rates = column(tmp_path, "learning_rate")
    assert rates[:5] == sorted(rates[:5])
    assert rates[5] == max(rates) == pytest.approx(0.1, rel=0.01)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] < 0.002
    assert column(tmp_path, "square")[-1] < column(tmp_path, "square")[0]


def test_on_a_plateau_the_rate_falls_and_then_the_run_stops_with_the_best_weights(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def score(layer: nn.Linear) -> float:
        seen.append(layer.weight.clone())
        return float(len(seen) if len(seen) <= 4 else 0)  # step 3 is the best, for ever

    trainer = toy(tmp_path, score, schedule="plateau", patience=6, warm_up=0)
    assert trainer.run(pictures)
    assert (trainer.step, trainer.kept_step) == (9, 3)
    torch.testing.assert_close(trainer.average.weight, seen[3])
    rates = column(tmp_path, "learning_rate")
    assert rates[:5] == [0.1] * 5
    assert rates[5:] == pytest.approx([0.1 / 3, 0.1 / 3, 0.1 / 9, 0.1 / 9], rel=0.01)


def test_without_patience_the_last_weights_are_kept(tmp_path: Path) -> None:
    trainer = toy(tmp_path, lambda _: 1.0, patience=0)
    assert trainer.run(pictures)
    assert trainer.kept_step == trainer.step == 20


def test_a_run_by_the_clock_can_be_prolonged(tmp_path: Path) -> None:
    first = toy(tmp_path, minutes=1e-4)
    assert first.run(pictures)
    second = toy(tmp_path, minutes=2e-3)
    assert second.run(pictures)
    assert second.step > first.step
    assert second.seconds >= 0.12


def test_a_run_goes_on_with_the_settings_it_began_with_only(tmp_path: Path) -> None:
    assert not toy(tmp_path, stop_at=3).run(pictures)
    with pytest.raises(InvalidArgument, match=r"learning_rate was 0\.1, is 0\.2.*--run"):
        toy(tmp_path, learning_rate=0.2).run(pictures)
    resumed = toy(tmp_path, save_every=1)
    assert resumed.run(pictures)
    unbroken = toy(tmp_path / "unbroken")
    assert unbroken.run(pictures)
    assert torch.equal(resumed.average.weight, unbroken.average.weight)


def test_a_damaged_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"nothing")
    with pytest.raises(FailedPrecondition, match="delete the folder"):
        toy(tmp_path).run(pictures)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"step 0 is no number.*learning_rate"):
        toy(tmp_path).run(lambda _: iter([torch.full((2, 2), torch.inf)]))


def test_losses_are_nothing_where_student_and_teacher_agree() -> None:
    torch.manual_seed(0)
    x, other = torch.randn(8, 5), torch.randn(8, 5)
    for loss in (losses.feature_loss, lambda s, t: losses.feature_loss(s, t, "mse"), losses.relation_loss):
        assert float(loss(x, 3 * x)) == pytest.approx(0, abs=1e-6)
        assert float(loss(x, other)) > 0.1
    turned = x @ torch.linalg.qr(torch.randn(5, 5)).Q
    assert float(losses.relation_loss(x, turned)) == pytest.approx(0, abs=1e-5), "who is like whom has no axes"
    assert float(losses.feature_loss(x, turned)) > 0.1


def test_an_imprinted_classifier_knows_its_classes() -> None:
    torch.manual_seed(0)
    labels = torch.arange(3).repeat(10)
    features = torch.eye(3)[labels] + 0.1 * torch.randn(30, 3)
    classifier = losses.CosineClassifier(3, 3)
    classifier.imprint(features, labels)
    assert torch.equal(classifier(features).argmax(1), labels)


def test_targets_keep_who_is_like_whom_and_weigh_teachers_alike() -> None:
    torch.manual_seed(0)
    features = torch.cat([torch.randn(40, 6) + 5, 100 * torch.randn(40, 4)], 1)
    axes = targets.fit(features, [6, 4], 8)
    made = axes(features)
    assert made.shape == (40, 8)
    torch.testing.assert_close(made.mean(0), torch.zeros(8), atol=1e-4, rtol=0)
    left, right = made[:, :4].norm(dim=1).mean(), made[:, 4:].norm(dim=1).mean()
    torch.testing.assert_close(left, right)
    assert targets.fit(features[:3], [6, 4], 8)(features).shape == (40, 4), "three pictures span two axes a teacher"

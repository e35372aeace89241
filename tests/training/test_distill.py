"""Distilling: the student comes to agree with its teacher, with labels it learns classes, and no kill spoils a run."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from likewise_server.backbones import registry
from likewise_training.looks import Batch, Looks, augmentation, mixed
from likewise_training.pictures import gather, numbered
from likewise_training.trainer import CHECKPOINT, LOG
from support.server import clean_environment
from support.training import Run, write_digits

START_S = 120


def log_of(folder: Path) -> list[dict[str, str]]:
    with (folder / LOG).open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_student_comes_to_agree_with_its_teacher(distill: Run, tmp_path: Path) -> None:
    data = write_digits(tmp_path / "digits", 12, 5)
    settings = {"label_from": "none", "augment": "light", "flip": False, "held_share": 0.4}
    report = distill(data, steps=30, batch=16, learning_rate=5e-4, average=0.9, precision="auto", **settings)
    assert report.before is not None
    assert report.after is not None
    assert "teachers' similarities" in report.measure
    assert report.after > report.before + 0.1
    assert report.dim == 512


def test_labels_are_learned_where_there_are_some(distill: Run, digits: Path, tmp_path: Path) -> None:
    labelled = distill(digits, run=tmp_path / "a", name="labelled", mixup=0.4)
    assert "accuracy" in labelled.measure
    assert {"feature", "relation", "label"} <= log_of(tmp_path / "a")[0].keys()
    distill(digits, run=tmp_path / "b", name="bare", label_from="none", feature_loss="mse", relation=0)
    columns = log_of(tmp_path / "b")[0].keys()
    assert "feature" in columns
    assert not {"label", "relation"} & columns


def test_a_student_of_another_width_and_family_can_be_served(distill: Run, digits: Path, tmp_path: Path) -> None:
    report = distill(digits, student="shufflenet_v2_x0_5", steps=2, teacher=["likewise-tiny", "likewise-tiny"])
    loaded = registry.load("mine", weights_dir=tmp_path / "weights", device=torch.device("cpu"), precision="fp32")
    assert loaded.learn_space(loaded.ref()).dim == report.dim == 1024
    assert loaded.fingerprint(loaded.ref()) == report.fingerprint
    assert loaded.preprocessing.crop == 224


def test_a_killed_run_goes_on_to_the_weights_of_an_unbroken_one(distill: Run, photos: Path, tmp_path: Path) -> None:
    killed, settings = tmp_path / "killed", {"steps": 8, "evaluate_every": 1, "held_share": 0.5}
    command = [sys.executable, "-m", "likewise.cli", "distill", str(photos), "--name", "killed", "--run", str(killed)]
    command += ["--teacher", "likewise-tiny", "--device", "cpu", "--weights-dir", str(tmp_path / "weights")]
    more = settings | {"batch": 8, "workers": 0, "threads": 1, "precision": "fp32", "save_every": 0}
    command += [f"--set={name}={value}" for name, value in more.items()]
    environment = {**clean_environment(), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
    until = time.monotonic() + START_S
    while not (killed / LOG).exists() or not (rows := log_of(killed)) or int(rows[-1]["step"]) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 2 <= torch.load(killed / CHECKPOINT)["step"] < 8
    assert not (tmp_path / "weights/killed.safetensors").exists()
    (killed / f"{CHECKPOINT}.part").write_bytes(b"half a checkpoint")
    resumed = distill(photos, name="killed", run=killed, **settings)
    assert [row["step"] for row in log_of(killed)] == [str(step) for step in range(1, 9)]
    unbroken = distill(photos, name="unbroken", run=tmp_path / "unbroken", **settings)
    weights, expected = load_file(resumed.weights), load_file(unbroken.weights)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert [row["score"] for row in log_of(killed)] == [row["score"] for row in log_of(tmp_path / "unbroken")]


def test_a_look_follows_from_its_key_alone(photos: Path) -> None:
    found = gather(str(photos)).pictures
    looks = Looks(found, numbered(found, []), augmentation(32, "strong", flip=True))
    first = looks[3, 7][0]
    torch.manual_seed(5)
    assert torch.equal(looks[3, 7][0], first)
    assert not torch.equal(looks[3, 8][0], first)
    assert first.shape == (3, 32, 32)


def test_mixup_blends_looks_and_classes_alike() -> None:
    looks = torch.tensor([0, 200], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 3, 4, 4)
    batch = mixed(Batch(looks, torch.eye(2)), 1.0, (0, 6))
    share = batch.shares[:, 1]
    torch.testing.assert_close(batch.shares.sum(1), torch.ones(2))
    torch.testing.assert_close(batch.looks[:, 0, 0, 0].float(), (200 * share).round())
    assert 0 < float(share[0]) < 1


def test_broken_pictures_are_left_out_and_named(distill: Run, photos: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for path in photos.iterdir():
        (mixed / path.name).symlink_to(path)
    (mixed / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    report = distill(mixed, steps=1)
    assert [item for item, _ in report.broken] == ["broken.jpg"]
    assert report.pictures + report.held_out == 16

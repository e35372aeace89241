"""What `likewise distill` and `likewise finetune` can be told, each setting once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""Of a backbone of one's own: fit for a file, and without the signs that mean something in backbone names."""


class Schedule(BaseModel):
    """How the trainer goes."""

    model_config = ConfigDict(extra="forbid")
    elsewhere: ClassVar[frozenset[str]] = frozenset({"minutes", "stop_at", "save_every"})
    """Settings that do not decide the weights."""

    steps: int = Field(1000, ge=1, description="steps of training")
    minutes: float | None = Field(None, gt=0, description="end by the clock instead, resumed parts counted")
    stop_at: int | None = Field(None, ge=1, description="leave off after this step, the schedule unchanged")
    batch: int = Field(64, ge=2, description="pictures a step")
    learning_rate: float = Field(1e-3, gt=0, description="the highest, reached after the warm-up")
    warm_up: float = Field(0.03, ge=0, lt=1, description="share of the run in which the learning rate rises")
    schedule: Literal["cosine", "plateau"] = Field(
        "cosine", description="the learning rate then falls by a cosine, or to a third whenever the score is stale"
    )
    weight_decay: float = Field(0.05, ge=0, description="AdamW's, of matrices; biases and norms have none")
    average: float = Field(0.998, ge=0, lt=1, description="decay of the moving average of the weights, which is kept")
    evaluate_every: int = Field(100, ge=1, description="steps between scores on what is held out")
    patience: int = Field(10, ge=0, description="scores without a better one before it stops early; 0: never")
    save_every: float = Field(60.0, ge=0, description="seconds between checkpoints")
    seed: int = Field(0, ge=0, description="of everything that is drawn")

    def decisive(self) -> dict[str, Any]:
        """Return the settings that decide the weights, as JSON values: a run is resumed with the same."""
        return self.model_dump(mode="json", exclude=set(self.elsewhere))


class Training(Schedule):
    """What both commands have."""

    elsewhere: ClassVar[frozenset[str]] = Schedule.elsewhere | {
        *("data", "name", "weights_dir", "run", "force", "test", "device", "threads", "workers"),
    }

    data: str = Field(description="a folder, a quoted pattern, a .csv/.tsv/.parquet list, a .tar")
    name: str = Field(pattern=NAME, description="of the new backbone")
    weights_dir: Path = Field(description="where the new backbone is written, and weights are looked for")
    run: Path = Field(description="folder of the checkpoint and the log")
    force: bool = Field(False, description="replace a backbone of that name")
    label_from: Literal["auto", "dir", "csv", "none"] = Field("auto", description="as for likewise index")
    test: str | None = Field(None, description="other pictures, with labels, to report few-shot accuracy on")
    hold_out: Literal["auto", "classes", "items"] = Field(
        "auto",
        description="what is kept from training, to score: whole classes, or items of each; auto: from 6 classes on",
    )
    held_share: float = Field(0.2, gt=0, lt=1, description="so much of them")
    shots: int = Field(5, ge=1, description="examples of a class when few-shot accuracy is scored")
    augment: Literal["strong", "light"] = Field("strong", description="how far looks differ from their picture")
    flip: bool = Field(True, description="mirror half of the looks; not for letters and signs")
    mixup: float = Field(0.0, ge=0, description="blend looks by shares from Beta(mixup, mixup); 0: never")
    feature: float = Field(1.0, ge=0, description="weight of the loss to the teachers' features")
    feature_loss: Literal["cosine", "mse"] = Field("cosine", description="that loss")
    relation: float = Field(0.5, ge=0, description="weight of the loss to the teachers' similarities within a batch")
    label: float = Field(1.0, ge=0, description="weight of the cross-entropy, where there are labels")
    device: str = Field("auto", description="auto, cpu or cuda:N")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="bf16 where the device computes it itself")
    threads: int | None = Field(None, ge=1, description="threads of torch; by default its own choice")
    workers: int | None = Field(None, ge=0, description="processes that make looks; by default up to 8; 0: none")


class Distill(Training):
    """What `likewise distill` can be told."""

    teacher: list[str] = Field(min_length=1, description="any backbone that can be served; several weigh the same")
    student: str = Field(
        "likewise-tiny", description="likewise-tiny or a torchvision architecture, from random weights"
    )


class FineTune(Training):
    """What `likewise finetune` can be told."""

    backbone: str = Field("likewise-tiny", description="any backbone that can be served; its weights are the start")
    blocks: int = Field(1, ge=1, description="so many of its last blocks are trained, the others stay")
    freeze_norms: bool = Field(True, description="keep the batch norms' statistics as they are")
    steps: int = Field(300, ge=1, description="steps of training")
    learning_rate: float = Field(3e-4, gt=0, description="the highest, reached after the warm-up")
    augment: Literal["strong", "light"] = Field("light", description="how far looks differ from their picture")
    average: float = Field(0.99, ge=0, lt=1, description="decay of the moving average of the weights, which is kept")
    evaluate_every: int = Field(25, ge=1, description="steps between scores on what is held out")
    feature: float = Field(0.0, ge=0, description="weight of the loss to the backbone's own features before")
    relation: float = Field(0.0, ge=0, description="weight of the loss to its own similarities within a batch before")

"""Distil likewise-tiny from random weights: cosine to its teachers' targets, and their similarities.

python -m recipes.tiny.distill --cache build/tiny --run build/tiny-run --minutes 60

The run folder keeps `checkpoint.pt`, written whole or not at all; the same command goes on from it after any
kill. With --steps the schedule counts steps, and a resumed run gives the weights of an unbroken one; with
--minutes it follows the clock, so that a busy machine still ends on time with the learning rate at nought.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from recipes.tiny.prepare import write_array
from recipes.tiny.teachers import MEAN, STD, standardise, targets
from recipes.tiny.views import SIDE
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn

from likewise_server.backbones import tiny
from likewise_server.backbones.base import Network
from likewise_training.looks import batch_indexes
from likewise_training.losses import feature_loss, relation_loss
from likewise_training.publishing import publish
from likewise_training.settings import Schedule
from likewise_training.trainer import Trainer

ELSEWHERE: Final = {"cache", "run", "stop_at", "save_every", "evaluate_every", "threads"}
"""Options that do not decide the weights."""


class Batch(NamedTuple):
    """The part of a step's views that one worker takes, uint8 (n, side, side, 3), and their targets (n, DIM)."""

    step: int
    views: Tensor
    targets: Tensor


class Views:
    """The prepared chunks as one array of pictures, uint8 (n, side, side, 3), and their targets (n, DIM)."""

    def __init__(self, cache: Path) -> None:
        done = sorted(cache.glob("features-*.npy"))
        if not done:
            raise SystemExit(f"no prepared views in {cache}: run python -m recipes.tiny.prepare first")
        made = cache / f"targets-{len(done)}.npy"
        if not made.exists():  # kept, since axes of close variance may turn with the number of threads
            write_array(made, targets(np.concatenate([np.load(path) for path in done]), tiny.DIM).numpy())
        self.targets = torch.from_numpy(np.load(made))
        self._chunks = [np.load(path.with_name(path.name.replace("features", "views")), mmap_mode="r") for path in done]
        self._starts = np.cumsum([0] + [len(chunk) for chunk in self._chunks])
        self.held_out = len(self._chunks[0]) // 4
        """So many of the first views are kept from training, to watch the fit."""

    def __len__(self) -> int:
        """Count the views."""
        return int(self._starts[-1])

    def __getitem__(self, indexes: NDArray[np.int64]) -> Tensor:
        """Read the views at `indexes`, in that order."""
        chunks = np.searchsorted(self._starts, indexes, "right") - 1
        rows = [self._chunks[c][i - self._starts[c]] for c, i in zip(chunks.tolist(), indexes.tolist(), strict=True)]
        return torch.from_numpy(np.stack(rows))


def augment(views: Tensor, side: int, step: int, seed: int) -> Tensor:
    """Flip half, crop and resize the batch, change each picture's light and contrast a little.

    uint8 (n, h, w, 3) in, standardised float32 (n, 3, side, side) out. Little enough that the targets,
    which were made without it, stay true; in bytes as far as possible, for speed.
    """
    rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
    size = int(torch.randint(views.shape[1] * 7 // 8, views.shape[1] + 1, (), generator=rng))
    top, left = (int(v) for v in torch.randint(0, views.shape[1] - size + 1, (2,), generator=rng))
    x = views[:, top : top + size, left : left + size]
    flip = torch.rand(len(x), generator=rng) < 0.5
    x[flip] = x[flip].flip(2)
    x = x.permute(0, 3, 1, 2)
    if side != size:
        x = nn.functional.interpolate(x, (side, side), mode="bilinear", antialias=True)
    gain = 1 + 0.3 * (torch.rand(len(x), 1, 1, 1, generator=rng) - 0.5)
    light = 0.4 * (torch.rand(len(x), 1, 1, 1, generator=rng) - 0.5)
    std, mean = (torch.tensor(values).view(1, 3, 1, 1) for values in (STD, MEAN))
    x = x.float().mul_(gain / (255 * std)).add_(light - gain * mean / std)
    return x.contiguous(memory_format=torch.channels_last)


def shared_step(network: nn.Module, seconds: float) -> float:
    """Average the gradients over the workers, and return the average of `seconds`, the same for all."""
    if not distributed.is_initialized():
        return seconds
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients] + [torch.tensor([seconds])])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    *parts, mean = torch.split(flat, [*(g.numel() for g in gradients), 1])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
    return float(mean)


def prefetched(views: Views, start: int, args: argparse.Namespace, rank: int) -> Iterator[Batch]:
    """Yield this worker's part of the batches of step `start` on, read one ahead of the use."""

    def read(step: int) -> Batch:
        indexes = batch_indexes(len(views) - views.held_out, step, args.batch, args.seed) + views.held_out
        mine = indexes[rank :: args.workers]
        return Batch(step, views[mine], views.targets[torch.from_numpy(mine)])

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(read, start)
        for step in count(start + 1):
            now, ahead = ahead, pool.submit(read, step)
            yield now.result()


@torch.inference_mode()
def held_out_cosine(network: tiny.Tiny, views: Views) -> float:
    """Return the mean cosine of a network to the targets of views it never trained on."""
    indexes = np.arange(views.held_out)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(standardise(views[indexes]).contiguous(memory_format=torch.channels_last))
    return float(nn.functional.cosine_similarity(out.float(), views.targets[: views.held_out]).mean())


def train(rank: int, args: argparse.Namespace) -> None:
    """Train until the steps or the minutes are used up, then export; worker `rank` of `args.workers`."""
    torch.set_num_threads(args.threads)
    if args.workers > 1:
        meeting = f"file://{(args.run / 'workers').resolve()}"
        distributed.init_process_group("gloo", meeting, rank=rank, world_size=args.workers)
    views = Views(args.cache)
    torch.manual_seed(args.seed)
    network = tiny.build().to(memory_format=torch.channels_last)

    def losses(student: tiny.Tiny, batch: Batch, progress: float) -> dict[str, Tensor]:
        side = args.small if progress < args.small_until else SIDE
        pixels = augment(batch.views, side, batch.step, args.seed)
        with torch.autocast("cpu", torch.bfloat16):
            said = student(pixels).float()
        feature, relation = feature_loss(said, batch.targets), relation_loss(said, batch.targets)
        return {"feature": feature, "relation": args.relation * relation}

    trainer: Trainer[tiny.Tiny, Batch] = Trainer(
        network,
        losses,
        schedule_of(args),
        args.run,
        decided_by={"small": args.small, "small_until": args.small_until, "relation": args.relation},
        score=(lambda average: held_out_cosine(average, views)) if rank == 0 else None,
        together=shared_step,
        leads=rank == 0,
        say=lambda text: print(text, flush=True),
    )
    ended = trainer.run(lambda start: prefetched(views, start, args, rank))
    if rank or not ended:
        return
    facts = {
        "command": command(args),
        "seed": args.seed,
        "steps": trainer.step,
        "seconds": round(trainer.seconds),
        "views": len(views) - views.held_out,
        "passes": round(trainer.step * args.batch / (len(views) - views.held_out), 1),
        "held_out_cosine": round(trainer.scores[trainer.step], 4),
    }
    made = Network(trainer.average, tiny.PREPROCESSING, feature_layer="features")
    publish(made, "likewise-tiny", "likewise-tiny", args.run, facts, half=True)
    print(f"done: {facts}", flush=True)


def schedule_of(args: argparse.Namespace) -> Schedule:
    """Return the trainer's settings."""
    return Schedule.model_validate(
        {
            "steps": args.steps or 1,
            "minutes": args.minutes,
            "stop_at": args.stop_at,
            "batch": args.batch,
            "learning_rate": args.lr,
            "weight_decay": args.weight_decay,
            "average": args.average,
            "evaluate_every": args.evaluate_every,
            "patience": 0,
            "save_every": args.save_every,
            "seed": args.seed,
        }
    )


def command(args: argparse.Namespace) -> str:
    """Write the options that decide the weights as a command line."""
    options = {k: v for k, v in vars(args).items() if k not in ELSEWHERE and v is not None}
    words = [f"--{name.replace('_', '-')} {value}" for name, value in options.items()]
    return " ".join(["python -m recipes.tiny.distill --cache CACHE --run RUN", *words])


def main(argv: list[str] | None = None) -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder that recipes.tiny.prepare filled")
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoint, log and weights")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="time budget, earlier parts of a resumed run counted")
    length.add_argument("--steps", type=int)
    parser.add_argument("--stop-at", type=int, help="leave off after this step, the schedule unchanged")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--average", type=float, default=0.998, help="decay of the averaged weights")
    parser.add_argument("--relation", type=float, default=0.5, help="weight of the similarity loss")
    parser.add_argument("--small", type=int, default=96, help="side of the pictures in the first part")
    parser.add_argument("--small-until", type=float, default=0.5, help="share of the run that part takes")
    parser.add_argument("--evaluate-every", type=int, default=250, help="steps between held-out cosines")
    parser.add_argument("--save-every", type=float, default=60, help="seconds between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that share each batch")
    parser.add_argument("--threads", type=int, default=1, help="threads a worker")
    args = parser.parse_args(argv)
    args.run.mkdir(parents=True, exist_ok=True)
    (args.run / "workers").unlink(missing_ok=True)  # where the last run's workers met
    Views(args.cache)  # makes the targets, before several workers want them
    if args.workers > 1:
        spawn(train, (args,), nprocs=args.workers)  # type: ignore[no-untyped-call]
    else:
        train(0, args)


if __name__ == "__main__":
    main()

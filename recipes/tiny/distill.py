"""Distil likewise-tiny from random weights: cosine to its teachers' targets, and their similarities.

python -m recipes.tiny.distill --cache /tmp/tiny --run /tmp/tiny-run --minutes 60

The run folder keeps `checkpoint.pt`, written whole or not at all; the same command goes on from it after any
kill. With --steps the schedule counts steps, and a resumed run gives the weights of an unbroken one; with
--minutes it follows the clock, so that a busy machine still ends on time with the learning rate at nought.
"""

import argparse
import csv
import json
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from recipes.tiny.prepare import write_array
from recipes.tiny.teachers import MEAN, STD, standardise, targets
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn

from likewise_server.backbones import tiny

BATCH_TEMPERATURE: Final = 0.1
ELSEWHERE: Final = {"cache", "run", "stop_at", "save_every", "threads"}
"""Options that do not decide the weights."""


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


def batch_indexes(views: Views, step: int, batch: int, seed: int) -> NDArray[np.int64]:
    """Return the views of step `step`: a slice of that epoch's own permutation."""
    count = len(views) - views.held_out
    batch = min(batch, count)
    epoch, place = divmod(step, count // batch)
    order = np.random.default_rng((seed, epoch)).permutation(count) + views.held_out
    return order[place * batch : (place + 1) * batch]


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


def loss_of(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 - cosine per picture, and the divergence of who is like whom within the batch.

    Both (n, dim). The second is the similarity distillation of Fang et al., "SEED", 2021, with the batch
    in the place of its queue.
    """
    s, t = nn.functional.normalize(student, dim=1), nn.functional.normalize(teacher, dim=1)
    alone = -1e4 * torch.eye(len(s))
    like_s = ((s @ s.T) / BATCH_TEMPERATURE + alone).log_softmax(1)
    like_t = ((t @ t.T) / BATCH_TEMPERATURE + alone).log_softmax(1)
    relation = nn.functional.kl_div(like_s, like_t, log_target=True, reduction="batchmean")
    return 1 - (s * t).sum(1).mean(), relation


def learning_rate(progress: float, peak: float, warm_up: float = 0.03) -> float:
    """Rise in a line, fall in a cosine, by the share 0..1 of the run that is done."""
    if progress < warm_up:
        return peak * (progress + 1e-3) / (warm_up + 1e-3)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warm_up) / (1 - warm_up))))


@dataclass
class Run:
    """Everything a checkpoint holds."""

    network: tiny.Tiny
    average: tiny.Tiny
    optimiser: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    def state(self) -> dict[str, Any]:
        """Return it as plain values and tensors."""
        parts: dict[str, Any] = {
            "network": self.network,
            "average": self.average,
            "optimiser": self.optimiser,
        }
        return {k: v.state_dict() for k, v in parts.items()} | {"step": self.step, "seconds": self.seconds}

    def load(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]


def new_run(seed: int, decay: float) -> Run:
    """Draw a network and its optimiser; biases and norms are not decayed."""
    torch.manual_seed(seed)
    network, average = tiny.build(), tiny.build()
    average.load_state_dict(network.state_dict())
    average.eval().requires_grad_(requires_grad=False)
    network.to(memory_format=torch.channels_last)
    average.to(memory_format=torch.channels_last)
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return Run(network, average, torch.optim.AdamW(groups, 1.0))


def follow(run: Run, decay: float) -> None:
    """Move the averaged weights, and the norms' statistics, a step towards the network's."""
    share = 1 - min(decay, (1 + run.step) / (10 + run.step))
    with torch.no_grad():
        for mean, now in zip(run.average.state_dict().values(), run.network.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, share)


def save_checkpoint(run: Run, path: Path) -> None:
    """Write a checkpoint that is whole or absent, whenever the process dies."""
    aside = path.with_suffix(".part")
    with aside.open("wb") as stream:
        torch.save(run.state(), stream)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(path)


def export(run: Run, path: Path) -> None:
    """Write the averaged weights as float16 safetensors."""
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in run.average.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    save_file(state, aside, {"format": "pt", "backbone": "likewise-tiny"})
    aside.replace(path)


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


def prefetched(views: Views, start: int, args: argparse.Namespace, rank: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this worker's part of (views, targets) of step `start` on, read one batch ahead of the use."""

    def read(step: int) -> tuple[Tensor, Tensor]:
        indexes = batch_indexes(views, step, args.batch, args.seed)[rank :: args.workers]
        return views[indexes], views.targets[torch.from_numpy(indexes)]

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(read, start)
        step = start
        while True:
            step += 1
            now, ahead = ahead, pool.submit(read, step)
            yield now.result()


@torch.inference_mode()
def held_out_cosine(run: Run, views: Views) -> float:
    """Return the mean cosine of the averaged network to the targets of views it never trained on."""
    indexes = np.arange(views.held_out)
    with torch.autocast("cpu", torch.bfloat16):
        out = run.average(standardise(views[indexes]).contiguous(memory_format=torch.channels_last))
    return float(nn.functional.cosine_similarity(out.float(), views.targets[: views.held_out]).mean())


def train(rank: int, args: argparse.Namespace) -> None:
    """Train until the steps or the minutes are used up, then export; worker `rank` of `args.workers`."""
    torch.set_num_threads(args.threads)
    if args.workers > 1:
        meeting = f"file://{(args.run / 'workers').resolve()}"
        distributed.init_process_group("gloo", meeting, rank=rank, world_size=args.workers)
    views = Views(args.cache)
    run = new_run(args.seed, args.weight_decay)
    checkpoint: Path = args.run / "checkpoint.pt"
    if checkpoint.exists():
        run.load(torch.load(checkpoint, weights_only=True))
        print(f"goes on at step {run.step}", flush=True)
    batches = prefetched(views, run.step, args, rank)
    before, started, saved, log_from = run.seconds, time.monotonic(), time.monotonic(), run.step
    with (args.run / "log.csv").open("a", newline="") as stream:
        log = csv.writer(stream)
        while (progress := run.step / args.steps if args.steps else run.seconds / (60 * args.minutes)) < 1:
            for group in run.optimiser.param_groups:
                group["lr"] = learning_rate(progress, args.lr)
            pixels, teacher = next(batches)
            pixels = augment(pixels, args.small if progress < args.small_until else 128, run.step, args.seed)
            with torch.autocast("cpu", torch.bfloat16):
                student = run.network(pixels)
            cosine, relation = loss_of(student.float(), teacher)
            run.optimiser.zero_grad()
            (cosine + args.relation * relation).backward()
            run.seconds = shared_step(run.network, before + time.monotonic() - started)
            nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
            run.optimiser.step()
            run.step += 1
            follow(run, args.average)
            if rank == 0 and run.step % 50 == 0:
                rate = (run.step - log_from) * args.batch / (run.seconds - before)
                row = [run.step, round(run.seconds), round(cosine.item(), 4), round(relation.item(), 4)]
                log.writerow([*row, round(rate)])
                stream.flush()
                print(f"{progress:6.1%}  step {row[0]}  {row[1]} s  1-cos {row[2]}  "
                      f"relation {row[3]}  {rate:.0f} pictures/s", flush=True)  # fmt: skip
            if rank == 0 and time.monotonic() - saved > args.save_every:
                save_checkpoint(run, checkpoint)
                export(run, args.run / "likewise-tiny.safetensors")
                saved = time.monotonic()
                print(f"saved; held-out cosine {held_out_cosine(run, views):.4f}", flush=True)
            if args.stop_at and run.step >= args.stop_at:
                break
    if rank:
        return
    save_checkpoint(run, checkpoint)
    export(run, args.run / "likewise-tiny.safetensors")
    facts = {
        "command": command(args),
        "seed": args.seed,
        "steps": run.step,
        "seconds": round(run.seconds),
        "views": len(views) - views.held_out,
        "passes": round(run.step * args.batch / (len(views) - views.held_out), 1),
        "held_out_cosine": round(held_out_cosine(run, views), 4),
    }
    (args.run / "run.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"done: {facts}", flush=True)


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

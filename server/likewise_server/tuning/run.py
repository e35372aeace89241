"""Measure backbone after backbone, and put the report together."""

from __future__ import annotations

import torch

from likewise_server.backbones import registry
from likewise_server.images import guard
from likewise_server.tuning import recommend
from likewise_server.tuning.bench import Bench
from likewise_server.tuning.facts import cores, machine
from likewise_server.tuning.plan import Plan, Say
from likewise_server.tuning.results import Report


def run(plan: Plan, say: Say) -> Report:
    """Measure all; `say` gets a line whenever something new begins. Raises LikewiseError saying what to do."""
    guard(plan.limits)
    devices = registry.choose_devices(plan.device)
    here = machine(devices)  # before there is a load of our own
    torch.set_num_threads(cores())
    found = [Bench(plan, name, devices, say).run() for name in plan.backbones]
    settings = recommend.together([(one.backbone, one.settings) for one in found])
    return Report(here, plan.pictures.told, found, settings)

"""Heads: light classifiers on frozen vectors.

Labelled vectors go in; a `TrainedHead` comes out, which turns further vectors into `Prediction`s, and
itself into bytes. Nothing here knows of images, collections or the wire.
"""

from likewise_server.heads.evaluation import ClassReport, Evaluation, evaluate
from likewise_server.heads.head import Metrics, Neighbour, Prediction, TrainedHead
from likewise_server.heads.options import HeadOptions
from likewise_server.heads.registry import kinds
from likewise_server.heads.training import train
from likewise_server.heads.updating import update

__all__ = [
    "ClassReport",
    "Evaluation",
    "HeadOptions",
    "Metrics",
    "Neighbour",
    "Prediction",
    "TrainedHead",
    "evaluate",
    "kinds",
    "train",
    "update",
]

"""Automatic precision is chosen by what it does to vectors, not by what the processor claims."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from likewise_server.backbones import precision, registry
from likewise_server.backbones.backbone import Backbone
from likewise_server.errors import InvalidArgument

CPU = torch.device("cpu")


def load(wanted: str) -> Backbone:
    return registry.load("likewise-tiny", weights_dir=None, device=CPU, precision=wanted)


def test_bf16_is_taken_only_if_vectors_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "native_bf16", lambda _device: True)
    assert load("auto").precision == "bf16"
    monkeypatch.setattr(precision, "LEAST_COSINE", 1.1)
    checked = load("auto")
    assert checked.precision == "fp32"
    plain = load("fp32")
    pictures = precision.probes(plain.preprocessing)
    assert pictures.shape == (8, 128, 128, 3)
    assert len({picture.tobytes() for picture in pictures}) == 8
    np.testing.assert_array_equal(checked.forward(pictures, checked.ref()), plain.forward(pictures, plain.ref()))
    assert checked.fingerprint(checked.ref()) == plain.fingerprint(plain.ref())


def test_without_native_bf16_it_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "native_bf16", lambda _device: False)
    assert load("auto").precision == "fp32"


def test_precisions_are_spaces_of_their_own() -> None:
    half, single = load("bf16"), load("fp32")
    assert half.fingerprint(half.ref()) != single.fingerprint(single.ref())
    with pytest.raises(InvalidArgument, match="fp8"):
        load("fp8")

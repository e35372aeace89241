"""Attention as it is exported is the attention that torch computes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from likewise_server.backbones import attention


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    torch.manual_seed(3)
    with torch.inference_mode():
        yield


def test_a_vision_transformer_gives_the_same_vectors() -> None:
    network = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=10
    ).eval()
    nn.init.normal_(network.heads.head.weight)
    pixels = torch.randn(3, 3, 32, 32)
    usual = network(pixels)
    with attention.batch_first():
        ours = network(pixels)
    torch.testing.assert_close(ours, usual, rtol=1e-4, atol=1e-5)
    assert usual.std() > 0.1, "or equality would say nothing"
    torch.testing.assert_close(network(pixels), usual)


@pytest.mark.parametrize("asked", [{"need_weights": True}, {"need_weights": False, "is_causal": False}, {}])
def test_other_uses_stay_with_torch(asked: dict[str, bool]) -> None:
    module = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x, y = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    usual, crossed = module(x, x, x, **asked), module(x, y, y, need_weights=False)
    with attention.batch_first():
        ours, ours_crossed = module(x, x, x, **asked), module(x, y, y, need_weights=False)
    torch.testing.assert_close(ours, usual)
    torch.testing.assert_close(ours_crossed, crossed)

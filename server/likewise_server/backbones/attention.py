"""Self-attention in a form that exports well.

torch's MultiheadAttention transposes a batch-first input before its projection. With a batch of unknown size
the export turns that product into one that copies the weights for every token: two seconds an image for ViT-B/16
where 0.1 is enough. Here the projection sees the batch as it lies in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


@contextmanager
def batch_first() -> Iterator[None]:
    """Have every MultiheadAttention computed batch first, where that is the same, while a network is exported."""
    original = nn.MultiheadAttention.forward

    def forward(
        self: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, **how: Any
    ) -> tuple[Tensor, Tensor | None]:
        if not (query is key is value and self.batch_first and set(how) == {"need_weights"}) or how["need_weights"]:
            return original(self, query, key, value, **how)
        return _self_attention(self, query), None

    nn.MultiheadAttention.forward = forward  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.MultiheadAttention.forward = original  # type: ignore[method-assign]


def _self_attention(module: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """Return softmax(QK'/√d)V of Vaswani et al. 2017, projected, for `x` (images, tokens, dim)."""
    images, tokens, dim = x.shape
    projected = functional.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, dim=-1)
    query, key, value = (
        part.reshape(images, tokens, module.num_heads, module.head_dim).transpose(1, 2) for part in projected
    )
    mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    out: Tensor = module.out_proj(mixed.reshape(images, tokens, dim))
    return out

"""A transformer over the patches of an image, or of a sequence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn
from torchvision.ops import StochasticDepth

from stormproof_train.activations import Activation, infer_feature_counts
from stormproof_train.models.convolution import check_input_shape, make_conv
from stormproof_train.models.widths import hidden_widths

MAX_TOKENS = 64
"""Attention costs the square of their number."""


class Transformer(nn.Module):
    r"""Cuts a sample into patches, adds a learned position to each, and lets them attend to each other.

    A block is :math:`x + A(N(x))`, then :math:`x + F(N(x))`, with N layer norm, A multi-head self-attention, and F a
    linear layer to ``expansion`` times the width, the activation, and one back. The mean over the patches, normed, goes
    through a last linear layer. A table's features are a sequence of numbers.

    Args:
        input_shape: (features,), (channels, length) or (channels, height, width) of one sample.
        num_outputs: classes, or regression outputs.
        activation: called once for each block.
        width: features of a patch, a multiple of ``heads``.
        depth: number of blocks, at least 1.
        heads: of attention, in each block.
        patch_size: positions along each side of a patch, which has to divide all sides; by default the smallest that
            leaves at most 64 patches, or, where none leaves 2 to 64, as few as there can be.
        expansion: the hidden layer of F, counted behind its activation, in widths.
        dropout: probability that a feature of A or F is dropped in training, in [0, 1).
        drop_path: probability that a sample skips A, or F, of the last block in training, in [0, 1); of the earlier
            ones less, in proportion to their place.

    Raises:
        ValueError: if the input has no positions, or the patches do not divide it, or an argument is out of its range.

    Example:
        >>> import torch
        >>> Transformer((1, 28, 28), 10, nn.GELU, depth=1)(torch.zeros(4, 1, 28, 28)).shape
        torch.Size([4, 10])

    References:
        Dosovitskiy et al., An image is worth 16x16 words, 2021, section 3.1; Vaswani et al., Attention is all you need,
        2017, section 3; Xiong et al., On layer normalization in the transformer architecture, 2020, for its place.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        activation: Activation,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        patch_size: int | None = None,
        expansion: int = 2,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden_widths(width, depth, None, dropout)
        if depth < 1 or heads < 1 or width % heads or expansion < 1:
            raise ValueError(
                f"depth={depth}, heads={heads} and expansion={expansion} must be at least 1, and width={width} a "
                "multiple of heads"
            )
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path is {drop_path}; it must be in [0, 1)")
        shape = (1, *input_shape) if len(input_shape) == 1 else tuple(input_shape)
        spatial_dims = check_input_shape("a Transformer", shape, halvings=0)
        side = _smallest_patch(shape[1:]) if patch_size is None else patch_size
        tokens = _count_patches(shape[1:], side)
        if tokens is None:
            size = "x".join(map(str, shape[1:]))
            raise ValueError(f"patches of side {side} do not divide samples of size {size}: set patch_size")
        self._shape = shape
        self.embedding = make_conv(spatial_dims, shape[0], width, kernel_size=side, stride=side)
        self.position = nn.Parameter(torch.randn(tokens, width))  # as large as `auto` makes the embedding of a patch
        self.blocks = nn.Sequential(
            *(
                _Block(width, heads, expansion, activation, dropout, drop_path * (index + 1) / depth)
                for index in range(depth)
            )
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_outputs))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Maps inputs (N, *input_shape) to outputs (N, num_outputs)."""
        patches = self.embedding(inputs.reshape(-1, *self._shape)).flatten(2).transpose(1, 2)
        return self.head(self.blocks(patches + self.position).mean(dim=1))


class _Block(nn.Sequential):
    def __init__(
        self, width: int, heads: int, expansion: int, activation: Activation, dropout: float, drop_path: float
    ) -> None:
        super().__init__(
            _Residual(width, _Attention(width, heads), dropout, drop_path),
            _Residual(width, _FeedForward(width, expansion, activation), dropout, drop_path),
        )


class _Residual(nn.Module):
    def __init__(self, width: int, inner: nn.Module, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.LayerNorm(width), inner, nn.Dropout(dropout), StochasticDepth(drop_path, "row")
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.residual(x)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, tokens, width) to its shape."""
        split = self.queries_keys_values(x).unflatten(2, (3, self.heads, -1))  # (N, tokens, 3, heads, width of a head)
        queries, keys, values = split.permute(2, 0, 3, 1, 4)
        return self.projection(F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, width: int, expansion: int, activation: Activation) -> None:
        super().__init__()
        linear_features, activation_features = infer_feature_counts(activation, expansion * width)
        self.wide = nn.Linear(width, linear_features)
        self.activation = activation()
        self.narrow = nn.Linear(activation_features, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, tokens, width) to its shape; the activation gets its features as dimension 1."""
        hidden = self.activation(self.wide(x).flatten(0, 1))
        return self.narrow(hidden).unflatten(0, x.shape[:2])


def _smallest_patch(sides: Sequence[int]) -> int:
    """The smallest side that leaves 2 to 64 patches; else the longest that leaves more than one."""
    counts = {side: _count_patches(sides, side) or 0 for side in range(1, min(sides) + 1)}
    multi_patch_sides = [side for side, count in counts.items() if count > 1]
    small_counts = (side for side in multi_patch_sides if counts[side] <= MAX_TOKENS)
    return next(small_counts, multi_patch_sides[-1] if multi_patch_sides else 1)


def _count_patches(sides: Sequence[int], side: int) -> int | None:
    """How many patches of this side there are; None where they do not divide the sample."""
    if side < 1 or any(length % side for length in sides):
        return None
    return math.prod(length // side for length in sides)

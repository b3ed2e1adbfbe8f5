"""Applies a transformer encoder to patches of an image or sequence."""

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
"""The cost of attention grows with the square of the number of tokens."""


class Transformer(nn.Module):
    """Splits a sample into patches, adds learned position embeddings and applies self-attention blocks.

    A block computes :math:`x + A(N(x))`, then :math:`x + F(N(x))`. N is layer norm and A is multi-head self-attention.
    F is a linear layer to ``expansion`` times the width, the activation, and a linear layer back. The output layer is
    linear and gets the normalized mean over patches. The features of a table are treated as a sequence of numbers.

    Args:
        input_shape: Shape of one sample: ``(features,)``, ``(channels, length)`` or ``(channels, height, width)``.
        num_outputs: Number of classes or regression outputs.
        activation: Factory, called once per block.
        width: Features per patch. Must be a multiple of ``heads``.
        depth: Number of blocks. Must be at least 1.
        heads: Number of attention heads per block. Must be at least 1.
        patch_size: Side of a patch in positions. Must divide every side of the sample. The default is the smallest size
            with 2 to 64 patches. Otherwise it is the size with the fewest patches above 1.
        expansion: Width of the hidden layer of F after its activation, as a multiple of ``width``.
        dropout: Dropout probability of the outputs of A and F, in [0, 1).
        drop_path: Probability that a sample skips A, or F, of the last block in training, in [0, 1). It increases
            linearly over the blocks.

    Raises:
        ValueError: If the input has no positions, the patch size does not divide it, or an argument is out of range.

    Example:
        >>> import torch
        >>> Transformer((1, 28, 28), 10, nn.GELU, depth=1)(torch.zeros(4, 1, 28, 28)).shape
        torch.Size([4, 10])

    References:
        Dosovitskiy et al., An image is worth 16x16 words, 2021, section 3.1.
        Vaswani et al., Attention is all you need, 2017, section 3.
        Xiong et al., On layer normalization in the transformer architecture, 2020, for the position of the layer norm.
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
                f"`depth`, `heads` and `expansion` must be at least 1, and `width` a multiple of `heads`, got "
                f"depth={depth}, heads={heads}, expansion={expansion} and width={width}."
            )
        if not 0 <= drop_path < 1:
            raise ValueError(f"`drop_path` must be in [0, 1), got {drop_path}.")
        shape = (1, *input_shape) if len(input_shape) == 1 else tuple(input_shape)
        spatial_dims = check_input_shape("a Transformer", shape, halvings=0)
        side = _smallest_patch(shape[1:]) if patch_size is None else patch_size
        tokens = _count_patches(shape[1:], side)
        if tokens is None:
            size = "x".join(map(str, shape[1:]))
            raise ValueError(f"`patch_size` must divide the sides of the samples ({size}), got {side}.")
        self._shape = shape
        self.embedding = make_conv(spatial_dims, shape[0], width, kernel_size=side, stride=side)
        self.position = nn.Parameter(torch.randn(tokens, width))  # same scale as the patch embedding under `auto`
        self.blocks = nn.Sequential(
            *(
                _Block(width, heads, expansion, activation, dropout, drop_path * (index + 1) / depth)
                for index in range(depth)
            )
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_outputs))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Maps inputs ``(batch, *input_shape)`` to outputs ``(batch, num_outputs)``."""
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
        """Maps ``(batch, tokens, width)`` to the same shape."""
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
        """Maps ``(batch, tokens, width)`` to the same shape. The activation gets its features as dimension 1."""
        hidden = self.activation(self.wide(x).flatten(0, 1))
        return self.narrow(hidden).unflatten(0, x.shape[:2])


def _smallest_patch(sides: Sequence[int]) -> int:
    """Returns the smallest side with 2 to 64 patches, or else the largest side with more than one patch."""
    counts = {side: _count_patches(sides, side) or 0 for side in range(1, min(sides) + 1)}
    multi_patch_sides = [side for side, count in counts.items() if count > 1]
    small_counts = (side for side in multi_patch_sides if counts[side] <= MAX_TOKENS)
    return next(small_counts, multi_patch_sides[-1] if multi_patch_sides else 1)


def _count_patches(sides: Sequence[int], side: int) -> int | None:
    """Returns the number of patches of this side, or None if ``side`` does not divide the sample."""
    if side < 1 or any(length % side for length in sides):
        return None
    return math.prod(length // side for length in sides)

"""Causal transformer layers that look back one block: the codec's memory over seconds.

Time is cut into blocks of `window_size` steps on an absolute grid. A query sees its own block up to itself and the
whole block before. The distance between query and key adds to their score what a small network says for it, one number
for each head.

Legend: B batch, H heads, T steps, D channels of a head, W window_size, Q queries of a tile.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .convolution import DownsamplingConv1d, in_tiles, upsample_linear
from .padding import ceil_divide
from .precision import Float32Linear

MAX_TILE_SIZE = 128  # queries that share one attention call: few enough to skip most keys that lie in their future


class DynamicPositionBias(nn.Module):
    """Distance in steps -> what it adds to an attention score, for each head."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.input = Float32Linear(1, hidden_size)
        self.hidden = Float32Linear(hidden_size, hidden_size)
        self.output = Float32Linear(hidden_size, num_heads)

    def forward(self, num_distances: int, device: torch.device) -> torch.Tensor:
        """`(H, num_distances)`, float32, for the distances 0, 1, ...; bfloat16 could not tell large ones apart."""
        x = torch.arange(num_distances, device=device).unsqueeze(-1)
        x = F.silu(self.input(x))
        x = F.silu(self.hidden(x))
        return self.output(x).transpose(0, 1)


def tile_bias(bias: torch.Tensor, tile_size: int) -> torch.Tensor:
    """Biases by distance `(H, 2W)` to a table `(H, Q, 2W + Q)`: row q, column 2W + k is the bias of a tile's query q to
    the key k steps after the tile's first query (before it for a negative k), and -inf where that key is later."""
    num_distances = bias.shape[-1]
    by_lag = F.pad(F.pad(bias, (tile_size - 1, 0), value=-math.inf), (0, tile_size))
    rows = by_lag.flip(-1).unfold(-1, num_distances + tile_size, 1)
    return rows.index_select(-2, torch.arange(tile_size - 1, -1, -1, device=bias.device))


class LocalAttention(nn.Module):
    """Multi-head attention from each block to itself and the block before, causal."""

    def __init__(self, hidden_size: int, num_heads: int, head_dim: int, window_size: int):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.window_size = window_size
        self.to_qkv = nn.Linear(hidden_size, 3 * num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, hidden_size, bias=False)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """`(B, T, hidden_size)` and the table of `tile_bias` to `(B, T, hidden_size)`."""
        attend = self._attend_in_graph if torch.compiler.is_compiling() else self.attend
        return self.merge_heads(attend(*self.split_heads(x), bias))

    def split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, T, hidden_size)` to query, key and value, `(3, B, H, T, D)`."""
        return self.to_qkv(x).view(*x.shape[:2], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)

    def merge_heads(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, H, T, D)` to `(B, T, hidden_size)`."""
        return self.to_out(x.transpose(1, 2).flatten(2))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Queries `(B, H, T, D)`, the last of the steps that there are keys and values for, to `(B, H, T, D)`.

        The first key is the first step of a block: of the first one where the clip is whole.
        """
        bias = bias.to(query.dtype)
        num_keys = key.shape[2]
        first_query = num_keys - query.shape[2]
        tiles = []
        for start, stop in self._tiles(first_query, num_keys, tile_size=bias.shape[1]):
            first_key = max(start // self.window_size - 1, 0) * self.window_size
            columns = slice(2 * self.window_size + first_key - start, 2 * self.window_size + stop - start)
            tiles.append(
                F.scaled_dot_product_attention(
                    query[:, :, start - first_query : stop - first_query],
                    key[:, :, first_key:stop],
                    value[:, :, first_key:stop],
                    attn_mask=bias[None, :, : stop - start, columns],
                )
            )
        return torch.cat(tiles, dim=2)

    def _tiles(self, first: int, num_steps: int, tile_size: int):
        """The steps from `first` to `num_steps` in tiles that do not cross the blocks' borders."""
        while first < num_steps:
            block_stop = (first // self.window_size + 1) * self.window_size
            stop = min(first + tile_size, block_stop, num_steps)
            yield first, stop
            first = stop

    def _attend_in_graph(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """`attend` for whole clips without a loop over time, so that one graph serves any number of steps: all blocks
        at once, each with the block before in front, as if they were heads. The steps are padded to whole blocks, and
        by one more: where the number of blocks could be 1, torch would make a graph for that alone."""
        num_steps, window_size = query.shape[2], self.window_size
        num_blocks = ceil_divide(num_steps, window_size) + 1
        num_missing = num_blocks * window_size - num_steps

        def in_rows(x: torch.Tensor, num_before: int) -> torch.Tensor:
            """`(B, H, T, D)` to `(B, padded T, H * D)`: in three dimensions padding makes no guard on strides."""
            return F.pad(x.transpose(1, 2).flatten(2), (0, 0, num_before, num_missing))

        def in_blocks(rows: torch.Tensor) -> torch.Tensor:
            blocks = rows.view(rows.shape[0], num_blocks, window_size, self.num_heads, self.head_dim)
            return blocks.transpose(2, 3).flatten(1, 2)

        def with_block_before(x: torch.Tensor) -> torch.Tensor:
            rows = in_rows(x, window_size)
            before, own = rows[:, :-window_size], rows[:, window_size:]
            return torch.cat([in_blocks(before), in_blocks(own)], dim=2)

        query = in_blocks(in_rows(query, 0))
        key, value = with_block_before(key), with_block_before(value)
        bias = bias.to(query.dtype)
        block_index = torch.arange(num_blocks, device=query.device).view(-1, 1, 1, 1)
        is_before_start = (block_index == 0) & (torch.arange(2 * window_size, device=query.device) < window_size)
        tiles = []
        for start, stop in self._tiles(0, window_size, tile_size=bias.shape[1]):
            num_keys = window_size + stop
            tile_bias = bias[:, : stop - start, window_size - start : window_size - start + num_keys]
            tile_bias = tile_bias.masked_fill(is_before_start[..., :num_keys], -math.inf)
            tiles.append(
                F.scaled_dot_product_attention(
                    query[:, :, start:stop],
                    key[:, :, :num_keys],
                    value[:, :, :num_keys],
                    attn_mask=tile_bias.flatten(0, 1).unsqueeze(0),
                )
            )
        attended = torch.cat(tiles, dim=2).unflatten(1, (num_blocks, self.num_heads))
        return attended.transpose(2, 3).flatten(1, 2)[:, :num_steps].transpose(1, 2)


class LocalTransformerLayer(GradientCheckpointingLayer):
    """Attention and gated MLP, each after a layer norm and added to its input."""

    def __init__(self, hidden_size: int, num_heads: int, head_dim: int, window_size: int):
        super().__init__()
        intermediate_size = hidden_size * 8 // 3
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = LocalAttention(hidden_size, num_heads, head_dim, window_size)
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.up_and_gate = nn.Linear(hidden_size, 2 * intermediate_size, bias=False)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """`(B, T, hidden_size)` to the same shape."""
        return self.add_mlp(x + self.attention(self.attention_norm(x), bias))

    def add_mlp(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, T, hidden_size)` to the same shape: what follows attention."""
        return in_tiles(self._add_mlp, (x,), self.up_and_gate.out_features)

    def _add_mlp(self, x: torch.Tensor, inside: slice) -> torch.Tensor:
        x = x[:, inside]
        up, gate = self.up_and_gate(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(up * F.gelu(gate))


class LocalTransformer(nn.Module):
    """Layers at one rate that share their position bias. Padding after a clip needs no mask: nothing looks ahead."""

    def __init__(self, hidden_size: int, num_layers: int, num_heads: int, head_dim: int, window_size: int):
        super().__init__()
        self.window_size = window_size
        self.tile_size = math.ceil(window_size / math.ceil(window_size / MAX_TILE_SIZE))
        self.position_bias = DynamicPositionBias(hidden_size // 2, num_heads)
        self.layers = nn.ModuleList(
            LocalTransformerLayer(hidden_size, num_heads, head_dim, window_size) for _ in range(num_layers)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, T, hidden_size)` to the same shape."""
        bias = tile_bias(self.position_bias(2 * self.window_size, x.device), self.tile_size)
        for layer in self.layers:
            x = layer(x, bias)
        return x


class DownsamplingTransformer(nn.Module):
    """The encoder's: layers at the rate of the convolutions, a strided convolution, layers at the frame rate."""

    def __init__(self, config):
        super().__init__()
        num_fine_layers, num_frame_layers = config.encoder_transformer_depths
        ratio = config.transformer_downsampling_ratio
        self.fine_layers = _layers(config, num_fine_layers, ratio)
        self.downsample = (
            DownsamplingConv1d(config.latent_dim, config.latent_dim, ratio) if ratio > 1 else nn.Identity()
        )
        self.frame_layers = _layers(config, num_frame_layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(batch, num_frames * ratio, latent_dim)` to `(batch, num_frames, latent_dim)`."""
        return self.frame_layers(self.downsample(self.fine_layers(x)))


class UpsamplingTransformer(nn.Module):
    """The decoder's: layers at the frame rate, linear up-sampling, layers at the rate of the convolutions."""

    def __init__(self, config):
        super().__init__()
        num_frame_layers, num_fine_layers = config.decoder_transformer_depths
        self.ratio = config.transformer_downsampling_ratio
        self.frame_layers = _layers(config, num_frame_layers)
        self.fine_layers = _layers(config, num_fine_layers, self.ratio)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """`(batch, num_frames, latent_dim)` to `(batch, num_frames * ratio, latent_dim)`."""
        x = self.frame_layers(x)
        if self.ratio > 1:
            x = upsample_linear(x, self.ratio, mask)
        return self.fine_layers(x)


def _layers(config, num_layers: int, steps_per_frame: int = 1) -> nn.Module:
    if num_layers == 0:
        return nn.Identity()
    return LocalTransformer(
        config.latent_dim,
        num_layers,
        config.num_attention_heads,
        config.head_dim,
        window_size=config.attention_window_size * steps_per_frame,
    )

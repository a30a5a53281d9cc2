"""What Lycodec's encoder and decoder have in common. Data is `(batch, num_steps, channels)`."""

import torch
import torch.nn.functional as F
from torch import nn

MLP_RATIO = 4
DROPOUT = 0.1  # of the originals, in training


class LycodecAttention(nn.Module):
    """Multi-head attention whose queries, keys and values come from where the caller says."""

    def __init__(self, channels: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.o_proj = nn.Linear(channels, channels)

    def reset_parameters(self):
        """As torch's `MultiheadAttention`, where the first three are parts of one matrix."""
        for project in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(project.weight, gain=2**-0.5)
        for project in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            nn.init.zeros_(project.bias)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`(batch, num_queries, channels)`, twice `(batch, num_keys, channels)` and a bool mask `(num_queries,
        num_keys)`, true where a query sees a key, to `(batch, num_queries, channels)`."""
        heads = F.scaled_dot_product_attention(
            self._split(self.q_proj(query)),
            self._split(self.k_proj(key)),
            self._split(self.v_proj(value)),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.o_proj(heads.transpose(1, 2).flatten(2))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class LycodecMLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, channels: int, hidden_channels: int, dropout: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden_channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.dropout(F.gelu(self.fc1(x))))


def interpolate_steps(x: torch.Tensor, num_steps: int) -> torch.Tensor:
    """`(batch, channels, any)` to `(batch, channels, num_steps)`, linear, first on first and last on last step."""
    return F.interpolate(x, num_steps, mode="linear", align_corners=True)

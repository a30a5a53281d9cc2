"""Tokens that stay what they are where nobody hears a difference.

A little noise, another level, or one more time through the codec changes tokens, and language models pay for it: they
see many spellings of one sound. Here the encoder hears clips that were changed so, and what it makes of them before
rounding is pulled to what it makes of the clean ones (Liu et al. 2025, "Analyzing and mitigating inconsistency in
discrete audio tokens for neural codec language models", ACL 2025).
"""

import torch

from ..models.modeling_codec import CodecModel
from .losses import num_of_share, of_whole_batch
from .quantization import TrainingQuantizer
from .recipe import Consistency


def consistency_loss(
    codec: CodecModel,
    batch: dict[str, torch.Tensor],
    latents: torch.Tensor,
    decoded: torch.Tensor,
    recipe: Consistency,
) -> torch.Tensor:
    """Mean distance in levels between the digits, before they are rounded, of the first clips of a batch, changed as
    `perturbed` does, and of the same clips as they are, which get no gradient.

    The loss of the clips that are not looked at is 0; that of the others is weighted up by as much.

    Args:
        codec: whose encoder is trained; its quantizer may be, as a `TrainingQuantizer`.
        batch: `input_values (batch, 1, num_samples)` and `padding_mask (batch, num_samples)`.
        latents: `(batch, latent_dim, num_frames)` that the codec made of it.
        decoded: `(batch, 1, num_samples)`, as the codec decodes the batch.

    Returns:
        float `(batch,)`.
    """
    num_clips = num_of_share(recipe.share, len(decoded))
    mask = batch["padding_mask"][:num_clips]
    changed = perturbed(batch["input_values"][:num_clips], decoded[:num_clips].detach(), mask, recipe)
    its_latents, _ = codec._encode_latents(changed, mask)
    frames = slice(None, None, codec.config.hop_length)
    clean_latents, quantizer = latents.transpose(1, 2), codec.quantizer
    if isinstance(quantizer, TrainingQuantizer):
        clean_mask = batch["padding_mask"][:, frames].bool()
        positions, clean_positions = quantizer.positions_beside(its_latents, clean_latents, clean_mask)
    else:
        positions, clean_positions = quantizer.positions(its_latents), quantizer.positions(clean_latents)
    distances = (positions - clean_positions[:num_clips].detach()).abs().mean(dim=-1)
    frame_mask = mask[:, frames]
    values = (distances * frame_mask).sum(dim=-1) / frame_mask.sum(dim=-1).clamp(min=1)
    return of_whole_batch(values, len(decoded))


def perturbed(
    audio: torch.Tensor, decoded: torch.Tensor, padding_mask: torch.Tensor, recipe: Consistency
) -> torch.Tensor:
    """Audio `(batch, 1, num_samples)`, each clip changed in one of four ways, each as likely: white noise at a
    signal-to-noise ratio of `noise_db`, a gain of `gain_db`, a shift by up to `shift_samples` to either side, or
    replaced by what the codec decoded of it. It stays silent where `padding_mask` is 0.

    Numbers are drawn uniformly from torch's generator.
    """
    batch_size, _, num_samples = audio.shape
    device = audio.device

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(batch_size, 1, 1, device=device)

    power = audio.square().sum(dim=-1, keepdim=True) / padding_mask.sum(dim=-1).clamp(min=1)[:, None, None]
    noise = torch.randn_like(audio) * power.sqrt() * 10 ** (-uniform(*recipe.noise_db) / 20)
    gain = 10 ** (uniform(*recipe.gain_db) / 20)
    shifts = torch.floor(uniform(-recipe.shift_samples, recipe.shift_samples + 1)).long()
    places = torch.arange(num_samples, device=device) + shifts
    shifted = audio.gather(-1, places.clamp(0, num_samples - 1)) * ((places >= 0) & (places < num_samples))
    kinds = torch.randint(4, (batch_size, 1, 1), device=device)
    changed = torch.where(kinds == 0, audio + noise, audio * gain)
    changed = torch.where(kinds == 2, shifted, changed)
    changed = torch.where(kinds == 3, decoded, changed)
    return changed * padding_mask[:, None]

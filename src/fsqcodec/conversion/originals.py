"""The original packages `l3ac` and `sq_codec` behind one interface: to verify a conversion, to test parity, and to make
checkpoints in the original file format where the published ones are out of reach."""

import copy
from pathlib import Path

import numpy as np
import torch

from ..models.configuration_codec import CodecConfig
from ..models.modeling_codec import CodecModel
from .codec_table import convert_codec
from .original_weights import OriginalWeights

ORIGINS = ("l3ac", "sqcodec")
RANDOM_AUDIO_LEVEL = 0.1  # RMS of what random weights decode, that of speech


class OriginalCodec:
    """An original network of the sizes in `config`, in float64 (its float32 audio drifts from its own float64 result by
    1e-4 to 1e-2, because `F.interpolate` computes positions in float32).

    Raises `ImportError` where the package is not installed, `ValueError` for a config it can't express.
    """

    def __init__(self, origin: str, config: CodecConfig):
        self.origin = origin
        self.config = config
        self.network = _build_network(origin, config).double().eval()
        for name, module in self.network.named_modules():
            if name.endswith("dynamic_pos_bias.mlp"):  # its input, distances, is made in float32
                module.register_forward_pre_hook(lambda module, arguments: (arguments[0].double(),))

    def load(self, folder: Path):
        """Load the five files, as the package does."""
        self.network.load_model(model_path=Path(folder))
        self.network.double()

    def save(self, folder: Path):
        """Write the five files in float32, as the package does."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.network.float().save_model(model_path=Path(folder))
        self.network.double()

    def converted(self) -> CodecModel:
        """Our model with this network's weights, float32."""
        weights = {
            f"{file}.{key}": tensor
            for file, module in self.network.trainable_modules.items()
            for key, tensor in module.state_dict().items()
        }
        model = CodecModel(self.config).eval()
        model.load_state_dict(convert_codec(OriginalWeights(weights), self.config))
        return model

    def float32_network(self) -> torch.nn.Module:
        """A copy of the network in float32, as its package runs it."""
        network = copy.deepcopy(self.network).float()
        for module in network.modules():
            module._forward_pre_hooks.clear()
        return network

    @torch.no_grad()
    def randomize(self, seed: int, clip: np.ndarray):
        """Random weights, none of them trivial, and a quantizer whose tokens vary over `clip`.

        Random networks map all audio to a handful of tokens; the projection before the quantizer is therefore aimed at
        the principal axes of the clip's latents, each scaled to unit variance. The last layer is scaled so that audio
        comes out as loud as speech.
        """
        generator = torch.Generator().manual_seed(seed)

        def uniform(parameter, low, high):
            parameter.copy_(low + (high - low) * torch.rand(parameter.shape, generator=generator))

        for name, parameter in self.network.named_parameters():
            leaf = name.rsplit(".", 1)[-1]
            if leaf == "original0":
                uniform(parameter, 0.5, 1.0)
            elif leaf == "alpha":
                uniform(parameter, 0.5, 2.0)
            elif leaf in ("gamma", "beta", "bias"):
                uniform(parameter, -0.2, 0.2)
            elif parameter.ndim == 1:
                uniform(parameter, 0.7, 1.3)
            elif leaf in ("original1", "weight"):
                limit = parameter[0].numel() ** -0.5
                uniform(parameter, -limit, limit)
        self._aim_quantizer(clip)
        self._set_level(generator)
        self.network.float().double()  # what the files will hold

    def _aim_quantizer(self, clip: np.ndarray):
        latents = self.latents(clip)[: -(-len(clip) // self.config.hop_length)]
        _, spread, axes = torch.linalg.svd(latents - latents.mean(dim=0), full_matrices=False)
        project_in = self.network.quantizer.project_in
        num_axes = project_in.out_features
        project_in.weight.copy_(axes[:num_axes] * len(latents) ** 0.5 / spread[:num_axes, None])
        project_in.bias.copy_(-project_in.weight @ latents.mean(dim=0))

    def _set_level(self, generator: torch.Generator):
        audio = self.decode(torch.randint(self.config.codebook_size, (50,), generator=generator))
        gain = RANDOM_AUDIO_LEVEL / torch.atanh(audio.clamp(-0.999, 0.999)).std()
        *_, last_convolution, _ = self.network.decoder.blocks[-1].block
        last_convolution.parametrizations.weight.original0.mul_(gain)
        last_convolution.bias.mul_(gain)

    @torch.no_grad()
    def latents(self, audio: np.ndarray) -> torch.Tensor:
        """The encoder's output for a clip `(num_samples,)`: `(num_padded_frames, latent_dim)`."""
        padded, _ = self.network.preprocess(torch.as_tensor(audio).double().unsqueeze(0))
        return self.network.en_encoder(self.network.encoder(padded.unsqueeze(1)))[0]

    @torch.no_grad()
    def positions(self, audio: np.ndarray) -> torch.Tensor:
        """Digits before rounding, `(num_frames, num_dimensions)`, of the frames that hold audio."""
        num_frames = -(-len(audio) // self.config.hop_length)
        z = self.network.quantizer.project_in(self.latents(audio)[:num_frames])
        vq = self.network.quantizer.vq
        if self.origin == "l3ac":
            return vq.act(z) * (vq.levels - 1)
        return vq.bound(z) + vq._levels // 2

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Tokens `(num_frames,)` to audio `(num_frames * hop_length,)`."""
        return decode_with(self.network, codes)


def decode_with(network: torch.nn.Module, codes: torch.Tensor) -> torch.Tensor:
    """Tokens `(num_frames,)` to audio `(num_frames * hop_length,)` by an original network in any precision."""
    quantizer, en_decoder = network.quantizer, network.en_decoder
    values = quantizer.vq.indices_to_codes(codes.unsqueeze(0))
    features = quantizer.project_out(values.to(quantizer.project_out.weight.dtype))
    if hasattr(en_decoder, "up_trans"):
        # its own forward in two steps, without the reshape that refuses sequences that are not whole windows
        features = en_decoder.up_trans(en_decoder.local_trans(features)).transpose(1, 2)
    else:
        features = en_decoder(features)
    return network.decoder(features)[0, 0]


def _build_network(origin: str, config: CodecConfig) -> torch.nn.Module:
    if origin == "l3ac":
        from l3ac.en_codec import EnCodec, ModelConfig

        quantizer = {"name": "super_fsq", "levels": list(config.quantization_levels)}
    else:
        from sq_codec.en_codec import EnCodec, ModelConfig

        quantizer = {"name": "taae_fsq", "codebook_dim": list(config.quantization_levels), "codebook_num": 1}
    _check_expressible(origin, config)
    return EnCodec(
        ModelConfig(
            feature_dim=config.latent_dim,
            compress_rates=config.downsampling_ratios,
            encoder_dims=config.encoder_hidden_sizes,
            encoder_depths=config.encoder_depths,
            decode_rates=config.upsampling_ratios,
            decoder_dims=config.decoder_hidden_sizes,
            decoder_depths=[*config.decoder_depths, 1],  # the last one is not read
            base_unit="normal",
            use_norm=True,
            use_snake_act=True,
            decoder_last_layer="legacy",
            vq_config=quantizer,
            en_coder_depth=sum(config.decoder_transformer_depths),
            en_coder_window_size=config.attention_window_size,
            en_coder_dynamic_pos=True,
            en_coder_compress_rate=config.transformer_downsampling_ratio,
            en_coder_cache_size=0,
        )
    )


def _check_expressible(origin: str, config: CodecConfig):
    """Some of our fields are constants, or follow from each other, in the originals."""
    depth = sum(config.decoder_transformer_depths)
    coarse = config.transformer_downsampling_ratio > 1
    if origin == "l3ac":
        encoder_depths = (1, 2) if coarse else (0, 1)
        padding_frames, bound, norm_eps = 1, "tanh", 1e-8
    else:
        encoder_depths = (2, depth - 2) if coarse else (0, depth)
        padding_frames, bound, norm_eps = config.attention_window_size, "fsq", 2.0**-23
    expected = {
        "encoder_transformer_depths": encoder_depths,
        "decoder_transformer_depths": (depth - 2, 2) if coarse else (depth, 0),
        "num_attention_heads": 6,
        "head_dim": config.latent_dim // 4,
        "padding_frames": padding_frames,
        "quantizer_bound": bound,
        "norm_eps": norm_eps,
    }
    for name, value in expected.items():
        given = getattr(config, name)
        if (tuple(given) if isinstance(given, (list, tuple)) else given) != value:
            raise ValueError(f"{name} is {given} in the config, {value} in the original {origin}")

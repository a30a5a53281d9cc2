"""Streams: latency by design of every preset, speed at 20 ms a push, and how far decoders that normalise over the clip
are from the whole.

    python benchmarks/streaming.py

Random weights, float32, one thread, 8 s of the English example clip. Speed is seconds of processor time per second of
audio. Distance is the signal-to-noise ratio to the decode of the whole, on the second half of the clip: with the
statistics so far, of the first half ("earlier clip"), and of the clip itself. The last table is the cost of the exact
decode in pieces, which `decode_file` does.
"""

import tempfile
import time
import warnings
from pathlib import Path

import torch

from fsqcodec import CodecConfig, CodecModel, StreamingDecoder, StreamingEncoder, convert_checkpoint
from fsqcodec.audio import read_audio
from fsqcodec.conversion.originals import OriginalCodec
from fsqcodec.models.configuration_codec import PRESETS
from fsqcodec.streaming import clip_statistics

CLIP = Path(__file__).parent.parent / "examples" / "audio" / "lj_gutenberg.flac"
SECONDS = 8
PUSH_SECONDS = 0.02
SPEED_PRESETS = ("l3ac-1kbps", "l3ac-3kbps", "speech-3kbps")
DISTANCE_PRESETS = ("l3ac-1kbps", "l3ac-3kbps", "sqcodec-3kbps")
EXACT_PRESETS = ("l3ac-1kbps", "l3ac-3kbps", "sqcodec-24kbps-24khz")


def main():
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    print(f"{'preset':24}{'frame':>9}{'encoder look-ahead':>20}{'decoder look-ahead':>20}{'latency':>10}")
    for preset in PRESETS:
        config = CodecConfig.from_preset(preset)
        milliseconds = [
            1000 * num_samples / config.sampling_rate
            for num_samples in (config.hop_length, config.encoder_lookahead_samples, config.decoder_lookahead_samples)
        ]
        frame, encoder, decoder = milliseconds
        print(f"{preset:24}{frame:6.1f} ms{encoder:17.1f} ms{decoder:17.1f} ms{sum(milliseconds):7.1f} ms")
    print(f"\n{'preset':24}{'encode, 20 ms':>14}{'whole':>9}{'decode, 20 ms':>15}{'whole':>9}")
    for preset in SPEED_PRESETS:
        print(
            f"{preset:24}{'{:14.3f}{:9.3f}{:15.3f}{:9.3f}'.format(*speed(CodecModel(CodecConfig.from_preset(preset)).eval()))}"
        )
    print(f"\n{'preset':24}{'so far':>10}{'earlier clip':>14}{'its own':>10}")
    for preset in DISTANCE_PRESETS:
        print(f"{preset:24}{'{:7.1f} dB{:11.1f} dB{:7.1f} dB'.format(*distances(random_model(preset)))}")
    print(f"\n{'preset':24}{'exact decode in pieces, times the decode of the whole':>54}")
    for preset in EXACT_PRESETS:
        print(f"{preset:24}{exact_decode_ratio(CodecModel(CodecConfig.from_preset(preset)).eval()):54.2f}")


@torch.inference_mode()
def speed(model: CodecModel) -> list[float]:
    """Seconds of processor time per second of audio: encode in pushes and whole, decode in pushes and whole."""
    clip = _clip(model.config)
    encoder, decoder = StreamingEncoder(model), StreamingDecoder(model)
    chunks = clip.split(int(PUSH_SECONDS * model.config.sampling_rate))
    codes, encode_pushed = _timed(lambda: [encoder.push(chunk) for chunk in chunks])
    _, decode_pushed = _timed(lambda: [decoder.push(piece) for piece in codes])
    encoded, encode_whole = _timed(lambda: model.encode(clip[None, None]))
    _, decode_whole = _timed(lambda: model.decode(encoded.audio_codes))
    return [seconds / SECONDS for seconds in (encode_pushed, encode_whole, decode_pushed, decode_whole)]


@torch.inference_mode()
def distances(model: CodecModel) -> list[float]:
    """Signal-to-noise ratios in dB of streams with statistics so far, of the first half, and of the clip."""
    codes = model.encode(_clip(model.config)[None, None]).audio_codes
    half = codes.shape[-1] // 2
    whole = model.decode(codes).audio_values
    ratios = []
    for statistics in (None, clip_statistics(model, codes[..., :half]), clip_statistics(model, codes)):
        decoder = StreamingDecoder(model, statistics)
        audio = torch.cat([*[decoder.push(piece) for piece in codes.split(2, dim=-1)], decoder.flush()], dim=-1)
        second_half = slice(half * model.config.hop_length, None)
        signal, error = whole[..., second_half], (audio - whole)[..., second_half]
        ratios.append(10 * torch.log10(signal.square().sum() / error.square().sum()).item())
    return ratios


@torch.inference_mode()
def exact_decode_ratio(model: CodecModel) -> float:
    """Processor time of the statistics and of a stream with them, by that of `model.decode`, for 20 s of codes."""
    codes = torch.randint(model.config.codebook_size, (1, 1, int(20 * model.config.frame_rate)))
    model.decode(codes[..., :50])  # the first call also sets up kernels and memory
    statistics, measured = _timed(lambda: clip_statistics(model, codes))
    decoder = StreamingDecoder(model, statistics)
    _, streamed = _timed(lambda: (decoder.push(codes), decoder.flush()))
    return (measured + streamed) / _timed(lambda: model.decode(codes))[1]


def random_model(preset: str) -> CodecModel:
    """With the original package's layers and random weights, aimed so that tokens vary."""
    config, origin = CodecConfig.from_preset(preset), preset.split("-")[0]
    with tempfile.TemporaryDirectory() as folder:
        original = OriginalCodec(origin, config)
        original.randomize(seed=0, clip=_clip(config).numpy())
        original.save(Path(folder) / "original")
        convert_checkpoint(origin, Path(folder) / "original", Path(folder) / "model", config=config)
        return CodecModel.from_pretrained(Path(folder) / "model", dtype=torch.float32)


def _clip(config: CodecConfig) -> torch.Tensor:
    return torch.from_numpy(read_audio(CLIP, config.sampling_rate)[: SECONDS * config.sampling_rate])


def _timed(function):
    started = time.process_time()
    result = function()
    return result, time.process_time() - started


if __name__ == "__main__":
    main()

"""Real speech to tokens and back: writes demo/out.wav and demo/out.png, prints tokens, rate and time.

    python examples/demo.py

Uses demo/codec-1kbps if the published weights have been converted to it (see the README). If not, it makes a checkpoint
with random weights in the original's file format, converts that to demo/codec-1kbps-random and uses it: then everything
works, but the output only follows the input's pauses and is not speech.
"""

import time
from pathlib import Path

import matplotlib
import torch
from transformers import AutoFeatureExtractor, AutoModel

import fsqcodec
from fsqcodec.audio import read_audio, write_audio
from fsqcodec.conversion.originals import OriginalCodec
from fsqcodec.packing import pack

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

PRESET = "l3ac-1kbps"
CLIP = Path(__file__).parent / "audio" / "lj_gutenberg.flac"
OUTPUT_DIR = Path("demo")
MODEL_DIR = OUTPUT_DIR / "codec-1kbps"
RANDOM_MODEL_DIR = OUTPUT_DIR / "codec-1kbps-random"


def main():
    model_dir = MODEL_DIR if MODEL_DIR.exists() else RANDOM_MODEL_DIR
    if model_dir == RANDOM_MODEL_DIR:
        print(f"no {MODEL_DIR}, using RANDOM weights: tokens and timings are real, the decoded audio is not speech")
        if not RANDOM_MODEL_DIR.exists():
            make_random_model()
    model = AutoModel.from_pretrained(model_dir, dtype=torch.float32)
    feature_extractor = AutoFeatureExtractor.from_pretrained(model_dir)
    sampling_rate = model.config.sampling_rate
    audio = read_audio(CLIP, sampling_rate)
    features = feature_extractor(audio, sampling_rate=sampling_rate, return_tensors="pt")
    seconds = len(audio) / sampling_rate

    with torch.inference_mode():
        model(**features)  # the first call also sets up kernels and memory
        started = time.perf_counter()
        audio_codes = model.encode(**features).audio_codes
        encoded = time.perf_counter()
        decoded_audio = model.decode(audio_codes, num_samples=len(audio)).audio_values[0, 0].numpy()
        decoded = time.perf_counter()

    num_frames = audio_codes.shape[-1]
    num_bytes = len(pack(audio_codes, model.config))
    print(f"{CLIP.name}: {seconds:.2f} s at {sampling_rate} Hz")
    print(f"tokens: {audio_codes[0, 0, :12].tolist()} ... {num_frames} in all, {len(audio_codes.unique())} distinct")
    print(f"rate: {num_frames / seconds:.2f} tokens/s, {model.config.bitrate:.0f} bit/s; packed: {num_bytes} bytes")
    print(f"encode: {seconds / (encoded - started):.0f} times faster than real time ({encoded - started:.3f} s)")
    print(f"decode: {seconds / (decoded - encoded):.0f} times faster than real time ({decoded - encoded:.3f} s)")
    write_audio(OUTPUT_DIR / "out.wav", decoded_audio, sampling_rate)
    plot({"input": audio, "decoded": decoded_audio}, sampling_rate, OUTPUT_DIR / "out.png")
    print(f"wrote {OUTPUT_DIR / 'out.wav'} and {OUTPUT_DIR / 'out.png'}")


def make_random_model():
    """A checkpoint as the original package writes it, with random weights, and its conversion."""
    config = fsqcodec.CodecConfig.from_preset(PRESET)
    original = OriginalCodec("l3ac", config)
    original.randomize(seed=0, clip=read_audio(CLIP, config.sampling_rate))
    original.save(OUTPUT_DIR / "original-1kbps-random")
    # sizes and not the preset's name, which stands for the published weights
    fsqcodec.convert_checkpoint(
        "l3ac", OUTPUT_DIR / "original-1kbps-random", RANDOM_MODEL_DIR, config=config, verify=True
    )


def plot(waveforms: dict, sampling_rate: int, path: Path):
    """Waveform and spectrogram of each, below each other."""
    figure, axes = plt.subplots(2, len(waveforms), figsize=(14, 6), sharex=True, sharey="row", layout="constrained")
    for (waveform_axis, spectrogram_axis), (name, waveform) in zip(axes.T, waveforms.items()):
        waveform_axis.plot(torch.arange(len(waveform)) / sampling_rate, waveform, linewidth=0.4)
        waveform_axis.set_title(name)
        spectrogram_axis.specgram(waveform + 1e-7, NFFT=512, Fs=sampling_rate, noverlap=384, vmin=-140, vmax=-30)
        spectrogram_axis.set_xlabel("seconds")
    axes[0, 0].set_ylabel("amplitude")
    axes[1, 0].set_ylabel("Hz")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()

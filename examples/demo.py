"""Real speech to tokens and back: writes demo/out.wav and demo/out.png, prints tokens, rate and time.

    python examples/demo.py

The model is the one that comes with the package.
"""

import time
from pathlib import Path

import matplotlib
import torch
from transformers import AutoFeatureExtractor, AutoModel

import fsqcodec
from fsqcodec.audio import read_audio, write_audio
from fsqcodec.packing import pack

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

CLIP = Path(__file__).parent / "audio" / "lj_gutenberg.flac"
OUTPUT_DIR = Path("demo")


def main():
    model_dir = fsqcodec.bundled_checkpoint()
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

"""Real speech to tokens, to a language model, and back to sound: a small Llama over the FSQ digits of a codec.

    python examples/speech_lm.py --codec FOLDER --train SPEECH --held-out OTHER_SPEECH --output demo/speech-lm

A source of speech is what `fsqcodec tokenize` takes: a folder, a manifest, a data set. The example tokenizes both,
trains with `Trainer`, compares the loss on the held-out speech with what the frequencies of tokens alone give, and lets
the model continue a held-out clip. It writes the tokens, the language model with its vocabulary, `result.json`,
`continued.wav`, which begins with a second of the clip, and `continued.png`.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from datasets import Dataset, load_dataset
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, default_data_collator, set_seed

from fsqcodec.audio import read_audio
from fsqcodec.codecs import Codec, load_codec
from fsqcodec.lm import AudioCollator, AudioLogitsProcessor, AudioStreamer, AudioVocabulary
from fsqcodec.tokenization import Settings
from fsqcodec.tokenization import tokenize as tokenize_source

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

PROMPT_SECONDS = 1.0
PSEUDO_COUNTS = 10.0 ** np.arange(-4, 1)  # of each id, that smooth the unigram


def main():
    arguments = parse_arguments()
    set_seed(0)
    codec = load_codec(arguments.codec)
    vocabulary = AudioVocabulary.for_codec(codec, view="digits" if codec.quantization_levels else "codes")
    if codec.quantization_levels:
        vocabulary = replace(
            vocabulary, quantization_levels=grouped(codec.quantization_levels, arguments.digits_per_id)
        )
    train_rows = tokenize(arguments.train, arguments.codec, arguments.output / "train")
    held_out_rows = tokenize(arguments.held_out, arguments.codec, arguments.output / "held-out")

    collator = AudioCollator(vocabulary)
    language_model = small_llama(vocabulary, arguments)
    train(language_model, collator, train_rows, arguments)
    vocabulary.save_pretrained(arguments.output)

    block_frames = max(1, arguments.block_ids // vocabulary.num_ids_per_frame - 1)
    views = ("codes", "digits") if codec.quantization_levels else ("codes",)
    result = {
        "codec": f"{codec.name}, digest {vocabulary.token_digest}",
        "train_hours": sum(row["num_frames"] for row in train_rows) / codec.frame_rate / 3600,
        "held_out_minutes": sum(row["num_frames"] for row in held_out_rows) / codec.frame_rate / 60,
        "parameters": language_model.num_parameters(),
        "uniform_bits_per_frame": sum(math.log2(size) for size in codec.codebook_sizes),
        "unigram_bits_per_frame": {
            view: unigram_bits_per_frame(AudioVocabulary.for_codec(codec, view=view), train_rows, held_out_rows)
            for view in views
        },
        "language_model_bits_per_frame": bits_per_frame(language_model.eval(), collator, held_out_rows, block_frames),
    }
    (arguments.output / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    continue_clip(language_model, vocabulary, codec, held_out_rows[0], arguments)


def grouped(levels: tuple[int, ...], digits_per_id: int) -> list[int]:
    """Levels of digits that each stand for several: 9, 9, 9, 7, 7, 7 in threes are 729, 343, which count the same codes
    in the same order."""
    return [math.prod(levels[start : start + digits_per_id]) for start in range(0, len(levels), digits_per_id)]


def tokenize(source: str, codec: str, folder: Path) -> Dataset:
    """A row for each clip: `audio_codes` and `num_frames`. What an earlier run has tokenized is not done again."""
    done = tokenize_source(Settings(source, codec, channels="mix"), folder)
    print(f"{source}: {done.num_rows} clips, {done.seconds / 60:.1f} minutes, {done.num_errors} errors")
    return load_dataset("parquet", data_files=f"{folder}/data/*.parquet", split="train").select_columns(
        ["audio_codes", "num_frames"]
    )


def small_llama(vocabulary: AudioVocabulary, arguments: argparse.Namespace) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary.size,
            hidden_size=arguments.hidden_size,
            intermediate_size=3 * arguments.hidden_size,
            num_hidden_layers=arguments.num_layers,
            num_attention_heads=max(1, arguments.hidden_size // 64),
            max_position_embeddings=arguments.block_ids,
            bos_token_id=vocabulary.begin_of_audio_id,
            eos_token_id=vocabulary.end_of_audio_id,
            pad_token_id=vocabulary.end_of_audio_id,
        )
    )


def train(language_model: LlamaForCausalLM, collator: AudioCollator, rows: Dataset, arguments: argparse.Namespace):
    blocks = rows.map(
        collator.pack, batched=True, remove_columns=rows.column_names, fn_kwargs={"num_ids": arguments.block_ids}
    )
    training_arguments = TrainingArguments(
        output_dir=arguments.output,
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=arguments.steps // 20,
        weight_decay=0.1,
        adam_beta2=0.98,
        use_cpu=not torch.cuda.is_available(),  # said outright, else there is no bf16 on one
        bf16=arguments.bf16,
        logging_steps=max(1, arguments.steps // 40),
        save_strategy="no",
        report_to="none",
    )
    trainer = Trainer(language_model, training_arguments, train_dataset=blocks, data_collator=default_data_collator)
    trainer.train()
    trainer.save_model()


def unigram_bits_per_frame(
    vocabulary: AudioVocabulary, train_rows: Dataset, held_out_rows: Dataset
) -> dict[str, float]:
    """What knowing only how often each id occurs takes of the held-out frames, in bits.

    `smoothed`: frequencies of the training speech, with the pseudo-count that serves the held-out speech best.
    `entropy`: frequencies of the held-out frames themselves, which no model has that has not seen them. Nothing that
    takes each id by itself can have a lower loss on them.
    """
    bits = {"smoothed": 0.0, "entropy": 0.0}
    train_ids, held_out_ids = (
        torch.cat([vocabulary.codes_to_rows(codes) for codes in rows["audio_codes"]], dim=1).numpy()
        for rows in (train_rows, held_out_rows)
    )
    for start, size, train, held_out in zip(vocabulary.range_starts, vocabulary.range_sizes, train_ids, held_out_ids):
        counts, own_counts = (np.bincount(ids - start, minlength=size) for ids in (train, held_out))
        bits["smoothed"] += min(_cross_entropy(own_counts, counts + pseudo_count) for pseudo_count in PSEUDO_COUNTS)
        bits["entropy"] += _cross_entropy(own_counts, own_counts)
    return bits


def _cross_entropy(counts: np.ndarray, model_counts: np.ndarray) -> float:
    """Bits for each of what was counted, under the frequencies of `model_counts`."""
    seen = counts > 0
    return float(counts[seen] @ -np.log2(model_counts[seen] / model_counts.sum()) / counts.sum())


@torch.inference_mode()
def bits_per_frame(language_model, collator: AudioCollator, rows: Dataset, block_frames: int) -> float:
    """The model's loss on all frames, in bits; each is predicted from half a block before it or more, if there is."""
    bits = 0.0
    num_new = max(1, block_frames // 2)
    for row in rows:
        codes = torch.tensor(row["audio_codes"])
        for start in range(0, row["num_frames"], num_new):
            new = codes[..., start : start + num_new]
            context = codes[..., max(0, start + num_new - block_frames) : start]
            batch = collator([{"audio_codes": torch.cat([context, new], dim=-1)}])
            logits = language_model(batch["input_ids"].to(language_model.device)).logits[0, :-2].float().cpu()
            labels = batch["labels"][0, 1:-1]  # without begin, which is given, and end, which the block does not have
            num_ids = collator.vocabulary.codes_to_ids(new).numel()
            bits += cross_entropy(logits[-num_ids:], labels[-num_ids:], reduction="sum").item() / math.log(2)
    return bits / sum(rows["num_frames"])


def continue_clip(language_model, vocabulary: AudioVocabulary, codec: Codec, row: dict, arguments: argparse.Namespace):
    """Sample from the first second of a clip to the length that the model was trained on, and look at it."""
    codes = np.atleast_2d(row["audio_codes"])
    prompt_codes = codes[:, : round(PROMPT_SECONDS * codec.frame_rate)]
    prompt = torch.tensor([[vocabulary.begin_of_audio_id, *vocabulary.codes_to_ids(prompt_codes)]])
    streamer = AudioStreamer(vocabulary, codec, arguments.output / "continued.wav")
    language_model.generate(
        prompt.to(language_model.device),
        logits_processor=[AudioLogitsProcessor(vocabulary)],
        streamer=streamer,
        do_sample=True,
        top_p=0.95,
        max_length=max(arguments.block_ids, prompt.shape[1] + vocabulary.num_ids_per_frame),
    )
    continued = read_audio(arguments.output / "continued.wav", codec.output_sampling_rate)
    (original,) = codec.decode([codes], [len(continued)])
    figure, axes = plt.subplots(2, figsize=(8, 6), sharex=True, layout="constrained")
    for axis, (name, audio) in zip(axes, {"the clip": original, "continued by the model": continued}.items()):
        axis.specgram(audio + 1e-7, NFFT=512, Fs=codec.output_sampling_rate, noverlap=384, vmin=-140, vmax=-30)
        axis.axvline(PROMPT_SECONDS, color="white", linestyle=":")
        axis.set(title=name, ylabel="Hz")
    axes[-1].set_xlabel("seconds")
    figure.savefig(arguments.output / "continued.png", dpi=110)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", required=True, help="folder or Hub id of a codec, or speech-3kbps-v2")
    parser.add_argument("--train", required=True, help="speech to train on")
    parser.add_argument("--held-out", required=True, help="other speakers' speech to measure on")
    parser.add_argument("--output", type=Path, required=True, help="folder for the language model and the result")
    parser.add_argument("--steps", type=int, default=3250)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--batch-size", type=int, default=2, help="blocks a step")
    parser.add_argument("--block-ids", type=int, default=768, help="length of a block")
    parser.add_argument("--digits-per-id", type=int, default=3, help="FSQ digits that one id stands for")
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--num-layers", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="train in bf16 where the processor has it")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Recognition models for tests: small ones with random weights recognise something, and always the same."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken
from transformers import (
    GenerationConfig,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizerFast,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode


def save_small_recognizer(folder: Path) -> Path:
    """Write the model and its processor to `folder`, made if needed, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    (folder / "vocab.json").write_text(json.dumps({letter: index for index, letter in enumerate(letters)}))
    transformers.set_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    tokenizer = Wav2Vec2CTCTokenizer(folder / "vocab.json")
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


def save_small_whisper(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a small Whisper model of English and German with random weights and a window of 3 s to `folder`, made if
    needed, and return it."""
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>"]
    special += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    texts = [*bytes_to_unicode().values()]
    ids = {token: index for index, token in enumerate(texts + special)}
    tokenizer = WhisperTokenizerFast(vocab=ids, merges=[])
    tokenizer.add_tokens([AddedToken(token, special=True) for token in special])
    transformers.set_seed(0)
    start, end = ids["<|startoftranscript|>"], ids["<|endoftext|>"]
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    tokens = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    num_timestamps = 151  # each 20 ms, and the end
    config = WhisperConfig(
        vocab_size=len(ids) + num_timestamps,
        max_source_positions=150,
        max_target_positions=32,
        **sizes,
        **heads,
        **tokens,
    )
    model = WhisperForConditionalGeneration(config).to(dtype)
    model.generation_config = GenerationConfig(
        max_length=32,
        is_multilingual=True,
        lang_to_id={token: ids[token] for token in ("<|en|>", "<|de|>")},
        task_to_id={task: ids[f"<|{task}|>"] for task in ("translate", "transcribe")},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        **tokens,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=3).save_pretrained(folder)
    return folder

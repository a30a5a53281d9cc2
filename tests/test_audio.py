import numpy as np
import pytest
import soundfile

from clips import ENGLISH
from fsqcodec.audio import audio_seconds, read_audio, resample, write_audio, write_audio_pieces


def _sine(sampling_rate: int, seconds: float = 0.5, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * sampling_rate)) / sampling_rate)).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_formats_are_read_and_resampled(tmp_path, suffix):
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, _sine(44100), 44100)
    audio = read_audio(path, 16000)
    assert audio.dtype == np.float32
    assert abs(len(audio) - 8000) <= 8000 * (0.1 if suffix == "mp3" else 0)
    assert audio_seconds(path) == pytest.approx(0.5, rel=0.1)
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    assert np.argmax(spectrum) * 16000 / len(audio) == pytest.approx(440, abs=3)
    assert np.abs(audio).max() == pytest.approx(0.5, abs=0.03)


def test_a_file_at_the_wanted_rate_is_read_as_it_is():
    expected, sampling_rate = soundfile.read(ENGLISH, dtype="float32")
    assert sampling_rate == 16000
    assert np.array_equal(read_audio(ENGLISH, 16000), expected)


def test_stereo_is_refused_or_mixed(tmp_path):
    path = tmp_path / "stereo.wav"
    left, right = _sine(16000), _sine(16000, hz=1000)
    soundfile.write(path, np.stack([left, right], axis=1), 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"stereo.wav has 2 channels.*--channels mix"):
        read_audio(path, 16000)
    assert np.allclose(read_audio(path, 16000, channels="mix"), (left + right) / 2)


def test_bad_files_are_named_with_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.wav is not a file"):
        read_audio(tmp_path / "no.wav", 16000)
    (tmp_path / "text.wav").write_text("hello")
    with pytest.raises(ValueError, match="text.wav is not an audio file"):
        read_audio(tmp_path / "text.wav", 16000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    with pytest.raises(ValueError, match="empty.wav is empty"):
        read_audio(tmp_path / "empty.wav", 16000)
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan, 0]), 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match="nan.wav has NaN"):
        read_audio(tmp_path / "nan.wav", 16000)
    (tmp_path / "cut.flac").write_bytes(ENGLISH.read_bytes()[:60000])
    with pytest.raises(ValueError, match="cut.flac (is truncated|can't be decoded)"):
        read_audio(tmp_path / "cut.flac", 16000)


@pytest.mark.parametrize("suffix", ["wav", "aiff", "au", "w64", "rf64", "caf", "flac", "ogg", "mp3"])
def test_a_file_that_was_cut_off_is_never_a_shorter_clip(suffix, tmp_path):
    path = tmp_path / f"clip.{suffix}"
    audio = read_audio(ENGLISH, 16000)  # of several pages, in Ogg
    soundfile.write(path, audio, 16000, format=suffix.upper())
    whole = path.read_bytes()
    assert len(read_audio(path, 16000)) >= len(audio)
    for share in (0.3, 0.67, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=f"clip.{suffix} (is truncated|is empty|can't be decoded|is not an audio)"):
            read_audio(path, 16000)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF024])
def test_a_wav_from_a_pipe_does_not_know_its_length(length, tmp_path):
    """As ffmpeg and sox write it."""
    path = tmp_path / "pipe.wav"
    soundfile.write(path, _sine(16000), 16000)
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = length.to_bytes(4, "little")
    path.write_bytes(data)
    assert len(read_audio(path, 16000)) == 8000


def test_resampling_a_single_sample_keeps_one():
    assert len(resample(np.array([0.1], dtype=np.float32), 48000, 16000)) == 1


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_written_audio_reads_back_within_16_bits(tmp_path, suffix):
    path = tmp_path / "new" / f"out.{suffix}"
    audio = _sine(24000)
    write_audio(path, audio, 24000)
    assert np.abs(read_audio(path, 24000) - audio).max() <= 1 / 32768
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_stereo_reads_back_channel_by_channel_and_mono_as_two_equal_ones(tmp_path, suffix):
    path = tmp_path / f"stereo.{suffix}"
    audio = np.stack([_sine(24000), _sine(24000)[::-1] / 2])
    write_audio(path, audio, 24000)
    assert np.abs(read_audio(path, 24000, num_channels=2) - audio).max() <= 1 / 32768
    halves = read_audio(path, 16000, num_channels=2)
    for channel, expected in zip(halves, audio):
        assert np.abs(channel - resample(expected, 24000, 16000)).max() <= 1 / 16384
    write_audio(path, audio[0], 24000)
    left, right = read_audio(path, 24000, num_channels=2)
    assert np.array_equal(left, right) and np.array_equal(left, read_audio(path, 24000))


def test_more_channels_than_stereo_are_refused_or_mixed_to_two_equal_ones(tmp_path):
    path = tmp_path / "three.wav"
    soundfile.write(path, np.stack([_sine(16000)] * 2 + [np.zeros_like(_sine(16000))], axis=1), 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match="three.wav has 3 channels, the codec is stereo"):
        read_audio(path, 16000, num_channels=2)
    left, right = read_audio(path, 16000, channels="mix", num_channels=2)
    assert np.array_equal(left, right) and np.allclose(left, _sine(16000) * 2 / 3, atol=1e-6)


def test_pieces_of_another_number_of_channels_are_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"\(2, 100\) of float64 can't be written: \(num_samples,\)"):
        write_audio_pieces(tmp_path / "out.wav", [np.zeros(100), np.zeros((2, 100))], 16000)
    assert not list(tmp_path.iterdir())


def test_audio_is_not_written_as_something_else(tmp_path):
    with pytest.raises(ValueError, match=r"written as .wav or .flac"):
        write_audio(tmp_path / "out.mp3", _sine(16000), 16000)


@pytest.mark.parametrize(
    "audio",
    [np.array([0, np.nan]), np.zeros((3, 100)), np.zeros((100, 2)), np.array(0.0), np.zeros(9, dtype=np.int16)],
    ids=["nan", "three channels", "channels last", "a number", "integers"],
)
def test_what_is_not_mono_or_stereo_float_audio_is_not_written(tmp_path, audio):
    with pytest.raises(ValueError, match="can't be written"):
        write_audio(tmp_path / "out.wav", audio, 16000)
    assert not list(tmp_path.iterdir())


def test_only_mixing_and_refusing_are_known():
    with pytest.raises(ValueError, match="channels is 'left'"):
        read_audio(ENGLISH, 16000, channels="left")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "out.wav"
    write_audio(path, _sine(16000), 16000)
    before = path.read_bytes()
    with pytest.raises(OSError, match="out.wav can't be written"):
        write_audio(path, _sine(16000), sampling_rate=-1)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]

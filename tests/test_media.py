"""Sound and video files: what goes in comes out, in step, and nothing half-written is ever left behind."""

from fractions import Fraction

import av
import numpy as np
import pytest

from aa.errors import InputError
from aa.media import VideoWriter, check_writable, load_audio, read_video, write_video

SECONDS = 1.5


def tones(rate: int, channels: int = 1) -> np.ndarray:
    """(channels, n) quiet 300 Hz tone with a loud 10 ms burst at 1 s."""
    t = np.arange(round(SECONDS * rate)) / rate
    sound = 0.1 * np.sin(2 * np.pi * 300 * t)
    burst = (t >= 1.0) & (t < 1.01)
    sound[burst] = 0.8 * np.sin(2 * np.pi * 1000 * t[burst])
    return np.repeat(sound[None], channels, 0).astype(np.float32)


def write_sound(path, kind: str, codec: str, rate: int, channels: int, sample_format: str, **stream_options):
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout, **stream_options)
        frame = av.AudioFrame.from_ndarray(tones(rate, channels), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(format=sample_format, layout=layout, rate=rate, frame_size=stream.codec_context.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def onset(sound: np.ndarray) -> float:
    """Second at which the burst begins."""
    return float(np.argmax(np.abs(sound) > 0.3)) / 16000


KINDS = {
    "speech.wav": ("wav", "pcm_s16le", 16000, 1, "s16"),
    "stereo24.wav": ("wav", "pcm_s24le", 44100, 2, "s32"),
    "float.wav": ("wav", "pcm_f32le", 48000, 2, "flt"),
    "eight_bit.wav": ("wav", "pcm_u8", 8000, 1, "u8"),
    "surround.flac": ("flac", "flac", 48000, 6, "s16"),
    "song.mp3": ("mp3", "libmp3lame", 44100, 2, "fltp"),
    "mp3_named.wav": ("mp3", "libmp3lame", 44100, 2, "fltp"),
    "phone.m4a": ("mp4", "aac", 44100, 2, "fltp"),
    "chat.ogg": ("ogg", "libopus", 48000, 1, "flt"),
}


@pytest.mark.parametrize("name", KINDS)
def test_any_sound_file_becomes_16_khz_mono(tmp_path, name):
    sound = load_audio(write_sound(tmp_path / name, *KINDS[name]))
    assert sound.dtype == np.float32
    assert sound.ndim == 1
    assert abs(len(sound) / 16000 - SECONDS) < 0.06  # mp3 may keep its last padding
    assert abs(onset(sound) - 1.0) < 0.01
    assert 0.4 < np.abs(sound).max() <= 1.0


def test_channels_that_cancel_out_are_still_heard(tmp_path):
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=16000, layout="stereo")
        both = tones(16000, 2) * np.array([[1], [-1]], np.float32)
        frame = av.AudioFrame.from_ndarray(both.T.reshape(1, -1).copy(), format="flt", layout="stereo")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
    assert np.abs(load_audio(tmp_path / "a.wav")).max() > 0.7


def test_bad_sound_files_get_one_clear_sentence(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.mp3").write_text("no sound here" * 1000)
    write_video(tmp_path / "mute.mp4", np.zeros((10, 16, 16, 3), np.uint8))
    write_video(tmp_path / "short.mp4", np.zeros((10, 16, 16, 3), np.uint8), np.zeros(1600, np.float32))
    cases = {
        "gone.wav": "not exist",
        "": "folder",
        "empty.wav": "empty",
        "text.mp3": "no sound|cannot be read",
        "mute.mp4": "no sound",
        "short.mp4": "too short",
    }
    for name, words in cases.items():
        with pytest.raises(InputError, match=words) as caught:
            load_audio(tmp_path / name)
        assert "\n" not in str(caught.value)


def picture(t: int, height=48, width=64) -> np.ndarray:
    """A red ground with a white square that moves, so that order and colour can be checked."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[:] = (200, 40, 60)
    frame[8:24, 2 * t : 2 * t + 16] = 255
    return frame


def test_video_round_trip_keeps_count_colour_and_codecs(tmp_path):
    frames = np.stack([picture(t) for t in range(20)])
    sound = tones(16000)[0][: 20 * 640]
    path = write_video(tmp_path / "a.mp4", frames, sound, title="hello")
    read, fps, heard = read_video(path)
    assert (read.shape, fps) == (frames.shape, 25.0)
    assert np.abs(read.astype(int) - frames).mean() < 4
    assert np.abs(read[:, 40:, :].astype(int) - (200, 40, 60)).mean() < 4  # BT.709 both ways
    assert len(heard) == len(sound)
    assert np.corrcoef(heard, sound)[0, 1] > 0.99
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt, audio.codec_context.name) == (
            "h264",
            "yuv420p",
            "aac",
        )
        assert "synthetic" in container.metadata["comment"]
        assert "synthetic" in container.metadata["description"]
        assert container.metadata["title"] == "hello"
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # the index comes first: plays while it loads
    assert read_video(path, max_frames=5)[0].shape[0] == 5


@pytest.mark.parametrize("fps", [25, 30, 30000 / 1001])
def test_flash_and_click_stay_together(tmp_path, fps):
    times = np.arange(int(4 * fps)) / fps
    flash = np.argmax(times >= 3.0)
    frames = (np.full((32, 32, 3), 255 * (i == flash), np.uint8) for i in range(len(times)))
    sound = np.zeros(4 * 16000, np.float32)
    k = round(times[flash] * 16000)
    sound[k : k + 32] = 0.9
    read, rate, heard = read_video(write_video(tmp_path / "a.mp4", frames, sound, fps=fps))
    assert len(read) == len(times)
    assert np.argmax(read.mean(axis=(1, 2, 3))) == flash
    assert abs(rate - fps) < 1e-3
    assert abs(np.argmax(np.abs(heard) > 0.2) - k) < 0.003 * 16000


def test_other_frame_rates_can_be_brought_to_25(tmp_path):
    frames = [np.full((32, 32, 3), 4 * i, np.uint8) for i in range(60)]
    read, fps, _ = read_video(write_video(tmp_path / "a.mp4", frames, fps=30), fps=25)
    assert (len(read), fps) == (50, 25.0)
    shown = read.mean(axis=(1, 2, 3)) / 4
    assert np.abs(shown - np.arange(50) * 30 / 25).max() < 1.2


def test_sideways_phone_video_is_turned(tmp_path):
    frames = np.zeros((3, 32, 64, 3), np.uint8)
    frames[:, :, :16] = 255  # a bar on the left
    path = write_video(tmp_path / "a.mp4", frames)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # 3x3 display matrix, 16.16 and 2.30 fixed point: quarter turn clockwise
    quarter = [0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30]
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in quarter)
    path.write_bytes(data)
    read, *_ = read_video(path)
    assert read.shape == (3, 64, 32, 3)
    assert read[0, :10].mean() > 240  # the left bar is on top now
    assert read[0, 30:].mean() < 10


def test_odd_sizes_are_extended(tmp_path):
    frames = np.stack([picture(t, 47, 63) for t in range(4)])
    read, *_ = read_video(write_video(tmp_path / "a.mp4", frames))
    assert read.shape == (4, 48, 64, 3)
    assert np.abs(read[:, :47, :63].astype(int) - frames).mean() < 4


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_a_failure(tmp_path, failure):
    (tmp_path / "a.mp4").write_bytes(b"an older film")

    def frames():
        yield picture(0)
        yield picture(1)
        raise failure("stop")

    with pytest.raises(failure):
        write_video(tmp_path / "a.mp4", frames(), np.zeros(3200, np.float32))
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"an older film"


def test_bad_videos_to_write(tmp_path):
    with pytest.raises(InputError, match="no frame"):
        write_video(tmp_path / "a.mp4", [])
    with pytest.raises(InputError, match="one size"):
        write_video(tmp_path / "a.mp4", [picture(0), picture(0, 32, 32)])
    with pytest.raises(InputError, match="uint8"):
        write_video(tmp_path / "a.mp4", [picture(0).astype(float)])
    with pytest.raises(InputError, match="mp4"):
        VideoWriter(tmp_path / "a.avi")
    assert list(tmp_path.iterdir()) == []


def test_check_writable(tmp_path):
    assert check_writable(tmp_path / "a.mp4") == tmp_path / "a.mp4"
    with pytest.raises(InputError, match="folder"):
        check_writable(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        check_writable(tmp_path / "nowhere" / "a.mp4")
    assert list(tmp_path.iterdir()) == []

"""Sound and video files in and out, through PyAV.

Sound is mono float32 at 16 kHz in [-1, 1]; frames are (H, W, 3) uint8 RGB. Second 0 of the sound is the first frame.
Files are written under a temporary name in the same folder and moved into place, so a path never holds half a file.
"""

import json
import os
import secrets
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from safetensors.numpy import save_file

from aa.errors import InputError

SAMPLE_RATE = 16000
FPS = 25
MIN_SECONDS = 0.2
SYNTHETIC = "synthetic video, computed from one picture and speech by AudioAvatar (aa): not a recording of a real event"
SOUND_KINDS = "wav, mp3, m4a, flac, ogg or a video with sound"


# ---------------------------------------------------------------- files


@contextmanager
def replacing(path) -> Iterator[Path]:
    """A temporary path beside `path`: moved onto it when the block ends well, deleted on any failure or interrupt."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_writable(path) -> Path:
    """Make sure, before any work, that a file can be written at `path`; InputError otherwise."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file to write.")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist: make it first or choose another place for {path.name}.")
    probe = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:  # os.access is wrong for root, network drives and Windows: only trying tells
        probe.touch()
    except OSError as error:
        raise InputError(f"cannot write into {path.parent} ({error.strerror}): choose another place for {path.name}.") from error
    finally:
        probe.unlink(missing_ok=True)
    return path


def save_json(path, value) -> None:
    """Write `value` as json in one step (see `replacing`)."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def save_arrays(path, arrays: dict[str, np.ndarray]) -> None:
    """Write a dictionary of arrays as safetensors in one step."""
    with replacing(path) as part:
        save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, part)


# ---------------------------------------------------------------- reading


@contextmanager
def _opened(path) -> Iterator[av.container.InputContainer]:
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist: check the name of the file.")
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a file.")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty: it holds no data at all.")
        container = av.open(str(path), metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{path} cannot be read as sound or video ({error.strerror}).") from error
    with container:
        yield container


def _decode(container, stream) -> Iterator:
    """Frames of a stream; like a player it passes over damaged packets, but it says so."""
    damaged = 0
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            damaged += 1
    if damaged:
        warnings.warn(f"{container.name}: {damaged} damaged packets were left out", stacklevel=2)


def _picture_stream(container):
    """The video stream, or None; the cover picture of a music file is not a video."""
    attached = av.stream.Disposition.attached_pic
    return next((s for s in container.streams.video if not s.disposition & attached), None)


def _mono(parts: list[np.ndarray]) -> np.ndarray:
    """Chunks (C, n) of one or two channels -> (n,) in [-1, 1]: the mean, or the left one where the two cancel out."""
    if not parts:
        return np.zeros(0, np.float32)
    sound = np.nan_to_num(np.concatenate(parts, axis=1), nan=0.0, posinf=0.0, neginf=0.0)
    mono = sound.mean(axis=0)
    if len(sound) == 2 and np.square(mono).sum() < 0.01 * np.square(sound[0]).sum():  # right = -left
        mono = sound[0]
    return (mono / max(1.0, float(np.abs(mono).max(initial=0)))).astype(np.float32)


def _read_sound(path) -> np.ndarray | None:
    """(n,) 16 kHz sound of a file, time 0 at its first video frame if it has a video; None without a sound stream."""
    with _opened(path) as container:
        if not container.streams.audio:
            return None
        stream, video = container.streams.audio[0], _picture_stream(container)
        layout = "mono" if stream.channels == 1 else "stereo"  # more than two: FFmpeg's own downmix to two
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=SAMPLE_RATE)
        parts, start = [], None
        for frame in _decode(container, stream):
            start = frame.time if start is None else start
            parts += [out.to_ndarray() for out in resampler.resample(frame)]
        if start is not None:
            parts += [out.to_ndarray() for out in resampler.resample(None)]
        sound = _mono(parts)
        # the last packet of a codec is filled up with zeros: cut where an mp4 says that the sound ends
        if "mp4" in container.format.name and stream.duration:
            length = round(float(stream.duration * stream.time_base) * SAMPLE_RATE)
            sound = sound[:length] if 0 <= len(sound) - length < 0.2 * SAMPLE_RATE else sound
        if video is None or start is None or video.start_time is None:
            return sound
        late = round((start - float(video.start_time * video.time_base)) * SAMPLE_RATE)
        return np.pad(sound, (late, 0)) if 0 < late < 60 * SAMPLE_RATE else sound[max(0, -late) if late < 0 else 0 :]


def load_audio(path) -> np.ndarray:
    """Any sound file, or a video with sound -> (n,) float32 mono at 16 kHz in [-1, 1].

    Raises InputError: no such file, not readable, no sound in it, or shorter than 0.2 s.
    """
    sound = _read_sound(path)
    if sound is None:
        raise InputError(f"{path} has no sound in it: give {SOUND_KINDS}.")
    if len(sound) == 0:
        raise InputError(f"no sound could be read from {path}, it may be damaged: give {SOUND_KINDS}.")
    if len(sound) < MIN_SECONDS * SAMPLE_RATE:
        raise InputError(f"{path} lasts {len(sound) / SAMPLE_RATE:.2f} s, which is too short: give {MIN_SECONDS} s or more.")
    return sound


def iter_video(path, fps: float | None = None) -> Iterator[tuple[np.ndarray, float]]:
    """(frame (H, W, 3) uint8, fps) one by one, upright, on an even time grid: frames are repeated or dropped as needed.

    `fps=None` keeps the file's own mean rate; a phone's uneven rate or another target (25) both go through the grid.
    """
    with _opened(path) as container:
        stream = _picture_stream(container)
        if stream is None:
            raise InputError(f"{path} has no video in it: give a video file such as mp4, mov or webm.")
        stream.thread_type = "AUTO"
        rate = Fraction(fps or stream.average_rate or stream.guessed_rate or FPS).limit_denominator(1001 * 60)
        held, first, count = None, None, 0
        for number, frame in enumerate(_decode(container, stream)):
            time = frame.time if frame.time is not None else number / float(rate)
            first = time if first is None else first
            slot = round((time - first) * float(rate))
            for _ in range(count, min(slot, count + 10 * int(rate + 1))):  # at most a ten-second hole
                yield held, float(rate)
            count = max(count, slot)
            if slot == count:
                held, count = _upright(frame), count + 1
                yield held, float(rate)


def _upright(frame) -> np.ndarray:
    """(H, W, 3) uint8 of a decoded frame, turned as its display matrix asks (phones film sideways)."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))


def read_video(path, max_frames: int | None = None, fps: float | None = None):
    """-> frames (T, H, W, 3) uint8, fps, sound (n,) float32 16 kHz cut to the frames read, or None without sound."""
    frames, rate = [], float(fps or FPS)
    for frame, rate in iter_video(path, fps):  # noqa: B007 - the rate is wanted afterwards
        frames.append(frame)
        if max_frames is not None and len(frames) >= max_frames:
            break
    if not frames:
        raise InputError(f"no frame could be read from {path}: the file may be damaged.")
    sound = _read_sound(path)
    if sound is not None and max_frames is not None:
        sound = sound[: round(len(frames) / rate * SAMPLE_RATE)]
    return np.stack(frames), rate, sound if sound is not None and len(sound) else None


# ---------------------------------------------------------------- writing


class VideoWriter:
    """Streams frames into an mp4 (H.264 yuv420p + AAC, index at the front), marked as synthetic in its metadata.

    Use as `with VideoWriter(path, audio) as video: video.write(frame)`. The file appears under its name only when the
    block ends well; on any failure or interrupt nothing is left. An odd width or height is extended by repeating the
    last column or row. Memory is constant: sound goes out along with the frames.
    """

    def __init__(
        self, path, audio: np.ndarray | None = None, fps: float = FPS, title: str | None = None, crf: int = 18, threads: int = 0
    ):  # fmt: skip
        """threads of the encoder, 0: its own choice; the bytes depend on it."""
        self.path = check_writable(path)
        if self.path.suffix.lower() != ".mp4":
            raise InputError(f"{self.path.name} does not end in .mp4: videos are written as mp4 only.")
        self.audio = None if audio is None else np.asarray(audio, np.float32)
        if self.audio is not None and (self.audio.ndim != 1 or not np.isfinite(self.audio).all()):
            raise InputError(f"sound must be finite mono samples (n,) at 16 kHz, got shape {self.audio.shape}.")
        self.rate, self.title, self.crf, self.threads = Fraction(fps).limit_denominator(1001 * 60), title, crf, threads
        self.count, self.samples, self.size = 0, 0, None
        self._container = None

    def __enter__(self) -> "VideoWriter":
        self._part = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.part")
        return self

    def write(self, frame) -> None:
        """Append one (H, W, 3) uint8 RGB frame; all frames have the size of the first."""
        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise InputError(f"a frame must be (H, W, 3) uint8, got {frame.shape} {frame.dtype}.")
        if self.size not in (None, frame.shape):
            raise InputError(f"all frames must have one size: the first is {self.size}, number {self.count} is {frame.shape}.")
        with self._user_errors():
            if self._container is None:
                self._open(frame.shape)
            even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
            picture = av.VideoFrame.from_ndarray(even, format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709")
            picture.pts, picture.time_base = self.count, 1 / self.rate
            self._container.mux(self._video.encode(picture))
            self.count += 1
            self._write_sound(int(self.count / self.rate * SAMPLE_RATE))

    def _open(self, shape) -> None:
        self.size = shape
        self._container = av.open(str(self._part), "w", format="mp4", options={"movflags": "faststart"})
        words = {"comment": SYNTHETIC, "description": SYNTHETIC, "title": self.title}
        self._container.metadata.update({key: value for key, value in words.items() if value})
        options = {"crf": str(self.crf), "preset": "veryfast"}
        if shape[0] % 16 or shape[1] % 16:  # x264's macroblock tree then reads undefined memory: no two files were the same
            options["x264-params"] = "mbtree=0"
        self._video = self._container.add_stream("libx264", rate=self.rate, options=options)
        self._video.height, self._video.width, self._video.pix_fmt = (
            shape[0] + shape[0] % 2,
            shape[1] + shape[1] % 2,
            "yuv420p",
        )
        context = self._video.codec_context
        context.thread_count = self.threads
        # BT.709, limited range, said in the file: without it players guess from the size and the skin changes colour
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
        if self.audio is not None:
            self._sound = self._container.add_stream("aac", rate=SAMPLE_RATE, bit_rate=96000, layout="mono")

    def _write_sound(self, until: int) -> None:
        """Encode the sound up to sample `until`. The muxer's edit list hides AAC's priming: sample k plays at k."""
        if self.audio is None:
            return
        block = self.audio[self.samples : until]
        if len(block):
            frame = av.AudioFrame.from_ndarray(block[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, self.samples, Fraction(1, SAMPLE_RATE)
            self._container.mux(self._sound.encode(frame))
            self.samples += len(block)

    def _finish(self) -> None:
        if self._container is None:
            raise InputError(f"there is no frame to write into {self.path}.")
        with self._user_errors():
            self._write_sound(len(self.audio) if self.audio is not None else 0)
            self._container.mux(self._video.encode())
            if self.audio is not None and len(self.audio):
                self._container.mux(self._sound.encode())
            self._container.close()

    @contextmanager
    def _user_errors(self):
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"{self.path} could not be written ({error.strerror}).") from error

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self._finish()
                os.replace(self._part, self.path)
        finally:
            if self._container is not None:
                with suppress(av.FFmpegError, OSError):  # closed already, or the first error is the one to report
                    self._container.close()
            self._part.unlink(missing_ok=True)


def write_video(
    path, frames: Iterable[np.ndarray], audio=None, fps: float = FPS, title: str | None = None, crf: int = 18, threads: int = 0
) -> Path:
    """Write (H, W, 3) uint8 frames and sound (n,) float32 16 kHz (or None) as an mp4: see `VideoWriter`."""
    with VideoWriter(path, audio, fps, title, crf, threads) as video:
        for frame in frames:
            video.write(frame)
    return video.path

"""`Clip`: a piece of training footage with its annotations (3.3), kept as mp4 + safetensors + json.

The reading and writing of sound and video files is in `aa.media`; its names can be imported from here as well.
"""

import errno
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from aa.errors import InputError
from aa.media import (
    FPS,
    SAMPLE_RATE,
    VideoWriter,
    check_writable,
    iter_video,
    load_audio,
    read_video,
    replacing,
    save_arrays,
    save_json,
    write_video,
)

__all__ = [
    "FPS",
    "LABELS",
    "SAMPLE_RATE",
    "Clip",
    "VideoWriter",
    "check_writable",
    "iter_video",
    "load_audio",
    "read_video",
    "replacing",
    "save_arrays",
    "save_json",
    "write_video",
]

LABELS = ("background", "body", "face", "hand", "hair", "clothes")  # what a part map's numbers mean
SHAPES = {
    "frames": "THW3", "mask": "THW", "part": "THW", "depth": "THW", "tracks": "PT2", "visibility": "PT", "particle": "P",
    "K": "33", "viewmat": "44", "landmarks": "TL2",
}  # fmt: skip
PACKED = ("mask", "visibility", "part", "depth")  # kept compressed
PLAIN = ("K", "viewmat", "tracks", "particle", "audio", "landmarks")
FILES = ("clip.mp4", "arrays.safetensors")


class DiskFull(InputError):
    """No room is left for a file."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full disk (or quota)."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error):
            return True
        error = error.__cause__
    return False


def pack(array: np.ndarray) -> np.ndarray:
    """Boolean, uint8 or uint16 array -> compressed bytes (n,) uint8; `unpack` needs shape and type back."""
    if array.dtype == bool:
        return np.frombuffer(zlib.compress(np.packbits(array), 6), np.uint8)
    if array.dtype == np.uint16:  # differences along the last axis, low bytes apart from high ones
        array = np.diff(array, axis=-1, prepend=np.uint16(0)).view(np.uint8).reshape(-1, 2).T
    return np.frombuffer(zlib.compress(np.ascontiguousarray(array), 3), np.uint8)


def unpack(packed: np.ndarray, shape, dtype) -> np.ndarray:
    """Inverse of `pack`."""
    data = np.frombuffer(zlib.decompress(packed.tobytes()), np.uint8)
    if dtype is bool:
        return np.unpackbits(data, count=int(np.prod(shape))).astype(bool).reshape(shape)
    if dtype is np.uint16:
        steps = np.ascontiguousarray(data.reshape(2, -1).T).view(np.uint16).reshape(shape)
        return np.cumsum(steps, axis=-1, dtype=np.uint16)
    return data.reshape(shape).copy()


@dataclass(frozen=True)
class Clip:
    """A piece of footage with what is known about it; unknown parts are None.

    P tracks over T frames: `tracks[p, t]` is where particle `particle[p]` is seen in frame t, pixel centres at +0.5. Tracks of
    footage from elsewhere belong to no particle yet: `particle` is None until `aa.own_video.bind` ties them to an avatar.
    """

    frames: np.ndarray | None = None  # (T, H, W, 3) uint8 RGB; None when only `video` is held
    video: Path | None = None  # mp4 with the frames, read by `load_frames`
    fps: float = FPS
    K: np.ndarray | None = None  # (3, 3) intrinsics, pixels
    viewmat: np.ndarray | None = None  # (4, 4) world -> camera, OpenCV axes
    mask: np.ndarray | None = None  # (T, H, W) bool, the person
    tracks: np.ndarray | None = None  # (P, T, 2) pixels
    visibility: np.ndarray | None = None  # (P, T) bool
    particle: np.ndarray | None = None  # (P,) int64 rows of the particle layout
    audio: np.ndarray | None = None  # (n,) float32, 16 kHz
    phonemes: list = field(default_factory=list)  # (symbol, start s, end s)
    source: str = ""  # studio-hq, studio-sync, wan, own, ...
    part: np.ndarray | None = None  # (T, H, W) uint8 index into LABELS
    depth: np.ndarray | None = None  # (T, H, W) uint16 in steps of `depth_step` along the camera's axis, 0 where nobody is
    depth_step: float = 1e-4  # m
    words: list = field(default_factory=list)  # (word, start s, end s)
    seeds: dict = field(default_factory=dict)  # what it was made from: identity, performance, artefacts, ...
    landmarks: np.ndarray | None = None  # (T, 478, 2) pixels of MediaPipe's face landmarks, nan where no face was found

    def __post_init__(self):
        """ValueError when two parts disagree about T, P or the picture's size."""
        sizes = {}
        for name, letters in SHAPES.items():
            value = getattr(self, name)
            if value is None:
                continue
            if len(value.shape) != len(letters):
                raise ValueError(f"{name} must have {len(letters)} dimensions ({letters}), got {tuple(value.shape)}")
            for letter, size in zip(letters, value.shape):
                wanted = int(letter) if letter.isdigit() else sizes.setdefault(letter, size)
                if size != wanted:
                    raise ValueError(f"{name} is {tuple(value.shape)}: its {letter} must be {wanted}")

    def load_frames(self) -> np.ndarray:
        """(T, H, W, 3) uint8, decoded from `video` if they are not in memory."""
        if self.frames is not None:
            return self.frames
        if self.video is None:
            raise ValueError("this clip holds neither frames nor a video")
        frames = read_video(self.video)[0]
        shape = next((a.shape for a in (self.mask, self.part, self.depth) if a is not None), frames.shape)
        return frames[:, : shape[1], : shape[2]]  # without the column or row that made an odd size even

    def metres(self, t: int | slice = slice(None)) -> np.ndarray:
        """Depth (..., H, W) float32 in metres of frame t (or all), nan where nobody is."""
        if self.depth is None:
            raise ValueError("this clip holds no depth")
        return np.where(self.depth[t] > 0, self.depth[t] * np.float32(self.depth_step), np.nan).astype(np.float32)

    def save(self, folder, crf: int = 12) -> Path:
        """Write clip.mp4 (visually lossless at crf 12), arrays.safetensors and clip.json; `folder` appears, or is replaced, whole.

        The same clip gives the same bytes. Raises InputError when the place cannot be written, `DiskFull` on a full disk.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file: give the name of a folder for the clip.")
        if folder.is_dir() and any(p.name not in (*FILES, "clip.json") for p in folder.iterdir()):
            raise InputError(f"{folder} holds other files than a clip's: give a new folder, which will be replaced whole.")
        part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
        try:
            part.mkdir(parents=True)
            self._write(part, crf)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(part, folder)
        except (OSError, SafetensorError, InputError) as error:
            if is_disk_full(error):
                raise DiskFull(f"the disk is full: {folder} could not be written; make room and try again.") from error
            if isinstance(error, OSError):
                raise InputError(f"cannot write {folder} ({error.strerror}): choose another place for the clip.") from error
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return folder

    def _write(self, folder: Path, crf: int) -> None:
        frames = self.load_frames()
        write_video(folder / "clip.mp4", frames, self.audio, self.fps, self.source or None, crf, threads=1)
        arrays = {n: getattr(self, n) for n in PLAIN if getattr(self, n) is not None}
        packed = {n: getattr(self, n) for n in PACKED if getattr(self, n) is not None}
        save_arrays(folder / "arrays.safetensors", arrays | {n: pack(a) for n, a in packed.items()})
        facts = {"fps": self.fps, "source": self.source, "depth_step": self.depth_step, "seeds": self.seeds}
        facts["shapes"] = {n: a.shape for n, a in packed.items()} | {"frames": frames.shape}
        facts |= {"phonemes": self.phonemes, "words": self.words, "crc32": {n: checksum(folder / n) for n in FILES}}
        save_json(folder / "clip.json", facts)

    @classmethod
    def load(cls, folder, frames: bool = True, only: Iterable[str] | None = None) -> "Clip":
        """Read a saved clip.

        Args: frames: False leaves the pictures on disk until `load_frames`; only: names of the arrays to read (("tracks",
            "visibility"), say; () for none), all by default.
        Raises: InputError when there is no clip or it is damaged.
        """
        folder, facts = Path(folder), read_facts(folder)
        shapes, arrays = facts["shapes"], {}
        wanted = (*PLAIN, *PACKED) if only is None else tuple(only)
        if unknown := set(wanted) - {*PLAIN, *PACKED}:
            raise ValueError(f"a clip has no arrays {sorted(unknown)}: choose from {(*PLAIN, *PACKED)}")
        try:
            with safe_open(folder / "arrays.safetensors", "np") as file:
                arrays = {n: file.get_tensor(n) for n in set(wanted) & set(file.keys())}
            for n in set(PACKED) & set(arrays):
                dtype = {"mask": bool, "visibility": bool, "part": np.uint8, "depth": np.uint16}[n]
                arrays[n] = unpack(arrays[n], shapes[n], dtype)
        except (OSError, SafetensorError, ValueError, KeyError, zlib.error) as error:
            raise InputError(f"the clip in {folder} is damaged ({error}): make it anew.") from error
        height, width = shapes["frames"][1:3]  # without the column or row that made an odd size even
        pictures = read_video(folder / "clip.mp4")[0][:, :height, :width] if frames else None
        timed = {n: [tuple(x) for x in facts.get(n, [])] for n in ("phonemes", "words")}
        known = {n: facts[n] for n in ("fps", "source", "depth_step", "seeds") if n in facts}
        return cls(pictures, folder / "clip.mp4", **known, **timed, **arrays)

    @classmethod
    def from_video(cls, path, **settings) -> "Clip":
        """A user's own talking video as a clip (source "own"): see `aa.own_video.clip_from_video`."""
        from aa.own_video import clip_from_video

        return clip_from_video(path, **settings)


def checksum(path) -> int:
    """CRC-32 of a file."""
    with open(path, "rb") as file:
        value = 0
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def read_facts(folder) -> dict:
    """What clip.json says; InputError when it is not there or cannot be read."""
    try:
        return json.loads((Path(folder) / "clip.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no clip: give a folder with clip.mp4, arrays.safetensors and clip.json.") from error
    except ValueError as error:
        raise InputError(f"the clip in {folder} is damaged (clip.json): make it anew.") from error


def intact(folder) -> bool:
    """Whether `folder` holds a whole clip: all files there, with the content that was written."""
    try:
        crc = read_facts(folder)["crc32"]
        return all(checksum(Path(folder) / name) == crc[name] for name in FILES)
    except (InputError, OSError, KeyError, TypeError):
        return False

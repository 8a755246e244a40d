"""`Clip`: a piece of training footage with its annotations (3.3), kept as mp4 + safetensors + json.

The reading and writing of sound and video files is in `aa.media`; its names can be imported from here as well.
"""

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

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


def pack_mask(mask: np.ndarray) -> np.ndarray:
    """Boolean array -> compressed bytes (n,) uint8; `unpack_mask` needs the shape back."""
    return np.frombuffer(zlib.compress(np.packbits(mask), 6), np.uint8)


def unpack_mask(packed: np.ndarray, shape) -> np.ndarray:
    """Inverse of `pack_mask`."""
    bits = np.frombuffer(zlib.decompress(packed.tobytes()), np.uint8)
    return np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)


@dataclass(frozen=True)
class Clip:
    """A piece of footage with what is known about it; unknown parts are None.

    P tracks over T frames: `tracks[p, t]` is where particle `particle[p]` is seen in frame t, pixel centres at +0.5.
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

    def __post_init__(self):
        """ValueError when two parts disagree about T, P or the picture's size."""
        sizes = {}
        shapes = {
            "frames": "THW3",
            "mask": "THW",
            "tracks": "PT2",
            "visibility": "PT",
            "particle": "P",
            "K": "33",
            "viewmat": "44",
        }
        for name, letters in shapes.items():
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
        return read_video(self.video)[0]

    def save(self, folder, crf: int = 12) -> Path:
        """Write clip.mp4 (visually lossless at crf 12), arrays.safetensors and, last, clip.json into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        frames = self.load_frames()
        write_video(folder / "clip.mp4", frames, self.audio, self.fps, self.source or None, crf)
        arrays = {n: getattr(self, n) for n in ("K", "viewmat", "tracks", "particle", "audio") if getattr(self, n) is not None}
        masks = {n: getattr(self, n) for n in ("mask", "visibility") if getattr(self, n) is not None}
        save_arrays(folder / "arrays.safetensors", arrays | {n: pack_mask(m) for n, m in masks.items()})
        shapes = {n: m.shape for n, m in masks.items()} | {"frames": frames.shape}
        save_json(folder / "clip.json", {"fps": self.fps, "source": self.source, "shapes": shapes, "phonemes": self.phonemes})
        return folder

    @classmethod
    def load(cls, folder, frames: bool = True) -> "Clip":
        """Read a saved clip; `frames=False` leaves the pictures on disk until `load_frames`."""
        folder = Path(folder)
        if not (folder / "clip.json").is_file():
            raise InputError(f"{folder} holds no clip: give a folder with clip.mp4, arrays.safetensors and clip.json.")
        facts = json.loads((folder / "clip.json").read_text(encoding="utf-8"))
        shapes, arrays = facts["shapes"], load_file(folder / "arrays.safetensors")
        arrays |= {n: unpack_mask(arrays[n], shapes[n]) for n in ("mask", "visibility") if n in arrays}
        height, width = shapes["frames"][1:3]  # without the column or row that made an odd size even
        pictures = read_video(folder / "clip.mp4")[0][:, :height, :width] if frames else None
        phonemes = [(symbol, start, end) for symbol, start, end in facts["phonemes"]]
        return cls(pictures, folder / "clip.mp4", facts["fps"], phonemes=phonemes, source=facts["source"], **arrays)

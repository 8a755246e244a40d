"""Clips: what is saved comes back."""

import numpy as np
import pytest

from aa.clips import Clip
from aa.errors import InputError


def picture(t: int, height=48, width=64) -> np.ndarray:
    """A red ground with a white square that moves, so that order and colour can be checked."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[:] = (200, 40, 60)
    frame[8:24, 2 * t : 2 * t + 16] = 255
    return frame


def make_clip(frames: int = 6, points: int = 5) -> Clip:
    rng = np.random.default_rng(0)
    return Clip(
        frames=np.stack([picture(t, 47, 64) for t in range(frames)]),
        K=np.eye(3, dtype=np.float32),
        viewmat=np.eye(4, dtype=np.float32),
        mask=rng.random((frames, 47, 64)) > 0.5,
        tracks=rng.random((points, frames, 2)).astype(np.float32),
        visibility=rng.random((points, frames)) > 0.5,
        particle=np.arange(points),
        audio=0.1 * rng.standard_normal(frames * 640).astype(np.float32),
        phonemes=[("ə", 0.0, 0.1), ("tʃ", 0.1, 0.24)],
        source="studio-hq",
    )


def test_clip_round_trip(tmp_path):
    clip = make_clip()
    clip.save(tmp_path / "clip")
    for back in (Clip.load(tmp_path / "clip"), Clip.load(tmp_path / "clip", frames=False)):
        for name in ("K", "viewmat", "mask", "tracks", "visibility", "particle", "audio"):
            np.testing.assert_array_equal(getattr(back, name), getattr(clip, name))
        assert (back.phonemes, back.source, back.fps) == (clip.phonemes, clip.source, clip.fps)
    lazy = Clip.load(tmp_path / "clip", frames=False)
    assert lazy.frames is None
    assert lazy.load_frames().shape[0] == 6
    assert Clip.load(tmp_path / "clip").frames.shape == clip.frames.shape
    assert sorted(p.name for p in (tmp_path / "clip").iterdir()) == ["arrays.safetensors", "clip.json", "clip.mp4"]
    with pytest.raises(InputError):
        Clip.load(tmp_path)


def test_parts_of_a_clip_must_agree():
    clip = make_clip()
    with pytest.raises(ValueError, match="mask"):
        Clip(frames=clip.frames, mask=clip.mask[:3])

"""Clips: what is saved comes back."""

import errno
from dataclasses import replace

import numpy as np
import pytest

import aa.clips
from aa.clips import Clip, DiskFull, intact
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


def test_maps_words_and_seeds_come_back(tmp_path):
    rng = np.random.default_rng(1)
    clip = replace(
        make_clip(), part=rng.integers(0, 6, (6, 47, 64), np.uint8), depth=rng.integers(0, 65536, (6, 47, 64)).astype(np.uint16),
        depth_step=2e-4, words=[("hello", 0.0, 0.2)], seeds={"identity": 3}, landmarks=rng.random((6, 478, 2)).astype(np.float32),
    )  # fmt: skip
    back = Clip.load(clip.save(tmp_path / "a"), frames=False)
    for name in ("part", "depth", "landmarks", "mask"):
        np.testing.assert_array_equal(getattr(back, name), getattr(clip, name))
        assert getattr(back, name).dtype == getattr(clip, name).dtype
    assert (back.words, back.seeds, back.depth_step) == (clip.words, clip.seeds, clip.depth_step)
    assert back.load_frames().shape == clip.frames.shape
    metres = back.metres(2)
    assert metres[clip.depth[2] > 0] == pytest.approx(2e-4 * clip.depth[2][clip.depth[2] > 0])
    assert np.isnan(metres[clip.depth[2] == 0]).all()
    part = Clip.load(tmp_path / "a", frames=False, only=("tracks",))
    assert part.mask is None
    np.testing.assert_array_equal(part.tracks, clip.tracks)


def test_a_clip_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    clip, folder = make_clip(), tmp_path / "a"
    clip.save(folder)
    assert intact(folder)
    first = (folder / "clip.mp4").read_bytes()
    clip.save(tmp_path / "b")
    assert (tmp_path / "b" / "clip.mp4").read_bytes() == first
    assert (tmp_path / "b" / "arrays.safetensors").read_bytes() == (folder / "arrays.safetensors").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(aa.clips, "save_arrays", full)
    with pytest.raises(DiskFull, match="the disk is full"):
        replace(clip, frames=clip.frames[::-1]).save(folder)
    assert intact(folder)  # the older clip is still there
    assert (folder / "clip.mp4").read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    data = bytearray((folder / "arrays.safetensors").read_bytes())
    data[len(data) // 2] ^= 255
    (folder / "arrays.safetensors").write_bytes(data)
    assert not intact(folder)
    (folder / "arrays.safetensors").write_bytes(data[:100])
    with pytest.raises(InputError, match="damaged"):
        Clip.load(folder)
    (tmp_path / "b" / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="other files"):
        clip.save(tmp_path / "b")


def test_parts_of_a_clip_must_agree():
    clip = make_clip()
    with pytest.raises(ValueError, match="mask"):
        Clip(frames=clip.frames, mask=clip.mask[:3])

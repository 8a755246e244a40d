"""A user's own video as a clip: 25 fps, tracks that follow the picture, and one clear sentence for what cannot be used."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from aa.clips import Clip
from aa.errors import InputError
from aa.flow import fill, flow_tracks
from aa.media import write_video
from aa.own_video import bind, clean_background, clip_from_video, find_cuts, read_frames, segment

PORTRAITS = Path(__file__).resolve().parent.parent / "assets" / "portraits"


def texture(height=120, width=160) -> np.ndarray:
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.random((height + 80, width + 80, 3)).astype(np.float32), (0, 0), 1.5)
    return (255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)


def moving(frames=30, step=0.7) -> tuple[np.ndarray, np.ndarray]:
    """A texture that moves right and turns a little: frames and, for points of frame 0, where they are."""
    picture, out, maps = texture(), [], []
    for t in range(frames):
        m = cv2.getRotationMatrix2D((80, 60), 0.3 * t, 1.0)
        m[:, 2] += (step * t - 20, -20)
        out.append(cv2.warpAffine(picture, m, (160, 120), flags=cv2.INTER_CUBIC))
        maps.append(m)
    start = np.vstack([maps[0], [0, 0, 1]])
    return np.stack(out), np.stack([(np.vstack([m, [0, 0, 1]]) @ np.linalg.inv(start))[:2] for m in maps])


def test_tracks_follow_a_moving_texture():
    frames, maps = moving()
    points = np.random.default_rng(1).uniform((20, 20), (110, 100), (80, 2)).astype(np.float32)
    tracks, seen = flow_tracks(frames, np.ones(frames.shape[:3], bool), points=points)
    centre = points - 0.5  # warpAffine counts pixel centres at whole numbers
    truth = np.stack([centre @ m[:, :2].T + m[:, 2] + 0.5 for m in maps], 1)
    error = np.linalg.norm(tracks - truth, axis=2)
    assert seen[:, -1].mean() > 0.9
    assert np.median(error[:, 10][seen[:, 10]]) < 0.2
    assert np.median(error[:, -1][seen[:, -1]]) < 0.4


def test_tracks_end_where_points_vanish_and_new_ones_start():
    frames, _ = moving(20, 0.0)
    frames[10:, :, 80:] = 128  # a curtain falls
    tracks, seen = flow_tracks(frames, np.ones(frames.shape[:3], bool), spacing=10)
    right = tracks[:, 0, 0] > 90
    assert seen[right & seen[:, 0], 9].mean() > 0.9
    assert seen[right & seen[:, 0], 12].mean() < 0.3
    mask = np.zeros((20, 120, 160), bool)
    mask[:, :, :40], mask[6:, :, 40:80] = True, True  # an arm comes into view
    tracks, seen = flow_tracks(moving(20, 0.0)[0], mask, spacing=10)
    late = ~seen[:, 0]
    assert late.sum() >= 20
    assert (seen.sum(1) >= 6).all()
    assert (tracks[seen][:, 0] < 80).all()


def test_fill_keeps_its_distance():
    mask = np.ones((60, 80), bool)
    mask[:, 60:] = False
    taken = np.array([[20.0, 30.0]], np.float32)
    new = fill(mask, taken, 8)
    assert (new[:, 0] < 60).all()
    assert np.linalg.norm(new - taken, axis=1).min() > 6
    assert len(new) > 30


def test_tracks_are_bound_to_what_is_in_front(tmp_path):
    """Two sheets of particles, one behind the other: tracks go with the nearer one, and the clip serves the fit."""
    from aa.deformation import Footage

    K, view = np.array([[100.0, 0, 32], [0, 100, 32], [0, 0, 1]]), np.eye(4)
    x = np.stack(np.meshgrid(np.linspace(-0.2, 0.2, 21), np.linspace(-0.2, 0.2, 21)), -1).reshape(-1, 2)
    means = np.concatenate([np.c_[x * 1.5, np.full(len(x), 1.5)], np.c_[x, np.ones(len(x))]])
    tracks = (x[::7] * 100 + 32 + 0.6)[:, None].repeat(3, 1).astype(np.float32) + np.arange(3)[:, None]
    visible = np.ones(tracks.shape[:2], bool)
    visible[0, 0] = False
    frames = np.full((3, 64, 64, 3), 90, np.uint8)
    mask = np.zeros((3, 64, 64), bool)
    mask[:, 20:40, 20:40] = True
    frames[mask] = 200
    clip = Clip(frames, tracks=tracks.astype(np.float32), visibility=visible, mask=mask, source="own")
    bound = bind(clip, means, view, K)
    assert len(bound.particle) == len(tracks) - 1
    assert (bound.particle >= len(x)).all()
    np.testing.assert_allclose(bound.tracks[:, 0], x[bound.particle - len(x)] * 100 + 32, atol=1e-4)
    background = clean_background(clip)
    assert np.abs(background - 90 / 255).max() < 0.02
    footage = Footage.of(Clip.load(bound.save(tmp_path / "own")), background)
    assert footage.tracks.shape == (3, len(tracks) - 1, 2)
    assert torch.isfinite(footage.viewmat).all()
    with pytest.raises(InputError, match="no track"):
        bind(clip, means + (9, 0, 0), view, K)


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    """A portrait that sways, at 30 fps, 0.7 s with sound."""
    picture = cv2.imread(str(sorted(PORTRAITS.glob("*.png"))[0]))[..., ::-1]
    frames = []
    for t in range(21):
        m = np.float32([[1, 0, 6 * np.sin(t / 5)], [0, 1, 0]])
        frames.append(cv2.resize(cv2.warpAffine(picture, m, picture.shape[1::-1], borderMode=cv2.BORDER_REPLICATE), (240, 360)))
    path = tmp_path_factory.mktemp("own") / "me.mp4"
    sound = 0.1 * np.sin(np.arange(11200) / 9).astype(np.float32)
    return SimpleNamespace(path=write_video(path, frames, sound, fps=30), frames=frames, sound=sound)


def test_own_video_becomes_a_clip(talking):
    clip = Clip.from_video(talking.path, longest=320, progress=False)
    T, H, W, _ = clip.frames.shape
    assert (T, H, clip.fps, clip.source) == (18, 320, 25.0, "own")
    assert len(clip.audio) == T * 640
    assert 0.15 < clip.mask.mean() < 0.7
    assert np.isfinite(clip.landmarks).all()
    assert clip.particle is None
    assert clip.visibility.sum(0).min() > 50
    t, p = 9, clip.visibility[:, [0, 9]].all(1)
    moved = (clip.tracks[p, t] - clip.tracks[p, 0])[:, 0]
    want = 6 * np.sin(round(t / 25 * 30) / 5) * W / 768  # px; frame 9 at 25 fps is frame 11 at 30
    assert np.median(moved) == pytest.approx(want, abs=0.35)


def test_a_cut_is_found_and_the_longest_take_used(tmp_path, talking):
    small = np.stack([cv2.resize(f, (64, 96)) for f in talking.frames])
    other = np.full((8, 96, 64, 3), 40, np.uint8)
    other[:, :, 20:] = 200
    assert find_cuts(small) == []
    assert find_cuts(np.concatenate([small, other])) == [len(small)]
    wave = np.stack([np.roll(small[0], 4 * t, 1) for t in range(12)])  # much movement is no cut
    assert find_cuts(wave) == []
    scene = [np.full_like(talking.frames[0], 30)] * 9
    path = write_video(tmp_path / "cut.mp4", scene + talking.frames, np.zeros(16000, np.float32), fps=25)
    clip = clip_from_video(path, longest=240, progress=False, tracks=False)
    assert len(clip.frames) == len(talking.frames)
    assert clip.seeds["start"] == 9 / 25
    assert "cuts at 0.36 s" in clip.seeds["notices"][0]
    assert len(clip.audio) == 640 * len(clip.frames)
    short = write_video(tmp_path / "short.mp4", scene + talking.frames[:9], np.zeros(11520, np.float32), fps=25)
    with pytest.raises(InputError, match=r"cuts at 0\.36 s"):
        clip_from_video(short, progress=False)


def test_frames_without_the_person_are_counted(tmp_path, talking):
    grey = np.full_like(talking.frames[0], 120)
    fade = [(f * (1 - a) + grey * a).astype(np.uint8) for f, a in zip(talking.frames[15:], np.linspace(0.1, 0.9, 6))]
    path = write_video(tmp_path / "gone.mp4", talking.frames[:15] + fade + [grey] * 5, np.zeros(17000, np.float32), fps=25)
    clip = clip_from_video(path, longest=240, progress=False, tracks=False)
    empty = ~np.isfinite(clip.landmarks[:, 0, 0])
    assert empty[-4:].all()
    assert not empty[:15].any()
    assert clip.tracks is None
    assert any("frames" in n for n in clip.seeds["notices"])


def test_a_small_person_is_cropped_to(tmp_path, talking):
    """A whole picture four times as wide as the person: the face is too small for the plain face model."""
    wide = []
    for f in talking.frames[:15]:
        frame = np.full((720, 1280, 3), 190, np.uint8)
        frame[300:660, 500:740] = f
        wide.append(frame)
    path = write_video(tmp_path / "wide.mp4", wide, np.zeros(9600, np.float32), fps=25)
    clip = clip_from_video(path, longest=320, progress=False, tracks=False, crop=True)
    assert clip.seeds["box"] is not None
    assert np.isfinite(clip.landmarks).all()
    eyes = np.linalg.norm(clip.landmarks[:, 473] - clip.landmarks[:, 468], axis=1)
    assert eyes.mean() > 10
    assert np.isfinite(segment(read_frames(path, 640)[:2])[1]).all()  # the whole picture, with the face on crops
    assert read_frames(path, 100).shape[1:3] == (56, 100)


def test_bad_videos_get_one_clear_sentence(tmp_path, talking):
    empty = np.full((20, 96, 96, 3), 120, np.uint8)
    sound = np.zeros(12800, np.float32)
    write_video(tmp_path / "mute.mp4", talking.frames[:15])
    write_video(tmp_path / "short.mp4", talking.frames[:6], sound)
    write_video(tmp_path / "nobody.mp4", empty, sound)
    pair = [np.concatenate([f, f[:, ::-1]], 1) for f in talking.frames[:15]]
    write_video(tmp_path / "two.mp4", pair, sound)
    (tmp_path / "text.mp4").write_text("no video here" * 1000)
    (tmp_path / "cut.mp4").write_bytes(talking.path.read_bytes()[:3000])
    cases = {
        "mute.mp4": "no sound", "short.mp4": "too short", "nobody.mp4": "no person", "two.mp4": "several people",
        "text.mp4": "cannot be read|no video", "cut.mp4": "cannot be read|no picture|no frame", "gone.mp4": "not exist",
    }  # fmt: skip
    for name, words in cases.items():
        with pytest.raises(InputError, match=words) as caught:
            clip_from_video(tmp_path / name, longest=360, progress=False)
        assert "\n" not in str(caught.value)

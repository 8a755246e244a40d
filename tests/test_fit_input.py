"""Lifting learns joints; the fit resumes exactly, shares Gaussians between clips and refuses what it cannot use."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from aa import deformation
from aa.clips import Clip
from aa.deformation import FitSettings, Footage, fit_clip, fit_clips
from aa.errors import InputError
from aa.fit_losses import dssim
from aa.gaussians import Gaussians, intrinsics, look_at, project
from aa.lifting import lift, make_graph

T, SIZE = 7, 48
SETTINGS = FitSettings(steps=6, resolution=8, channels=4, scales=(1,), width=8, nodes=0, neighbours=4, save_every=2, patience=0)


@pytest.fixture(scope="module")
def arm():
    """A tube of particles that bends towards the camera at its middle, as an elbow does: points, means (T, N, 3), tracks."""
    rng = np.random.default_rng(0)
    z, a = rng.uniform(-0.3, 0.3, 500), rng.uniform(0, 2 * np.pi, 500)
    points = torch.tensor(np.stack([0.05 * np.cos(a), 0.05 * np.sin(a), z], 1)).float()
    means = points.repeat(T, 1, 1)
    above = points[:, 2] > 0
    for t in range(T):
        bend = torch.tensor(1.0 * t / (T - 1))
        c, s = bend.cos(), bend.sin()
        R = torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]])
        means[t, above] = points[above] @ R.T
    viewmat, K = look_at((0.0, -2.0, 0.0), (0.0, 0.0, 0.0)), intrinsics(300.0, 256, 256)
    tracks = project(means, viewmat, K)[0]
    seen = (points[:, 1] < 0.0).expand(T, -1)  # the side towards the camera
    footage = Footage(torch.zeros(T, 1, 1, 3), K, viewmat, torch.zeros(3), tracks, seen, torch.arange(500))
    return points, means, footage


def test_lifting_finds_the_joint_and_the_depth(arm):
    points, means, footage = arm
    graph = make_graph(points, torch.zeros(500, dtype=torch.long), 60)
    alike, learned = (lift(points, graph, footage, rounds=n) for n in (0, 7))
    error = {n: 1000 * float((x.means - means).norm(dim=-1).mean()) for n, x in ((0, alike), (7, learned))}
    height = points[graph.nodes][graph.edges].mean(1)[:, 2].abs()
    joint, bone = learned.strain[height < 0.02].max(), learned.strain[height > 0.1].max()
    print(f"{error} mm; strain {float(joint):.3f} at the joint, {float(bone):.4f} elsewhere")
    assert error[7] < 4
    assert error[7] < 0.4 * error[0]
    assert joint > 5 * bone


def test_frames_without_tracks_are_bridged(arm):
    points, means, footage = arm
    graph = make_graph(points, torch.zeros(500, dtype=torch.long), 60)
    hidden = footage.visible.clone()
    hidden[3] = False
    lifted = lift(points, graph, replace(footage, visible=hidden), rounds=2)
    assert lifted.means.isfinite().all()
    assert float((lifted.means[3] - means[3]).norm(dim=-1).mean()) < 0.08


def test_known_shapes_are_recovered_with_their_depth(arm):
    points, _, footage = arm
    bulge = torch.zeros(500, 1, 3)  # comes towards the camera by 2 cm as it widens by 1 cm
    middle = points[:, 2].abs() < 0.1
    bulge[middle, 0, 1], bulge[middle, 0, 0] = -0.02, 0.01 * points[middle, 0].sign()
    amount = torch.linspace(0, 0.9, T)
    means = points + amount[:, None, None] * bulge[:, 0]
    seen = replace(footage, tracks=project(means, footage.viewmat, footage.K)[0])
    graph = make_graph(points, torch.zeros(500, dtype=torch.long), 60)
    lifted = lift(points, graph, seen, modes=bulge, rounds=2)
    torch.testing.assert_close(lifted.shape[:, 0], amount, atol=0.1, rtol=0)
    assert float((lifted.means - means).norm(dim=-1)[:, footage.visible[0]].mean()) < 2e-3


@pytest.fixture(scope="module")
def small():
    """300 Gaussians that move sideways, with pictures."""
    g = torch.Generator().manual_seed(0)
    means = 0.5 * torch.rand(300, 3, generator=g) - 0.25
    quats = torch.zeros(300, 4).index_fill_(1, torch.tensor(0), 1.0)
    gaussians = Gaussians(means, quats, torch.full((300, 3), -4.0), torch.full((300,), 2.0), torch.rand(300, 3, generator=g))
    viewmat, K = look_at((0.0, -2.0, 0.0), (0.0, 0.0, 0.0)), intrinsics(120.0, SIZE, SIZE)
    shift = torch.linspace(0, 0.05, 4)[:, None, None] * torch.tensor([1.0, 0.0, 0.0])
    moved = [replace(gaussians, means=means + s) for s in shift]
    frames = torch.stack([m.render(viewmat[None], K[None], SIZE, SIZE, torch.zeros(1, 3))[0][0] for m in moved])
    tracks = torch.stack([project(m.means, viewmat, K)[0] for m in moved])
    seen = torch.ones(4, 300, dtype=torch.bool)
    part = torch.tensor([0, 1, 2]).repeat(100)
    return gaussians, part, Footage(frames, K, viewmat, torch.zeros(3), tracks, seen, torch.arange(300), (12, 12, 36, 36))


def test_an_interrupted_fit_ends_the_same(small, tmp_path, monkeypatch):
    gaussians, part, footage = small
    settings = replace(SETTINGS, w_hand=1.0, w_ssim=0.1, robust=True)
    whole = fit_clip(gaussians, part, footage, settings, 3, False)
    advance = deformation._Job.advance

    def power_cut(job):
        if job.step == 5:
            raise KeyboardInterrupt
        advance(job)

    monkeypatch.setattr(deformation._Job, "advance", power_cut)
    with pytest.raises(KeyboardInterrupt):
        fit_clip(gaussians, part, footage, settings, 3, False, checkpoint=tmp_path / "fit")
    monkeypatch.setattr(deformation._Job, "advance", advance)
    resumed = fit_clip(gaussians, part, footage, settings, 3, False, checkpoint=tmp_path / "fit")
    assert all(torch.equal(a, b) for a, b in zip(whole.at(2), resumed.at(2)))
    assert whole.history == resumed.history
    again = fit_clip(gaussians, part, footage, settings, 3, False, checkpoint=tmp_path / "fit")  # finished: nothing is left to do
    assert torch.equal(again.at(2)[0], whole.at(2)[0])
    with pytest.raises(InputError, match="another fit"):
        fit_clip(gaussians, part, footage, settings, 4, False, checkpoint=tmp_path / "fit")
    (tmp_path / "fit").write_bytes(b"no")
    with pytest.raises(InputError, match="damaged"):
        fit_clip(gaussians, part, footage, settings, 3, False, checkpoint=tmp_path / "fit")


def test_clips_share_their_gaussians(small):
    gaussians, part, footage = small
    other = replace(footage, frames=footage.frames.flip(0), tracks=footage.tracks.flip(0))
    a, b = fit_clips(gaussians, part, [footage, other], SETTINGS, 0, False)
    assert torch.equal(a.gaussians.colors, b.gaussians.colors)
    assert not torch.equal(a.at(0)[0], b.at(0)[0])


def test_a_fit_without_gain_stops_early(small, monkeypatch):
    gaussians, part, footage = small
    monkeypatch.setattr(deformation, "PLATEAU", 8)
    still = replace(SETTINGS, steps=100, lr_planes=0.0, lr_mlp=0.0, lr_colors=0.0, lr_scales=0.0, patience=2)
    fit = fit_clip(gaussians, part, footage, still, 0, False)
    assert 24 <= len(fit.history["l1"]) < 100


def test_one_frame_and_frames_without_a_person(small):
    gaussians, part, footage = small
    one = replace(footage, frames=footage.frames[:1], tracks=footage.tracks[:1], visible=footage.visible[:1])
    assert fit_clip(gaussians, part, one, SETTINGS, 0, False).at(0)[0].isfinite().all()
    person = torch.tensor([True, True, False, True])
    frames = footage.frames.clone()
    frames[2] = torch.nan  # whatever it shows, it is never looked at
    gone = replace(footage, frames=frames, person=person, visible=footage.visible & person[:, None])
    fit = fit_clip(gaussians, part, gone, SETTINGS, 0, False)
    assert all(np.isfinite(v).all() for v in fit.history.values())


def test_a_camera_cut_is_named(small):
    gaussians, part, footage = small
    frames = torch.cat([footage.frames[:2], 1 - footage.frames[2:]])
    seen = footage.visible.clone()
    seen[2:, :290] = False
    with pytest.raises(InputError, match="camera cut at frame 2"):
        fit_clip(gaussians, part, replace(footage, frames=frames, visible=seen), SETTINGS, 0, False)
    assert footage.cut() is None


def test_clips_that_cannot_be_fitted_are_named():
    frames = np.zeros((3, 16, 16, 3), np.uint8)
    tracks = {"tracks": np.zeros((2, 3, 2), np.float32), "visibility": np.ones((2, 3), bool), "particle": np.arange(2)}
    camera = {"K": np.eye(3, dtype=np.float32), "viewmat": np.eye(4, dtype=np.float32)}
    black = torch.zeros(3)
    with pytest.raises(InputError, match="30 frames a second"):
        Footage.of(Clip(frames, fps=30.0, **tracks, **camera), black)
    with pytest.raises(InputError, match="no camera"):
        Footage.of(Clip(frames, **tracks), black)
    with pytest.raises(InputError, match="belong to no particles"):
        Footage.of(Clip(frames, **{**tracks, "particle": None}, **camera), black)
    with pytest.raises(InputError, match="nobody"):
        Footage.of(Clip(frames, mask=np.zeros((3, 16, 16), bool), **tracks, **camera), black)
    with pytest.warns(UserWarning, match="no tracks"):
        assert Footage.of(Clip(frames, **camera), black).tracks.shape == (3, 0, 2)


def test_dssim_is_zero_for_equal_pictures_and_grows():
    a = torch.rand(1, 24, 24, 3, generator=torch.Generator().manual_seed(0))
    assert float(dssim(a, a)) == pytest.approx(0, abs=1e-6)
    assert float(dssim(a, a.flip(1))) > 0.2

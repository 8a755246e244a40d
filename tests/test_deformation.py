"""The 4DGS fit: it starts as the identity, its losses are the paper's, and it recovers a known motion."""

from dataclasses import replace

import pytest
import torch

from aa.body import load_body
from aa.deformation import (
    DeformationField,
    FitSettings,
    Footage,
    HexPlane,
    crop_camera,
    deform,
    fit_clip,
    isometry_loss,
    neighbour_pairs,
    trajectory_loss,
)
from aa.gaussians import intrinsics, look_at, make_layout, project
from aa.lifting import colors_from_tracks, lift_tracks, make_graph
from aa.raster import rasterize
from aa.transfer import motion_from_rest

SIZE, FRAMES = 72, 8


@pytest.fixture(scope="module")
def scene():
    """A body that raises a forearm, seen by one camera: Gaussians, layout, true means (T, N, 3) and footage."""
    body = load_body()
    layout = make_layout(body, 900)
    colors = 0.2 + 0.6 * torch.rand(len(layout), 3, generator=torch.Generator().manual_seed(1))
    gaussians = layout.gaussians(body.v_template, colors)
    rotvecs = torch.zeros(FRAMES, len(body.parents), 3)
    rotvecs[:, body.joint("lowerarm01.R")] = torch.tensor([-0.9, 0.0, 0.0]) * torch.linspace(0, 1, FRAMES)[:, None]
    vertices, rotations = body.pose(rotvecs=rotvecs)
    truth = motion_from_rest(vertices, rotations, *body.pose()).read(layout)
    means, quats = truth.apply(gaussians)
    viewmat, K = look_at((0.3, -3.2, 0.2), (0.0, 0.0, 0.1)), intrinsics(90.0, SIZE, SIZE)
    background = torch.full((3,), 0.9)
    look = (gaussians.scales, gaussians.opacities, colors, viewmat[None], K[None], SIZE, SIZE)
    frames = torch.stack([rasterize(m, q, *look, backgrounds=background[None])[0][0] for m, q in zip(means, quats)])
    particle = torch.arange(0, len(layout), 3)
    tracks = project(means[:, particle], viewmat, K)[0]
    visible = torch.ones(tracks.shape[:2], dtype=torch.bool)
    return gaussians, layout, means, Footage(frames, K, viewmat, background, tracks, visible, particle)


def test_untrained_field_is_the_identity(scene):
    gaussians, layout, _, _ = scene
    field = DeformationField(gaussians, layout.part, FRAMES, FitSettings.preset("smoke"))
    means, quats, scales, colors = deform(gaussians, field(torch.tensor([0.0, 3.5])))
    torch.testing.assert_close(means[1], gaussians.means)
    torch.testing.assert_close(scales[0], gaussians.scales)
    torch.testing.assert_close(colors[0], gaussians.colors)
    assert ((quats[0] * gaussians.quats).sum(-1).abs() > 1 - 1e-5).all()


def test_hexplane_reads_what_grid_sample_reads():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(50, 3, generator=generator)
    settings = FitSettings(resolution=6, channels=4, scales=(1,))
    plane = HexPlane(points, 5, settings, generator)
    low, high = points.min(0).values, points.max(0).values
    margin = 0.05 * (high - low).max()
    unit = (points - low + margin) / (high - low + 2 * margin)
    expected = 1.0
    for grid, (a, b) in zip(plane.space, ((0, 1), (0, 2), (1, 2))):
        image = grid.view(1, 6, 6, 4).permute(0, 3, 1, 2)
        at = torch.stack([unit[:, b], unit[:, a]], 1)[None, None] * 2 - 1
        expected = expected * torch.nn.functional.grid_sample(image, at, align_corners=True)[0, :, 0].T
    torch.testing.assert_close(plane(torch.tensor([2.0]))[0], expected, atol=1e-5, rtol=1e-4)  # time planes start at one


def test_hexplane_gradient_matches_finite_differences():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(4, 3, generator=generator)
    plane = HexPlane(points, 3, FitSettings(resolution=4, channels=2, scales=(1,)), generator)
    plane(torch.tensor([1.0])).square().sum().backward()
    weights = plane.space[0]
    k = int(weights.grad.abs().sum(1).argmax())
    step = 1e-3
    with torch.no_grad():
        weights[k, 0] += step
        up = plane(torch.tensor([1.0])).square().sum()
        weights[k, 0] -= 2 * step
        down = plane(torch.tensor([1.0])).square().sum()
    assert float((up - down) / (2 * step)) == pytest.approx(float(weights.grad[k, 0]), rel=2e-2)


def test_isometry_is_zero_for_rigid_motion_and_not_for_stretch():
    points = torch.rand(100, 3, generator=torch.Generator().manual_seed(0))
    pairs, weight = neighbour_pairs(points, 5)
    c, s = torch.tensor(0.6).cos(), torch.tensor(0.6).sin()
    R = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    assert isometry_loss(points, points @ R.T + 1.0, pairs, weight) < 1e-6
    assert isometry_loss(points, points * 1.1, pairs, weight) > 1e-3


def test_trajectory_loss_is_eq_3_masked_and_resolution_free():
    pixels, tracks = torch.zeros(1, 2, 2), torch.tensor([[[3.0, 4.0], [100.0, 0.0]]])
    seen = torch.tensor([[True, False]])
    assert float(trajectory_loss(pixels, tracks, seen, 100)) == pytest.approx(25 / 100**2)
    assert float(trajectory_loss(pixels, 2 * tracks, seen, 200)) == pytest.approx(25 / 100**2)
    assert float(trajectory_loss(pixels, tracks, seen, 100, robust=True)) == pytest.approx(0.07)


def test_a_crop_is_another_camera(scene):
    _, _, means, footage = scene
    pixel, _ = project(means[0], footage.viewmat, footage.K)
    cropped, _ = project(means[0], footage.viewmat, crop_camera(footage.K, (20, 10, 40, 30), 60))
    torch.testing.assert_close(cropped, (pixel - torch.tensor([20.0, 10.0])) * 3, atol=1e-3, rtol=1e-4)


def test_fit_recovers_the_motion_and_tracks_help(scene):
    gaussians, layout, truth, footage = scene
    settings = replace(FitSettings.preset("smoke"), steps=30, w_iso=10.0, nodes=120)
    still = (gaussians.means - truth[-1]).norm(dim=1)
    moved = still > 0.02
    fits = {w: fit_clip(gaussians, layout.part, footage, replace(settings, w_traj=w), progress=False) for w in (1000.0, 0.0)}
    error = {w: float((f.at(FRAMES - 1)[0] - truth[-1])[moved].norm(dim=1).mean()) for w, f in fits.items()}
    print(
        f"still {1000 * float(still[moved].mean()):.0f} mm, with tracks {1000 * error[1000.0]:.0f}, without {1000 * error[0.0]:.0f}"
    )
    assert error[1000.0] < 0.6 * float(still[moved].mean())
    assert error[1000.0] < error[0.0]
    history = fits[1000.0].history["l1"]
    assert sum(history[-10:]) < sum(history[:10])


def test_fit_is_deterministic(scene):
    gaussians, layout, _, footage = scene
    settings = replace(FitSettings.preset("smoke"), steps=4, nodes=60)
    a, b = (fit_clip(gaussians, layout.part, footage, settings, seed=5, progress=False) for _ in range(2))
    assert torch.equal(a.at(3)[0], b.at(3)[0])


def test_lifted_tracks_meet_the_tracks_and_come_near_the_motion(scene):
    gaussians, layout, truth, footage = scene
    means, turns = lift_tracks(gaussians.means, make_graph(gaussians.means, layout.part, 150), footage)
    assert means.shape == (FRAMES, len(gaussians), 3)
    torch.testing.assert_close(turns.norm(dim=-1), torch.ones(FRAMES, len(gaussians)))
    pixels, _ = project(means[:, footage.particle], footage.viewmat, footage.K)
    assert float((pixels - footage.tracks).norm(dim=-1).mean()) < 0.2
    moved = (gaussians.means - truth[-1]).norm(dim=1) > 0.02
    still = float((gaussians.means - truth[-1])[moved].norm(dim=1).mean())
    assert float((means[-1] - truth[-1])[moved].norm(dim=1).mean()) < 0.3 * still


def test_lifting_leaves_a_still_body_alone(scene):
    gaussians, layout, _, footage = scene
    tracks = footage.tracks[:1].expand(2, -1, -1)
    still = replace(footage, tracks=tracks, visible=footage.visible[:2])  # the first frame shows the canonical body
    means, _ = lift_tracks(gaussians.means, make_graph(gaussians.means, layout.part, 150), still)
    assert float((means - gaussians.means).norm(dim=-1).max()) < 2e-3


def test_colors_from_tracks_are_those_of_the_particles(scene):
    gaussians, _, _, footage = scene
    hidden = replace(footage, visible=torch.zeros_like(footage.visible).index_fill_(1, torch.arange(40), True))
    colors = colors_from_tracks(hidden, gaussians.means)
    assert colors.shape == gaussians.colors.shape
    seen = {tuple(c) for c in colors[footage.particle[:40]].tolist()}
    assert {tuple(c) for c in colors.tolist()} == seen  # the others take over the nearest tracked one's

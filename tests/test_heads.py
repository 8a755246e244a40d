"""Heads that move: closed lids, teeth, the back of the head, and pictures from other sides that the photo vouches for."""

import numpy as np
import pytest
import torch

from aa.align import solid_faces
from aa.body import REGIONS, load_body
from aa.gaussians import intrinsics, load_layout, look_at
from aa.lids import LID_MM, blink_mm, lid_chart, lid_samples, paint_lids
from aa.ownership import parts_of_vertices
from aa.particles import Particles
from aa.pseudo import _shot, _window, pseudo_views
from aa.raster import rasterize
from aa.refine import refine
from aa.scalp import paint_scalp
from aa.teeth import paint_teeth, teeth_samples, upper_jaw
from aa.view import make_view, project, sample

SKIN = np.array([0.8, 0.6, 0.5])
SIDE = 160  # px


@pytest.fixture(scope="module")
def body():
    return load_body()


def wave(points):
    """A colour (n, 3) for each point (n, 3) of space, varied enough to betray wrong places."""
    p = points.numpy()
    return 0.5 + 0.3 * np.stack([np.sin(90 * p[:, 0]), np.sin(80 * p[:, 2]), np.sin(60 * (p[:, 0] + p[:, 2]))], 1)


@pytest.fixture(scope="module")
def scene(body):
    """A view of the mean head in which every visible point has its colour of `wave`, and the layout's particles on it."""
    faces, _ = solid_faces(body)
    v = body.v_template
    middle = v[body.region_vertices("face")].mean(0)
    viewmat, K = look_at(middle - torch.tensor([0.0, 1.2, 0.0]), middle), intrinsics(4.2 * SIDE, SIDE, SIDE)
    part = parts_of_vertices(body, stiff=False)[faces[:, 0]]
    blank = np.full((SIDE, SIDE, 3), 128, np.uint8)
    mask = np.ones((SIDE, SIDE), np.float32)
    first = make_view(blank, mask, v, faces, viewmat, K, part)
    seen = first.tri >= 0
    points = (v[faces[torch.from_numpy(first.tri[seen])]] * torch.from_numpy(first.bary[seen]).float()[..., None]).sum(1)
    blank[seen] = (wave(points) * 255).round()
    view = make_view(blank, seen.astype(np.float32), v, faces, viewmat, K, part)
    layout = load_layout(body, 10_000)
    means = layout.place(v)
    near = (means - middle).norm(dim=1) < 0.16
    pixels, z = project(means, viewmat, K)
    at = pixels.astype(int).clip(0, SIDE - 1)
    shown = near & torch.from_numpy(z - view.depth[at[:, 1], at[:, 0]] < 0.003)
    g = layout.gaussians(v, torch.from_numpy(sample(view.front, pixels, np.full(len(pixels), 1.0))).float())
    n = len(layout)
    cloud = Particles(
        layout.corners, layout.bary, torch.zeros(n, dtype=torch.bool), g.means, g.quats, g.scales, g.opacities, g.colors, shown
    )  # fmt: skip
    return view, cloud


def test_pseudo_views_show_each_point_in_its_colour(body, scene):
    view, cloud = scene
    v = body.v_template
    rotations = torch.eye(3).expand(len(v), 3, 3)
    shots = pseudo_views(body, cloud, view, v, rotations)
    assert len(shots) >= 6
    faces, _ = solid_faces(body)
    from aa.zbuffer import zbuffer

    for shot in shots[:4]:  # those of the unmoved face: what each pixel shows is known
        h, w = shot.weight.shape[:2]
        _, tri, bary = zbuffer(v, faces, shot.viewmat, shot.K, w, h)
        known = (shot.weight[..., 0] == 1).numpy()
        assert known.sum() > 0.25 * (tri >= 0).sum()
        points = (v[faces[torch.from_numpy(tri[known])]] * torch.from_numpy(bary[known]).float()[..., None]).sum(1)
        assert np.abs(shot.target.numpy()[known] - wave(points)).mean() < 0.03


def test_refined_against_pseudo_views_the_turned_head_has_fewer_speckles(body, scene):
    view, cloud = scene
    v, background = body.v_template, np.zeros((SIDE, SIDE, 3), np.uint8)
    others = pseudo_views(body, cloud, view, v, torch.eye(3).expand(len(v), 3, 3))
    unseen = _shot(body, cloud, view, v, v, *_window(v[body.region_vertices("face")], view, (24, 4)))  # a view of its own
    wrong, own = {}, {}
    for name, shots in (("photo", ()), ("pseudo", others)):
        g = refine(cloud, view, background, 40, 0, shots)
        for out, viewmat, K, target, known in (
            (wrong, unseen.viewmat, unseen.K, unseen.target, unseen.weight[..., 0] == 1),
            (own, view.viewmat, view.K, torch.from_numpy(view.image), torch.from_numpy(view.mask) > 0.5),
        ):
            h, w = known.shape
            picture, _, _ = rasterize(g.means, g.quats, g.scales, g.opacities, g.colors, viewmat[None], K[None], w, h)
            out[name] = float((picture[0] - target)[known].square().mean())
    assert wrong["pseudo"] < 0.8 * wrong["photo"]
    assert own["pseudo"] < 1.6 * own["photo"]  # at little cost for the photo itself


def test_closed_lids_are_covered_and_meet_in_a_line(body):
    chart, lids = lid_chart(body), lid_samples(body)
    shut = lids.place(chart.shut)
    line, outside = chart.read(shut)
    assert outside.mean() > 0.9
    assert (line > 0).any()
    assert (line < 0).any()
    edge = shut[torch.from_numpy(np.abs(line) < 0.5)]
    assert edge[:, 0].abs().min() < 0.022  # from corner to corner of both eyes
    assert edge[:, 0].abs().max() > 0.040
    moved = lids.place(blink_mm(body))[:, 0]
    upper = shut[(moved > 5) & torch.from_numpy(outside)]
    near = torch.cdist(upper, shut).sort(1).values[:, 3]
    assert near.max() < 0.002


def test_hidden_lids_take_the_skin_and_end_in_lashes(body):
    layout = load_layout(body, 10_000)
    chart, rest = lid_chart(body), layout.place(body.v_template)
    shut = layout.place(chart.shut)
    names, blink = np.array(REGIONS)[layout.region], 1000 * (shut - rest).norm(dim=1).numpy()
    lid = (blink > LID_MM) & np.isin(names, ["face", "eyelid"])
    colors = np.where(lid[:, None], 0.1, SKIN)  # lashes all over
    seen = np.isin(names, ["face"]) & ~lid
    painted, still = paint_lids(chart, names, blink, rest.numpy(), shut.numpy(), colors, seen)
    line, outside = chart.read(shut)
    far = lid & outside & (np.abs(line) > 2.5)
    at = lid & outside & (np.abs(line) < 0.25)
    assert np.abs(painted[far] / SKIN - 1).max() < 0.45
    assert np.abs(np.median(painted[far], 0) / SKIN - 1).max() < 0.3
    assert painted[at].mean() < painted[far].mean()
    apart = blink <= LID_MM
    np.testing.assert_array_equal(painted[apart], colors[apart])
    np.testing.assert_array_equal(still[apart], seen[apart])


def test_teeth_have_crowns_gaps_and_gums(body):
    samples = teeth_samples(body)
    rest = samples.place(body.v_template).numpy()
    upper = upper_jaw(body, samples.corners)
    assert upper.any()
    assert (~upper).any()
    assert (samples.region == REGIONS.index("teeth")).all()
    torch.testing.assert_close(samples.bary.sum(1), torch.ones(len(samples)))
    colors = paint_teeth(body, rest, upper, (0.86, 0.83, 0.77))
    assert colors.min() > 0
    assert colors.max() < 1
    front = upper & (np.abs(rest[:, 0]) < 0.02)
    low = front & (rest[:, 2] < rest[front, 2].min() + 0.006)
    assert np.percentile(colors[low].mean(1), 70) > 0.7  # crowns
    middle = np.abs(rest[:, 0]) < 0.0004
    if (low & middle).any():
        assert colors[low & middle].mean() < np.percentile(colors[low].mean(1), 50)  # a gap between the middle ones
    redness = colors[:, 0] - colors[:, 1]
    high = front & (rest[:, 2] > rest[front, 2].min() + 0.012)
    if high.any():
        assert redness[high].mean() > redness[low].mean() + 0.1  # gums above


def test_the_back_of_the_head_is_hair_unless_bald(body):
    layout = load_layout(body, 10_000)
    rest = layout.place(body.v_template).numpy()
    names = np.array(REGIONS)[layout.region]
    facing = -np.sign(rest[:, 1] - np.median(rest[names == "scalp", 1]))
    seen = facing > 0
    hair = np.array([0.2, 0.12, 0.08])
    scalp = names == "scalp"
    colors = np.where(scalp[:, None], hair, SKIN)
    colors[scalp & ~seen] = [1.0, 0.3, 0.7]  # whatever was there
    painted = paint_scalp(body, rest, names, facing, colors, seen)
    high = scalp & ~seen & (rest[:, 2] > rest[scalp, 2].max() - 0.12)
    assert np.abs(painted[high] - hair).max() < 0.1
    np.testing.assert_array_equal(painted[~scalp], colors[~scalp])
    bald = np.where(scalp[:, None], 1.02 * SKIN, SKIN)
    np.testing.assert_array_equal(paint_scalp(body, rest, names, facing, bald, seen), bald)

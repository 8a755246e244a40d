"""The shared layout covers the body evenly and is the same for everybody; Gaussians survive files."""

import struct
from dataclasses import replace

import pytest
import torch
from scipy.spatial import cKDTree

from aa.body import REGIONS, load_body, load_people
from aa.coverage import directions, see
from aa.gaussians import (
    PARTS,
    Gaussians,
    intrinsics,
    join_layouts,
    load_layout,
    look_at,
    make_hair,
    make_layout,
    project,
    save_layouts,
)  # fmt: skip
from aa.hair import hair_height
from aa.identities import sample_identity


@pytest.fixture(scope="module")
def body():
    return load_body()


@pytest.fixture(scope="module")
def layout(body):
    return load_layout(body, 10_000)


def test_layout_is_dense_where_speech_is_read(layout):
    spacing = {r: layout.spacing[layout.region == REGIONS.index(r)].mean() for r in ("lips", "face", "hand", "torso")}
    assert spacing["lips"] < spacing["face"] < spacing["hand"] < spacing["torso"]
    assert set(layout.part.unique().tolist()) == {PARTS.index(p) for p in ("body", "face", "hand")}


def test_layout_leaves_no_holes(body, layout):
    """Every point of the skin has a particle within 1.6 of the local spacing."""
    skin = body.region_faces("torso", "neck", "upperarm", "forearm", "hand", "leg", "face", "scalp", "lips")
    centres = body.v_template[body.faces[skin]].mean(1)
    distance, nearest = cKDTree(layout.place(body.v_template).numpy()).query(centres.numpy())
    assert (torch.as_tensor(distance) / layout.spacing[nearest]).quantile(0.999) < 1.6


@pytest.mark.parametrize(("n", "step", "allowed"), [(10_000, 1, 0.002), (40_000, 5, 0.0005), (60_000, 9, 0.0005)])
def test_no_holes_from_26_sides(body, n, step, allowed):
    """Of the body's pixels next to none shows the background or a hidden layer, and the discs stay near the surface."""
    layout, sides = load_layout(body, n), directions()
    assert len(sides) == 26
    seen = [see(body, layout, body.v_template, side) for side in sides[::step]]
    holes = sum(int(c.holes().sum()) for c in seen)
    assert holes < allowed * sum(int(c.inside.sum()) for c in seen)
    assert max(float((1 - c.alpha[c.inside]).max()) for c in seen) < 0.1


def test_holes_are_seen_where_particles_are_missing(body, layout):
    whole = see(body, layout, body.v_template, directions()[0]).holes().sum()
    torn = replace(layout, cell=torch.where((torch.arange(len(layout)) % 3 > 0)[:, None, None], layout.cell, layout.cell * 1e-4))
    assert see(body, torn, body.v_template, directions()[0]).holes().sum() > 20 * (whole + 5)


def test_discs_follow_the_spacing_in_each_direction(body, layout):
    """A body pulled to twice its height has discs twice as high, and no broader."""
    flat = torch.isin(layout.region, torch.tensor([REGIONS.index(n) for n in ("torso", "leg")]))
    flat &= layout.frames(body.v_template)[:, 2, 2].abs() < 0.1  # upright parts of the surface
    reach = []
    for stretch in (1.0, 2.0):
        frames, radii = layout.discs(body.v_template * torch.tensor([1, 1, stretch]))
        torch.testing.assert_close(frames @ frames.mT, torch.eye(3).expand_as(frames), atol=1e-3, rtol=0)
        assert (radii[:, 0] >= radii[:, 1]).all()
        spread = frames[..., :2] * radii[:, None]
        reach.append(spread.norm(dim=2)[flat])  # (n, 3) extent along x, y, z
    ratio = reach[1].mean(0) / reach[0].mean(0)
    assert ratio[2] == pytest.approx(2.0, abs=0.1)
    assert ratio[:2].tolist() == pytest.approx([1.0, 1.0], abs=0.1)


def test_hair_lifts_off_the_skull_and_moves_with_it(body, layout):
    hair = make_hair(body, 600)
    both = join_layouts(layout, hair)
    assert torch.equal(both.tri[: len(layout)], layout.tri)  # the skin's particles keep their order
    assert set(both.region[len(layout) :].tolist()) == {REGIONS.index("hair")}
    curly = next(p for p in map(sample_identity, range(99)) if p.hair_style == "curly")
    height = hair.place(hair_height(body, curly)[:, None])[:, 0]
    assert 0.015 < height.max() < 0.05
    skull = cKDTree(layout.place(body.v_template).numpy())
    colors = torch.zeros(len(hair), 3)
    lifted = hair.gaussians(body.v_template, colors, height=height).means
    assert skull.query(lifted.numpy())[0].max() > 0.015
    moved = hair.gaussians(body.v_template + 0.3, colors, height=height).means
    torch.testing.assert_close(moved, lifted + 0.3, atol=1e-5, rtol=0)


def test_layout_is_deterministic_and_follows_the_body(body):
    a, b = make_layout(body, 600, seed=3), make_layout(body, 600, seed=3)
    assert torch.equal(a.tri, b.tri)
    assert torch.equal(a.bary, b.bary)
    assert len(a) == 600
    shifted = a.place(body.v_template + 0.25)
    torch.testing.assert_close(shifted, a.place(body.v_template) + 0.25, atol=1e-5, rtol=0)
    R = a.frames(body.v_template)
    torch.testing.assert_close(R @ R.transpose(1, 2), torch.eye(3).expand_as(R), atol=1e-4, rtol=0)


def test_layout_round_trip(body, tmp_path):
    layout = make_layout(body, 700)
    save_layouts(body, [layout], tmp_path / "l.safetensors")
    back = load_layout(body, 700, tmp_path / "l.safetensors")
    for mine, theirs in zip(layout.discs(body.v_template), back.discs(body.v_template)):
        torch.testing.assert_close(theirs.abs()[..., :2], mine.abs()[..., :2], atol=0.02, rtol=0.02)
    torch.testing.assert_close(back.place(body.v_template), layout.place(body.v_template), atol=1e-3, rtol=0)
    assert torch.equal(back.part, layout.part)


def test_layout_refuses_too_few(body):
    with pytest.raises(ValueError, match="at least 500"):
        make_layout(body, 20)


def test_gaussians_round_trip_and_ply(body, layout, tmp_path):
    betas = load_people()[0][5]
    g = layout.gaussians(body.rest(betas), torch.rand(len(layout), 3, generator=torch.Generator().manual_seed(0)))
    g.save(tmp_path / "g.safetensors")
    back = Gaussians.load(tmp_path / "g.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(vars(g).values(), vars(back).values()))
    g.save_ply(tmp_path / "g.ply")
    raw = (tmp_path / "g.ply").read_bytes()
    head, data = raw.split(b"end_header\n", 1)
    assert f"element vertex {len(g)}".encode() in head
    row = struct.unpack("<17f", data[: 17 * 4])
    assert row[:3] == pytest.approx(g.means[0].tolist(), abs=1e-6)
    assert 0.28209479 * row[6] + 0.5 == pytest.approx(g.colors[0, 0].item(), abs=1e-5)


def test_look_at_projects_its_target_to_the_centre():
    viewmat, K = look_at((0.3, -3.0, 1.0), (0.1, 0.0, 0.5)), intrinsics(800.0, 640, 480)
    pixel, depth = project(torch.tensor([[0.1, 0.0, 0.5], [0.1, 0.0, 0.6], [0.2, 0.0, 0.5]]), viewmat, K)
    torch.testing.assert_close(pixel[0], torch.tensor([320.0, 240.0]), atol=1e-3, rtol=0)
    assert depth[0] == pytest.approx(3.0482, abs=1e-3)
    assert pixel[1, 1] < 240  # z is up, image y is down
    assert pixel[2, 0] > 320  # the person's left (+x) is to the right of the picture

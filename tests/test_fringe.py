"""Loose particles on a body whose photo shows more than the mesh: a bush of hair, a wide sleeve, something in the air."""

import cv2
import numpy as np
import pytest
import torch

from aa.align import solid_faces
from aa.body import load_body
from aa.fringe import fringe
from aa.gaussians import intrinsics, look_at
from aa.gestures import at_ease
from aa.ownership import HEAD, TRUNK, UPPER_ARM, chain, parts_of_vertices
from aa.view import make_view, project
from aa.zbuffer import zbuffer

W, H = 240, 320
EYES = 14.0  # px between the pupils


@pytest.fixture(scope="module")
def scene():
    """Body, its posed vertices, the view, and the particles."""
    body = load_body()
    v = body.pose(rotvecs=torch.as_tensor(at_ease(body)).float())[0]
    faces = solid_faces(body)[0]
    viewmat, K = look_at((0, -2.2, 0.55), (0, 0, 0.55)), intrinsics(480.0, W, H)
    part = parts_of_vertices(body, stiff=False)[faces[:, 0].numpy()]
    _, tri, _ = zbuffer(v, faces, viewmat, K, W, H)
    shown = np.where(tri >= 0, part[tri], -1)
    image = np.full((H, W, 3), 150, np.uint8)
    mask = (tri >= 0).astype(np.uint8)
    image[shown == TRUNK] = (170, 40, 40)
    for side in (0, 1):
        image[np.isin(shown, chain(UPPER_ARM + side))] = (40, 60, 160)
    centre = project(v[body.region_vertices("ear")], viewmat, K)[0].mean(0).astype(int)
    bush = np.zeros_like(mask)
    cv2.ellipse(bush, (int(centre[0]), int(centre[1]) + 6), (34, 42), 0, 0, 360, 1, -1)
    image[(bush > 0) & (tri < 0)] = (30, 25, 20)
    image[np.isin(shown, (HEAD, 10))] = (30, 25, 20)
    image[shown == HEAD] = (210, 160, 140)
    sleeve = cv2.dilate((shown == UPPER_ARM).astype(np.uint8), np.ones((1, 21), np.uint8)) > 0
    sleeve &= (tri < 0) & (np.arange(W) < W / 2)[None]
    image[sleeve] = (40, 60, 160)
    far = np.zeros_like(sleeve)
    far[20:40, 10:30] = True  # touches nothing
    image[far] = (20, 200, 20)
    mask = np.float32((mask > 0) | (bush > 0) | sleeve | far)
    view = make_view(image, mask, v, faces, viewmat, K, part)
    return body, v, view, fringe(body, view, v, EYES), sleeve & (bush == 0), centre


def places(view, loose):
    pixels, z = project(loose.means, view.viewmat, view.K)
    return pixels, z


def test_each_is_held_by_what_moves_together(scene):
    body, _, _, loose, _, _ = scene
    part = parts_of_vertices(body)[loose.corners.numpy()]
    held = loose.bary.numpy() > 0.01
    assert len(loose) > 500
    assert torch.allclose(loose.bary.sum(1), torch.ones(len(loose)), atol=1e-4)
    assert (part[held] >= 0).all()  # nothing hangs on the jaw or the lips
    for k in (UPPER_ARM, UPPER_ARM + 1):
        arm = (np.isin(part, chain(k)) & held).any(1)
        other = (~np.isin(part, chain(k)) & held).any(1)
        assert not (arm & other).any()


def test_hair_hangs_on_the_head_and_has_depth(scene):
    body, _, view, loose, _, centre = scene
    pixels, z = places(view, loose)
    beside = (np.abs(pixels[:, 1] - centre[1]) < 8) & (np.abs(pixels[:, 0] - centre[0]) < 36)
    part = parts_of_vertices(body)[loose.corners.numpy()]
    on_head = (loose.bary.numpy() * (part == HEAD)).sum(1)
    assert beside.sum() > 50
    assert on_head[beside].mean() > 0.8
    low = (pixels[:, 1] > centre[1] + 30) & (np.abs(pixels[:, 0] - centre[0]) < 36)
    assert on_head[low].mean() < on_head[beside].mean()  # towards the shoulders they hold as well
    assert np.ptp(z[beside]) > 0.04  # no flat sheet
    dark = loose.colors.numpy()[beside].mean(1)
    assert np.median(dark) < 0.2


def test_sleeve_goes_with_its_arm(scene):
    body, _, view, loose, sleeve, _ = scene
    pixels, _ = places(view, loose)
    x, y = pixels[:, 0].astype(int).clip(0, W - 1), pixels[:, 1].astype(int).clip(0, H - 1)
    mine = cv2.erode(sleeve.astype(np.uint8), np.ones((3, 3), np.uint8))[y, x] > 0
    part = parts_of_vertices(body)[loose.corners.numpy()]
    assert mine.sum() > 30
    assert (part[mine, 0] == UPPER_ARM).mean() > 0.9


def test_nothing_hangs_in_the_air(scene):
    _, _, view, loose, _, _ = scene
    pixels, z = places(view, loose)
    assert not ((pixels[:, 0] < 40) & (pixels[:, 1] < 60)).any()
    assert np.isfinite(z).all()
    x, y = pixels[:, 0].astype(int).clip(0, W - 1), pixels[:, 1].astype(int).clip(0, H - 1)
    assert (cv2.dilate(view.mask, np.ones((5, 5), np.uint8))[y, x] > 0.5).mean() > 0.99


def test_no_gap_no_particles(scene):
    body, v, view, _, _, _ = scene
    from dataclasses import replace

    bare = replace(view, owner=np.where(view.tri >= 0, view.owner, -1), claimed=np.zeros_like(view.claimed))
    nothing = fringe(body, bare, v, EYES)
    assert len(nothing) == 0
    assert nothing.corners.shape == (0, 3)

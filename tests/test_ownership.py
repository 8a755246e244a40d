"""Whose pixel is it: synthetic photos of two layers with known answers."""

import cv2
import numpy as np
import pytest

from aa.body import load_body
from aa.ownership import FOREARM, HAIR, HAND, HEAD, LEG, TRUNK, UPPER_ARM, apart, chain, parts_of_regions, parts_of_vertices, whose
from aa.view import relit

RED, BLUE, GREY, BLACK, SKIN = (0.7, 0.1, 0.1), (0.1, 0.2, 0.7), (0.55, 0.6, 0.6), (0.05, 0.04, 0.04), (0.8, 0.6, 0.5)
SIZE = 320


def scene(*layers):
    """Image (H, W, 3) and labels (H, W) of rectangles (x0, y0, x1, y1, colour, label), the later before the earlier, on grey."""
    image, label = np.full((SIZE, SIZE, 3), GREY, np.float32), np.full((SIZE, SIZE), -1)
    for x0, y0, x1, y1, colour, part in layers:
        image[y0:y1, x0:x1], label[y0:y1, x0:x1] = colour, part
    noise = np.random.default_rng(0).normal(0, 0.01, image.shape)
    return (cv2.GaussianBlur(image, (0, 0), 0.8) + noise).clip(0, 1).astype(np.float32), label


def depths(label):
    """Depth (H, W) m: the trunk behind, arms before it."""
    z = np.where(label == TRUNK, 2.0, 1.8)
    return np.where(label < 0, np.inf, z)


def test_colours_decide_where_the_mesh_is_off():
    """The mesh has the forearm a few pixels beside where the photo shows it: on both sides colours give every pixel to its part."""
    trunk = (80, 60, 240, 300, RED, TRUNK)
    image, true = scene(trunk, (130, 120, 170, 260, BLUE, FOREARM))
    _, mesh = scene(trunk, (134, 120, 174, 260, BLUE, FOREARM))
    mask = (true >= 0).astype(np.float32)
    owner = whose(image, mask, mesh, depths(mesh))
    assert (mesh != true)[true >= 0].mean() > 0.025
    assert (owner != true)[true >= 0].mean() < 0.005


def test_background_between_arm_and_body_is_nobodys():
    """The person's mask takes in a strip of wall between sleeve and shirt."""
    image, true = scene((80, 60, 180, 300, RED, TRUNK), (200, 60, 240, 300, BLUE, UPPER_ARM))
    mask = (true >= 0).astype(np.float32)
    mask[60:300, 180:200] = 1
    owner = whose(image, mask, true, depths(true))
    gap = owner[100:280, 184:196]
    assert (gap == -1).mean() > 0.95
    assert (owner[100:280, 90:170] == TRUNK).all()


def test_a_wide_sleeve_belongs_to_its_arm():
    """The photo's sleeve reaches far beyond the mesh, towards the trunk."""
    image, true = scene((80, 60, 180, 300, RED, TRUNK), (180, 60, 240, 300, BLUE, UPPER_ARM))
    mesh = true.copy()
    mesh[:, 180:200] = -1
    owner = whose(image, (true >= 0).astype(np.float32), mesh, depths(mesh))
    assert (owner[70:290, 183:200] == UPPER_ARM).mean() > 0.97


@pytest.mark.parametrize(("shirt", "taken"), [((0.85, 0.85, 0.8), True), (BLACK, False)])
def test_hair_lies_on_a_light_shirt(shirt, taken):
    """A lock falls from the head over the shirt; on a shirt as dark as the hair nobody can tell, and the shirt keeps its pixels."""
    image, mesh = scene(
        (60, 160, 260, 320, shirt, TRUNK), (120, 40, 200, 80, BLACK, HAIR), (130, 70, 190, 160, SKIN, HEAD)
    )  # fmt: skip
    image[60:220, 190:215] = BLACK
    mask = (mesh >= 0).astype(np.float32)
    mask[60:160, 190:215] = 1
    owner = whose(image, mask, mesh, np.where(mesh < 0, np.inf, 2.0))
    lock = owner[170:210, 194:210]
    assert (lock == (HAIR if taken else TRUNK)).mean() > 0.9
    assert (owner[90:140, 194:210] == HAIR).mean() > 0.9
    assert (owner[240:, 80:240] == TRUNK).all()


def test_parts_of_body_and_particles_agree():
    body = load_body()
    part = parts_of_vertices(body, stiff=False)
    left = body.v_template[:, 0] > 0
    hands = body.region_vertices("nail")
    assert set(part[hands]) == {HAND, HAND + 1}
    assert (part[hands[left[hands].numpy()]] == HAND + 1).all()
    names = np.array(["nail", "scalp", "leg", "face", "torso"])
    assert parts_of_regions(names, np.array([0.5, 0.1, -0.1, 0, 0])).tolist() == [HAND + 1, HAIR, LEG, HEAD, TRUNK]
    moved = body.action_dirs.norm(dim=-1).amax(0).numpy() > 0.005
    assert (parts_of_vertices(body)[moved] == -1).all()  # nothing hangs on the jaw


def test_what_moves_together():
    separate = apart()
    assert (separate == separate.T).all()
    assert not separate.diagonal().any()
    assert separate[TRUNK, FOREARM]
    assert not separate[TRUNK, LEG]
    assert UPPER_ARM in chain(FOREARM)
    assert separate[HAND, FOREARM]
    assert FOREARM + 1 in chain(HAND + 1)
    assert FOREARM not in chain(HAND + 1)
    assert HEAD in chain(HAIR)


def test_shadow_between_arm_and_trunk_is_taken_out_of_the_photo():
    owner = np.full((160, 160), TRUNK)
    owner[:, 100:130] = UPPER_ARM
    owner[:, 130:] = -1
    image = np.full((160, 160, 3), (0.3, 0.5, 0.5), np.float32)
    image[owner == -1] = 0.9
    image[:, 97:100] *= 0.2  # in the shadow of the arm
    image[40:60, 20:40] *= 0.2  # a print on the shirt
    out = relit(image, owner, (owner >= 0).astype(np.float32), image)
    assert np.abs(out[:, 97:100] - (0.3, 0.5, 0.5)).max() < 0.5 * np.abs(image[:, 97:100] - (0.3, 0.5, 0.5)).max()
    assert np.allclose(out[:, :80], image[:, :80])

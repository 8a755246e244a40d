"""Colours of hidden surface: round the limb, from the mirror image, and not across hems."""

import numpy as np

from aa.body import load_body
from aa.surface import continue_colours, limb_axes


def cylinder(n=6000, radius=0.12, height=0.5, shift=0.0, seed=0):
    """Points (n, 3) on an upright cylinder and their normals."""
    rng = np.random.default_rng(seed)
    angle, z = 2 * np.pi * rng.random(n), height * rng.random(n)
    normal = np.stack([np.cos(angle), np.sin(angle), np.zeros(n)], 1)
    return radius * normal + np.stack([np.full(n, shift), np.zeros(n), z], 1), normal


def fill(points, normals, colors, sure, names=None, bare=None):
    names = np.full(len(points), "leg") if names is None else names
    return continue_colours(colors, sure, points, normals, names, np.tile([0.0, 0, 1], (len(points), 1)), bare)


def test_stripes_go_round():
    """The front (y < 0) shows bands at different heights; the back gets the same bands, as sharp as that."""
    points, normals = cylinder()
    true = np.where(((points[:, 2] * 10).astype(int) % 2)[:, None] == 0, [0.8, 0.1, 0.1], [0.1, 0.1, 0.8])
    sure = (normals[:, 1] < -0.2).astype(float)
    out = fill(points, normals, np.where(sure[:, None] > 0, true, 0.5), sure)
    back = normals[:, 1] > 0.9
    inside = np.abs(points[:, 2] * 10 % 1 - 0.5) < 0.3
    assert np.abs(out - true)[back & inside].mean() < 0.15  # of a contrast of 0.7
    assert np.abs(out - true)[sure > 0].max() < 1e-6  # what is seen stays


def test_patterns_become_plain():
    """Dots on the front do not smear: the back has the mean colour, nearly without contrast."""
    points, normals = cylinder()
    angle = np.arctan2(normals[:, 1], normals[:, 0])
    dots = (np.sin(angle * 12) * np.sin(points[:, 2] * 150) > 0.6)[:, None]
    true = np.where(dots, [0.1, 0.5, 0.9], [0.8, 0.2, 0.2])
    sure = (normals[:, 1] < -0.1).astype(float)
    out = fill(points, normals, np.where(sure[:, None] > 0, true, 0), sure)
    back = normals[:, 1] > 0.5
    assert out[back].std(0).max() < 0.4 * true[sure > 0].std(0).max()
    assert np.abs(out[back].mean(0) - true[sure > 0].mean(0)).max() < 0.08


def test_mirror_image_first():
    """One leg is hidden altogether, the other one seen: the hidden one looks the same, with its sock."""
    (left, n1), (right, n2) = (cylinder(3000, shift=s) for s in (0.3, -0.3))
    right, n2 = left * [-1, 1, 1], n1 * [-1, 1, 1]
    points, normals = np.concatenate([left, right]), np.concatenate([n1, n2])
    true = np.where(points[:, 2:] < 0.2, [0.9, 0.9, 0.9], [0.6, 0.4, 0.3])
    sure = np.r_[np.ones(len(left)), np.zeros(len(right))]
    out = fill(points, normals, np.where(sure[:, None] > 0, true, 0), sure)
    assert np.abs(out - true)[len(left) :].mean() < 0.05


def test_hands_do_not_take_the_sleeve():
    """Palm seen, its back hidden: skin all round, although the sleeve beside it is seen from all sides."""
    points, normals = cylinder(height=0.4)
    names = np.where(points[:, 2] < 0.15, "hand", "forearm")
    true = np.where((names == "hand")[:, None], [0.8, 0.6, 0.5], [0.1, 0.2, 0.5])
    sure = ((names == "forearm") | (normals[:, 1] < -0.7)).astype(float)
    out = fill(points, normals, np.where(sure[:, None] > 0, true, 0), sure, names)
    hidden = (names == "hand") & (normals[:, 1] > 0)
    assert np.abs(out - true)[hidden].mean() < 0.06


def test_sleeve_ends_sharply_where_nothing_is_seen():
    """Cloth above, skin below, a hidden band between them on one side: it is the one or the other, not a mixture."""
    points, normals = cylinder()
    z = points[:, 2]
    cloth, skin = np.array([0.1, 0.4, 0.1]), np.array([0.8, 0.6, 0.5])
    sure = ((z > 0.35) | (z < 0.15)).astype(float)
    colors = np.where(z[:, None] > 0.25, cloth, skin) * (sure[:, None] > 0)
    out = fill(points, normals, colors, sure, bare=(z < 0.15))
    middle = sure == 0
    near = np.minimum(np.abs(out - cloth).max(1), np.abs(out - skin).max(1))[middle]
    assert np.median(near) < 0.1
    plain = fill(points, normals, colors, sure)
    assert np.median(np.minimum(np.abs(plain - cloth).max(1), np.abs(plain - skin).max(1))[middle]) > np.median(near)


def test_axes_follow_the_limbs():
    body = load_body()
    for region, joints in (("forearm", ("lowerarm01.L", "wrist.L")), ("leg", ("upperleg01.L", "foot.L"))):
        v = body.v_template[body.region_vertices(region)].numpy()
        v = v[v[:, 0] > 0]
        axes = limb_axes(body, v, np.full(len(v), region))
        bone = (body.joint_template[body.joint(joints[1])] - body.joint_template[body.joint(joints[0])]).numpy()
        assert np.allclose(axes, bone / np.linalg.norm(bone), atol=1e-4)
    shoulder = float(body.joint_template[body.joint("upperarm01.L"), 2])
    chest = limb_axes(body, np.array([[0.0, -0.1, shoulder]]), np.array(["torso"]))[0]
    assert chest[2] > 0.7
    assert chest[1] < -0.3  # the collar is lower in front

"""Skinning by dual quaternions, and an avatar that changes its posture."""

from types import SimpleNamespace

import pytest
import torch

from aa.body import load_body, rotvec_to_matrix
from aa.gestures import at_ease, posture
from aa.posing import inverse, repose, rigid_motions, rotate, shaped, skin, unpose

RAISED = ((0.3, -0.3, -1.0), (0.1, -0.8, 0.6), 0.4)  # forearms up before the chest
SHOULDER = ((1.0, 0.0, 0.0), (1.0, -0.2, 0.0), 0.0)  # arms to the sides


@pytest.fixture(scope="module")
def body():
    return load_body()


def rotvecs(body, arm):
    return torch.as_tensor(posture(body, arm), dtype=torch.float32)


@pytest.fixture(scope="module")
def someone(body):
    """What an avatar keeps of its posture: here of a body with raised forearms, longer arms and a displaced surface."""
    J = len(body.parents)
    stretch = 0.02 * torch.randn(J, 3, generator=torch.Generator().manual_seed(1)) * (torch.arange(J) > 5)[:, None]
    pose = rotvecs(body, RAISED)
    _, v, _ = skin(body, torch.zeros(4), pose, None, stretch, torch.tensor(0.1))
    v = v + 0.01 * torch.sin(40 * v)
    joints = shaped(body, torch.zeros(4), None, torch.tensor(0.1))[1]
    return SimpleNamespace(vertices=v, posture=pose, joints=joints, stretch=stretch)


def test_skin_agrees_with_the_body_at_rest_and_in_stiff_parts(body):
    J = len(body.parents)
    none = torch.zeros(J, 3), None, torch.zeros(J, 3), torch.zeros(())
    torch.testing.assert_close(skin(body, None, *none)[1], body.v_template, atol=1e-5, rtol=0)
    pose = at_ease(body)
    v, linear = skin(body, None, pose, None, torch.zeros(J, 3), torch.zeros(()))[1], body.pose(rotvecs=pose)[0]
    stiff = body.weights.amax(1) > 0.99
    torch.testing.assert_close(v[stiff], linear[stiff], atol=2e-3, rtol=0)
    assert (v - linear).norm(dim=1).max() < 0.02


def test_skin_keeps_the_girth_of_a_twisted_forearm(body):
    """Linear blending thins a bone that is twisted by half a turn; a blend of rigid motions does not."""
    pose = torch.zeros(len(body.parents), 3)
    wrist, elbow = (body.joint_template[body.joint(n)] for n in ("wrist.L", "lowerarm01.L"))
    bone = torch.nn.functional.normalize(wrist - elbow, dim=0)
    pose[body.joint("wrist.L")] = 3.0 * bone
    v = rotate(*(lambda q, s: (q, body.v_template))(*rigid_motions(body, body.joint_template, torch.zeros_like(pose), pose)[:2]))
    shift = rigid_motions(body, body.joint_template, torch.zeros_like(pose), pose)[1]
    v, linear = v + shift, body.pose(rotvecs=pose)[0]
    ring = body.weights[:, body.joint("wrist.L")].sub(0.5).abs() < 0.15
    girth = lambda x: (x[ring] - wrist - ((x[ring] - wrist) @ bone)[:, None] * bone).norm(dim=1)  # noqa: E731
    assert (girth(v) / girth(body.v_template)).median() > 0.95
    assert (girth(linear) / girth(body.v_template)).median() < 0.8


def test_the_photos_posture_is_the_identity(body, someone):
    motion = repose(someone, body, someone.posture)
    assert motion.means.abs().max() < 1e-5
    assert motion.rotvecs.abs().max() < 1e-3


def test_unposing_is_the_inverse_of_posing(body, someone):
    rest = unpose(someone, body)
    arms = body.region_vertices("hand")
    assert (rest[arms, 2] < someone.vertices[arms, 2].min() + 0.3).all()
    quats, shifts, _ = rigid_motions(body, someone.joints, someone.stretch, someone.posture)
    torch.testing.assert_close(rotate(quats, rest) + shifts, someone.vertices, atol=1e-5, rtol=0)
    torch.testing.assert_close(rotate(inverse(quats), rotate(quats, rest)), rest, atol=1e-5, rtol=0)


def test_at_ease_the_arms_hang_and_at_shoulder_height_they_do_not(body, someone):
    ease, raised = (repose(someone, body, r).means[0] + someone.vertices for r in (at_ease(body), rotvecs(body, SHOULDER)))
    shoulder = float(someone.vertices[body.region_vertices("upperarm"), 2].max())
    for sign in (-1, 1):
        hand = body.region_vertices("hand")
        hand = hand[body.v_template[hand, 0] * sign > 0]
        assert ease[hand, 2].max() < shoulder - 0.4
        assert (raised[hand, 2] - shoulder).abs().max() < 0.25
        assert (raised[hand, 0] * sign).min() > 0.5
    middle = body.region_vertices("face")
    torch.testing.assert_close(ease[middle], someone.vertices[middle], atol=1e-4, rtol=0)


def test_triangles_keep_their_size_from_posture_to_posture(body, someone):
    """No tears: where the skin bends it may stretch, but not by much more than skin does."""
    before, after = someone.vertices, repose(someone, body, rotvecs(body, SHOULDER)).means[0] + someone.vertices
    edge = lambda v: (v[body.faces[:, 0]] - v[body.faces[:, 1]]).norm(dim=1)  # noqa: E731
    parts = body.region_faces("torso", "upperarm", "forearm", "hand")
    ratio = (edge(after) / edge(before))[parts]
    assert ratio.quantile(0.99) < 2.2
    assert ratio.quantile(0.01) > 0.4


def test_rotations_do_not_jump_between_neighbours(body, someone):
    r = repose(someone, body, at_ease(body)).rotvecs[0]
    step = (r[body.faces[:, 0]] - r[body.faces[:, 1]]).norm(dim=1)
    assert step[body.region_faces("upperarm", "forearm", "hand")].max() < 1.5


def test_a_larger_hand_is_larger_about_its_wrist(body):
    v, joints = shaped(body, None, None, torch.tensor(0.2))
    wrist = body.joint("wrist.L")
    torch.testing.assert_close(joints[wrist], body.joint_template[wrist])
    tip = body.joint("finger3-3.L")
    reach = lambda j: (j[tip] - j[wrist]).norm()  # noqa: E731
    assert float(reach(joints) / reach(body.joint_template)) == pytest.approx(1.2214, abs=1e-3)
    hand = [j for j, n in enumerate(body.joint_names) if n.startswith(("wrist", "finger", "metacarpal"))]
    still = body.weights[:, hand].sum(1) == 0
    assert torch.equal(v[still], body.v_template[still])


def test_rotate_is_rotation(body):
    r = torch.tensor([0.3, -0.8, 0.4])
    from aa.body import rotvec_to_quat

    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotate(rotvec_to_quat(r).expand(5, 4), x), x @ rotvec_to_matrix(r).T)

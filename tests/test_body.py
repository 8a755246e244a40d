"""The compact body: it loads fast, its kinematics are exact rotations about joints, its labels make sense."""

import time

import pytest
import torch

from aa.body import load_body, matrix_to_quat, quat_multiply, quat_to_rotvec, rotvec_to_matrix


@pytest.fixture(scope="module")
def body():
    return load_body()


def test_loads_quickly_and_is_small(body):
    from aa.body import ASSETS

    start = time.perf_counter()
    load_body()
    print(f"load {time.perf_counter() - start:.3f} s")
    assert (ASSETS / "body.safetensors").stat().st_size < 15e6
    assert len(body.action_names) == 52
    assert body.v_template.shape[0] == body.weights.shape[0]
    torch.testing.assert_close(body.weights.sum(1), torch.ones(len(body.weights)))


def test_rest_pose_is_the_identity(body):
    vertices, rotations = body.pose()
    torch.testing.assert_close(vertices, body.v_template, atol=1e-5, rtol=0)
    torch.testing.assert_close(rotations, torch.eye(3).expand_as(rotations), atol=1e-5, rtol=0)


def test_rotating_the_root_turns_everything_about_it(body):
    rotvecs = torch.zeros(len(body.parents), 3)
    rotvecs[0] = torch.tensor([0.2, -0.4, 0.9])
    vertices, _ = body.pose(rotvecs=rotvecs)
    R, pivot = rotvec_to_matrix(rotvecs[0]), body.joint_template[0]
    torch.testing.assert_close(vertices, (body.v_template - pivot) @ R.T + pivot, atol=1e-5, rtol=0)


def test_elbow_moves_only_what_hangs_on_it(body):
    rotvecs = torch.zeros(len(body.parents), 3)
    rotvecs[body.joint("lowerarm01.L")] = torch.tensor([-1.0, 0, 0])
    vertices, _ = body.pose(rotvecs=rotvecs)
    moved = (vertices - body.v_template).norm(dim=1)
    right = body.v_template[:, 0] < -0.05
    assert moved[right].max() < 1e-6
    hand = body.region_vertices("hand")
    hand = hand[body.v_template[hand, 0] > 0]
    assert moved[hand].min() > 0.05
    # A forearm keeps its length: distances within the hand do not change.
    a, b = hand[0], hand[-1]
    torch.testing.assert_close(
        (vertices[a] - vertices[b]).norm(), (body.v_template[a] - body.v_template[b]).norm(), rtol=0.02, atol=0
    )


def test_jaw_opens_the_lips_and_leaves_the_scalp(body):
    actions = torch.zeros(52)
    actions[body.action("jawOpen")] = 1.0
    delta = (body.rest(actions=actions) - body.v_template).norm(dim=1)
    assert delta[body.region_vertices("lips")].max() > 0.01
    assert delta[body.region_vertices("foot")].max() == 0


def test_pose_is_differentiable_and_batches(body):
    small = body.select(body.region_vertices("hand"))
    rotvecs = torch.zeros(2, len(body.parents), 3, requires_grad=True)
    vertices, _ = small.pose(torch.zeros(2, 5), rotvecs, torch.zeros(2, 52), torch.zeros(2, 3))
    vertices.square().sum().backward()
    assert torch.isfinite(rotvecs.grad).all()
    assert rotvecs.grad.abs().max() > 0


def test_rotation_helpers_agree():
    generator = torch.Generator().manual_seed(0)
    rotvec = torch.randn(50, 3, generator=generator)
    rotvec = rotvec / rotvec.norm(dim=1, keepdim=True) * torch.rand(50, 1, generator=generator) * 3.1
    quat = matrix_to_quat(rotvec_to_matrix(rotvec))
    torch.testing.assert_close(quat_to_rotvec(quat), rotvec, atol=1e-4, rtol=0)
    twice = quat_multiply(quat, quat)
    torch.testing.assert_close(
        rotvec_to_matrix(quat_to_rotvec(twice)), rotvec_to_matrix(rotvec) @ rotvec_to_matrix(rotvec), atol=1e-4, rtol=0
    )


def test_wrong_pose_shape_says_so(body):
    with pytest.raises(ValueError, match="rotvecs must be"):
        body.pose(rotvecs=torch.zeros(3, 3))

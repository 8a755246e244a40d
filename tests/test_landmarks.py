"""Landmarks of a posed body: places that anatomy dictates, gradients, and the reduced body."""

import pytest
import torch

from aa.body import load_body
from aa.landmarks import BOUNDARY, HAND_JOINTS, load_landmarks, posed_joints


@pytest.fixture(scope="module")
def body():
    return load_body()


@pytest.fixture(scope="module")
def marks(body):
    return load_landmarks(body)


def test_most_face_landmarks_are_known(marks):
    assert marks.reliable.sum() > 440
    assert marks.spread[marks.reliable].median() < 2.5  # mm
    assert len(set(BOUNDARY)) == 36


def test_face_landmarks_lie_where_anatomy_says(body, marks):
    face = marks.face(body.rest())
    left, right = face[473], face[468]  # pupils
    for point, joint in ((left, "eye.L"), (right, "eye.R")):
        gap = point - body.joint_template[body.joint(joint)]
        assert gap[[0, 2]].norm() < 0.004
        assert gap[1] < -0.008  # on the front of the eyeball
    assert abs(face[1, 0]) < 0.004  # tip of the nose, in the middle and foremost
    assert face[1, 1] < face[[33, 263, 61, 291], 1].min() - 0.01
    assert face[10, 2] > left[2] > face[13, 2] > face[14, 2] > face[152, 2]  # forehead, eyes, upper and lower lip, chin


def test_landmarks_follow_the_facial_actions(body, marks):
    actions = torch.zeros(len(body.action_names))
    actions[body.action("jawOpen")] = 1.0
    move = marks.face(body.rest(None, actions)) - marks.face(body.rest())
    assert move[14, 2] < -0.01  # the lower lip sinks
    assert abs(move[13, 2]) < 0.003  # the upper stays


def test_hands_and_pose_have_sides(body, marks):
    v, joints = body.rest(), posed_joints(body)
    pose = marks.pose(v, joints)
    assert (pose[[11, 13, 15, 23, 25, 27, 29, 31, 7], 0] > 0).all()
    torch.testing.assert_close(pose[11::2] * torch.tensor([-1, 1, 1]), pose[12::2], atol=0.004, rtol=0)
    assert pose[31, 1] < pose[27, 1] < pose[29, 1]  # toes before the ankle, heel behind
    for side, joint in (("left", "wrist.L"), ("right", "wrist.R")):
        hand = marks.hand(v, joints, side)
        assert hand.shape == (len(HAND_JOINTS), 3)
        torch.testing.assert_close(hand[0], body.joint_template[body.joint(joint)])
        for tip in (4, 8, 12, 16, 20):  # beyond the last joint, in line with the finger
            step, last = hand[tip] - hand[tip - 1], hand[tip - 1] - hand[tip - 2]
            assert 0.008 < step.norm() < 0.04
            assert torch.nn.functional.cosine_similarity(step, last, 0) > 0.8


def test_batches_joints_and_gradients(body, marks):
    rotvecs = torch.zeros(3, len(body.parents), 3)
    rotvecs[1, body.joint("lowerarm01.L"), 0] = -1.0
    rotvecs.requires_grad_()
    betas, shift = torch.zeros(48), torch.tensor([0.0, 0.0, 1.0])
    v, _ = body.pose(betas, rotvecs, None, shift)
    joints = posed_joints(body, betas, rotvecs, shift)
    pose = marks.pose(v, joints)
    assert pose.shape == (3, 33, 3)
    assert (pose[1, 15] - pose[0, 15]).norm() > 0.1  # the wrist moves with the elbow
    torch.testing.assert_close(pose[1, 13], pose[0, 13])  # the elbow stays
    pose[:, 15].sum().backward()
    assert rotvecs.grad.abs().sum() > 0


def test_a_reduced_body_gives_the_same_points(body, marks):
    kept = torch.unique(torch.cat([marks.vertices(), torch.arange(0, len(body.v_template), 50)]))
    small, few = body.select(kept), marks.select(kept)
    rotvecs = torch.zeros(len(body.parents), 3)
    rotvecs[body.joint("head"), 2] = 0.4
    v, joints = body.pose(None, rotvecs)[0], posed_joints(body, None, rotvecs)
    w = small.pose(None, rotvecs)[0]
    torch.testing.assert_close(few.face(w), marks.face(v))
    torch.testing.assert_close(few.pose(w, joints), marks.pose(v, joints))
    torch.testing.assert_close(few.hand(w, joints, "right"), marks.hand(v, joints, "right"))
    with pytest.raises(ValueError, match="kept"):
        marks.select(kept[::2])
    with pytest.raises(ValueError, match="vertices must be"):
        few.face(v)

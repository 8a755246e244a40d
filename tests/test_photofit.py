"""The fit recovers a body whose landmarks it is given: camera, arms, hands, also where the first guess is turned away."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aa.anatomy import first_posture, freedom
from aa.body import load_body
from aa.gaussians import intrinsics
from aa.gestures import at_ease, posture
from aa.landmarks import load_landmarks
from aa.photofit import AXES, FOCAL, SHOULDER, fit_body, outside, sample_map
from aa.posing import skin

SIZE = 512
ARM = ((0.3, -0.1, -1.0), (0.2, -1.0, 0.35), -1.2)  # forearms before the body, palms up


@pytest.fixture(scope="module")
def body():
    return load_body()


@pytest.fixture(scope="module")
def acted(body):
    """Landmarks, as detection would give them, of the mean body in a known posture before a known camera."""
    rotvecs = torch.as_tensor(posture(body, ARM), dtype=torch.float32)
    J = len(body.parents)
    joints, v, _ = skin(body, None, rotvecs, None, torch.zeros(J, 3), torch.zeros(()))
    marks, K = load_landmarks(body), intrinsics(FOCAL * SIZE, SIZE, SIZE)
    viewmat = torch.eye(4)
    viewmat[:3, :3] = AXES
    viewmat[:3, 3] = torch.tensor([0.0, 0.0, 1.6]) - AXES @ torch.tensor([0.0, 0.0, float(v[:, 2].max()) - 0.45])

    def project(x):
        c = x @ viewmat[:3, :3].T + viewmat[:3, 3]
        p = c @ K.T
        return (p[:, :2] / p[:, 2:]).numpy()

    pose = marks.pose(v, joints)
    pose[11:13, 2] += SHOULDER
    pose2d = project(pose)
    visible = ((pose2d > 0) & (pose2d < SIZE)).all(1).astype(np.float32)
    hands = {s: marks.hand(v, joints, s) for s in ("left", "right")}
    face = project(marks.face(v))
    person = SimpleNamespace(
        image=np.zeros((SIZE, SIZE, 3), np.uint8), mask=np.ones((SIZE, SIZE), np.float32), face=face, pose2d=pose2d,
        pose_visibility=visible, pose3d=pose.numpy(), hands={s: (project(h), h.numpy()) for s, h in hands.items()},
        eye_distance=float(np.linalg.norm(face[473] - face[468])),
    )  # fmt: skip
    return SimpleNamespace(person=person, rotvecs=rotvecs, joints=joints, viewmat=viewmat, hands=hands)


def test_first_posture_turns_the_palms(body, acted):
    """The guess from 3D landmarks already points forearms and palms the right way, from arms at ease."""
    guess = first_posture(body, load_landmarks(body), acted.person)
    J = len(body.parents)
    for rotvecs, most in ((guess, 0.05), (at_ease(body), None)):
        joints = skin(body, None, rotvecs, None, torch.zeros(J, 3), torch.zeros(()))[0]
        gap = (joints - acted.joints)[[body.joint(f"finger{f}-1.{s}") for f in (2, 5) for s in "LR"]].norm(dim=1)
        assert gap.max() < most if most else gap.min() > 0.2


def test_fit_finds_posture_and_camera(body, acted):
    fit = fit_body(body, acted.person, 150)
    assert fit.face_error < 1.0
    joints = skin(body, fit.betas, fit.rotvecs, fit.actions, fit.stretch, fit.hands)[0]
    seen = lambda x, view: x @ view[:3, :3].T + view[:3, 3]  # noqa: E731
    names = [f"{n}.{s}" for n in ("upperarm01", "lowerarm01", "wrist", "finger2-1", "finger3-3", "finger5-1") for s in "LR"]
    index = [body.joint(n) for n in names]
    gap = seen(joints, fit.viewmat)[index] - seen(acted.joints, acted.viewmat)[index]
    assert gap[:, :2].norm(dim=1).max() < 0.02
    assert gap.norm(dim=1).mean() < 0.05


def test_a_hand_that_was_not_found_is_relaxed(body, acted):
    person = SimpleNamespace(**{**vars(acted.person), "hands": {"left": None, "right": None}})
    fit = fit_body(body, person, 60)
    fingers = [j for j, n in enumerate(body.joint_names) if n.startswith("finger") and not n.startswith("finger1")]
    assert (fit.rotvecs[fingers] - at_ease(body)[fingers]).norm(dim=1).max() < 0.3


def test_axes_are_frames_and_limits_hold_the_rest_pose(body):
    free = freedom(body)
    eye = free.axes.mT @ free.axes
    torch.testing.assert_close(eye, torch.eye(3).expand_as(eye), atol=1e-4, rtol=0)
    assert (free.low <= 0).all()
    assert (free.high >= 0).all()
    bend = (free.axes[..., 0] * at_ease(body)).sum(1)
    fingers = [j for j, n in enumerate(body.joint_names) if n.startswith(("finger2", "finger3", "finger4", "finger5"))]
    assert (bend[fingers] > 0).all()  # at ease they are curled, on both sides


def test_distance_outside_the_person():
    mask = np.zeros((200, 300), np.float32)
    mask[50:150, 100:200] = 1
    far = outside(mask)
    points = torch.tensor([[150.0, 100.0], [50.0, 100.0], [250.0, 100.0]], requires_grad=True)
    d = sample_map(far, points, torch.tensor([300.0, 200.0]))
    assert d[0] == 0
    assert d[1:].tolist() == pytest.approx([50, 50], abs=4)
    d.sum().backward()
    assert points.grad[1, 0] < 0 < points.grad[2, 0]

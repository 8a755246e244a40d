"""How much of a gesture a person gets, by where their arms are in the photo."""

from types import SimpleNamespace

import pytest
import torch

from aa.body import load_body
from aa.gestures import at_ease, posture
from aa.retarget import LEAST_GAIN, MOST_GAIN, MOUTH, gesture_gain, retarget
from aa.transfer import motion_from_rest
from aa.visemes import lip_aperture

RAISED = ((0.3, -0.3, -1.0), (0.1, -0.8, 0.6), 0.4)


@pytest.fixture(scope="module")
def body():
    return load_body()


def someone(body, rotvecs):
    ease = body.pose(rotvecs=at_ease(body))[1]
    vertices, rotations = body.pose(rotvecs=rotvecs)
    return SimpleNamespace(vertices=vertices, turn=rotations @ torch.linalg.inv(ease))


def test_arms_at_ease_get_more_than_raised_ones_and_the_rest_all(body):
    hands = body.region_vertices("hand")
    for rotvecs, gain in ((at_ease(body), MOST_GAIN), (torch.as_tensor(posture(body, RAISED)).float(), LEAST_GAIN)):
        share = gesture_gain(body, someone(body, rotvecs))
        torch.testing.assert_close(share[hands], torch.full((len(hands),), gain), atol=0.02, rtol=0)
        assert (share[body.region_vertices("face", "leg")] == 1).all()


def test_hands_go_with_their_forearms_and_bend_at_the_wrist(body):
    start, moved = at_ease(body), at_ease(body)
    moved[body.joint("lowerarm01.L"), 0] -= 0.8
    moved[body.joint("wrist.L"), 1] += 0.5
    (v0, R0), (v1, R1) = body.pose(rotvecs=start), body.pose(rotvecs=moved)
    motion = motion_from_rest(v1[None], R1[None], v0, R0)
    out = retarget(body, someone(body, start))(motion)
    place = v0 + out.means[0]
    edges = body.faces[body.region_faces("hand", "forearm")][:, :2].T
    length = lambda v: (v[edges[0]] - v[edges[1]]).norm(dim=1)  # noqa: E731
    ratio = length(place) / length(v0)
    assert ratio.quantile(0.01) > 0.5
    assert ratio.quantile(0.99) < 1.7
    most = [body.weights[:, body.joint(n)].topk(20).indices for n in ("finger3-1.L", "lowerarm02.L")]
    hand, fore = (out.rotvecs[0, ids].mean(0) for ids in most)
    assert (hand - fore).norm() > 0.2


def test_a_closed_mouth_stays_closed_and_an_open_one_opens_wider(body):
    start = at_ease(body)
    v0, R0 = body.pose(rotvecs=start)
    closed, open_ = torch.zeros(2, len(body.action_names))
    closed[body.action("jawOpen")], closed[body.action("mouthClose")] = 0.2, 0.204
    open_[body.action("jawOpen")] = 0.2
    turned = start.clone()
    turned[body.joint("head"), 2] += 0.4
    v, R = body.pose(rotvecs=torch.stack([start, start, turned]), actions=torch.stack([closed, open_, open_]))
    out = v0 + retarget(body, someone(body, start))(motion_from_rest(v, R, v0, R0)).means
    before, after = 1000 * lip_aperture(v), 1000 * lip_aperture(out)
    assert after[0] < before[0] + 1
    torch.testing.assert_close(after[1:] / before[1:], torch.full((2,), MOUTH), atol=0.15 * MOUTH, rtol=0)

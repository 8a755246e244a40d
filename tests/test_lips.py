"""The neutral mouth of a fitted person shuts exactly, whatever the photo's mouth did."""

import pytest
import torch

from aa.body import load_body, load_people
from aa.lips import close_lips, lip_seam
from aa.visemes import lip_aperture


@pytest.fixture(scope="module")
def body():
    return load_body()


def test_the_seam_runs_from_corner_to_corner(body):
    upper, lower = lip_seam(body)
    assert len(upper) >= 12
    x = body.v_template[upper, 0]
    assert x.min() < -0.012
    assert x.max() > 0.012
    assert (body.v_template[upper] - body.v_template[lower]).norm(dim=1).max() < 0.003


@pytest.mark.parametrize("names", [("jawOpen",), ("mouthPressLeft", "mouthPressRight"), ("mouthRollLower", "mouthShrugLower")])
def test_an_open_or_crossed_mouth_is_shut_and_then_opens_as_far_as_it_should(body, names):
    betas = load_people()[0][7]
    wrong = torch.zeros(52)
    for name in names:
        wrong[body.action(name)] = 0.12
    rotvecs = torch.zeros(len(body.parents), 3)
    rotvecs[body.joint("head")] = torch.tensor([0.1, 0.05, 0.4])
    vertices, rotations = body.pose(betas, rotvecs, wrong)
    shut = close_lips(body, vertices, rotations)
    upper, lower = lip_seam(body)
    up = rotations[upper, :, 2].mean(0)
    gap = (shut[upper] - shut[lower]) @ up - (body.v_template[upper] - body.v_template[lower])[:, 2]
    before = (vertices[upper] - vertices[lower]) @ up - (body.v_template[upper] - body.v_template[lower])[:, 2]
    assert gap.abs().mean() < max(0.35 * before.abs().mean(), 0.0003)
    assert lip_aperture(shut) < 0.001
    open_ = body.pose(betas, rotvecs, actions=torch.eye(52)[body.action("jawOpen")] * 0.4)[0] - body.pose(betas, rotvecs)[0]
    neutral = body.pose(betas, rotvecs)[0]
    assert lip_aperture(shut + open_) == pytest.approx(float(lip_aperture(neutral + open_)), abs=0.0015)


def test_a_good_mouth_and_the_rest_of_the_body_stay(body):
    vertices, rotations = body.pose()
    torch.testing.assert_close(close_lips(body, vertices, rotations), vertices, atol=1e-6, rtol=0)
    opened = body.rest(actions=torch.eye(52)[body.action("jawOpen")] * 0.2)
    moved = (close_lips(body, opened, rotations) - opened).norm(dim=1)
    assert moved[body.region_vertices("foot", "hand", "eye")].max() < 1e-5

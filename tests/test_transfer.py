"""Motion carried from one body to another: exact on itself, far better than raw offsets on others."""

import pytest
import torch

from aa.body import load_body, load_people
from aa.gaussians import load_layout
from aa.transfer import Transfer, motion_from_rest

FRAMES = 4


@pytest.fixture(scope="module")
def body():
    return load_body()


@pytest.fixture(scope="module")
def gesture(body):
    rotvecs, actions = torch.zeros(FRAMES, len(body.parents), 3), torch.zeros(FRAMES, 52)
    step = torch.linspace(0, 1, FRAMES)[:, None]
    rotvecs[:, body.joint("lowerarm01.R")] = torch.tensor([-1.3, 0, 0]) * step
    rotvecs[:, body.joint("head")] = torch.tensor([0.2, 0, 0.4]) * step
    actions[:, body.action("jawOpen")] = step[:, 0]
    return rotvecs, actions


def posed(body, betas, gesture):
    vertices, rotations = body.pose(betas.expand(FRAMES, -1), *gesture)
    return vertices, rotations


def test_exact_on_itself_and_at_rest(body, gesture):
    mean = torch.zeros(48)
    rest, eye = body.pose(mean)
    motion = motion_from_rest(*posed(body, mean, gesture), rest, eye)
    carried = Transfer(body, rest, rest)(motion)
    torch.testing.assert_close(carried.means, motion.means, atol=5e-4, rtol=0)
    still = Transfer(body, rest, body.rest(load_people()[0][3]))(motion[:1])
    assert still.means.abs().max() < 1e-3


@pytest.mark.parametrize("person", [3, 50])
def test_beats_raw_offsets_on_another_body(body, gesture, person):
    mean, betas = torch.zeros(48), load_people()[0][person]
    rest, eye = body.pose(mean)
    motion = motion_from_rest(*posed(body, mean, gesture), rest, eye)
    target = body.rest(betas)
    truth = posed(body, betas, gesture)[0][-1] - target
    hands = body.region_vertices("hand", "forearm")
    carried = Transfer(body, rest, target)(motion).means[-1]
    error = (carried - truth)[hands].norm(dim=1).mean()
    raw = (motion.means[-1] - truth)[hands].norm(dim=1).mean()
    print(f"hands: transfer {1000 * error:.1f} mm, raw offsets {1000 * raw:.1f} mm")
    assert error < 0.6 * raw


def test_turned_rest_keeps_the_gesture_in_its_own_frame(body):
    """A jaw that opens on a head turned in the photo opens along that head, not along the source's."""
    actions = torch.zeros(1, 52)
    actions[:, body.action("jawOpen")] = 1.0
    rest, eye = body.pose()
    vertices, rotations = body.pose(actions=actions)
    rotvecs = torch.zeros(len(body.parents), 3)
    rotvecs[body.joint("head")] = torch.tensor([0.0, 0.0, 0.6])
    target, turn = body.pose(rotvecs=rotvecs)
    truth = body.pose(rotvecs=rotvecs[None], actions=actions)[0] - target
    lips = body.region_vertices("lips")
    carried = Transfer(body, rest, target, turn)(motion_from_rest(vertices, rotations, rest, eye)).means
    assert (carried - truth)[0, lips].norm(dim=1).max() < 2e-3


def test_particles_read_motion_by_barycentric_weights(body, gesture):
    layout = load_layout(body, 10_000)
    mean = torch.zeros(48)
    rest, eye = body.pose(mean)
    vertices, rotations = posed(body, mean, gesture)
    motion = motion_from_rest(vertices, rotations, rest, eye).read(layout)
    means, quats = motion.apply(layout.gaussians(rest, torch.zeros(len(layout), 3)))
    torch.testing.assert_close(means, layout.place(vertices), atol=1e-5, rtol=0)
    torch.testing.assert_close(quats.norm(dim=-1), torch.ones(FRAMES, len(layout)))

"""The plain figure that notebooks draw motion with: in view, alive, and the same however many frames are asked for."""

import numpy as np
import pytest
import torch

from aa.body import load_body
from aa.mannequin import VIEWS, Mannequin
from aa.motion_data import Stage
from aa.performer import at_ease
from aa.transfer import motion_from_rest


@pytest.fixture(scope="module")
def stage():
    return Stage(load_body())


@pytest.fixture(scope="module")
def figure(stage):
    return Mannequin(stage.body, stage.rest, 10_000)


@pytest.fixture(scope="module")
def motion(stage):
    """At ease, then the jaw down and the right upper arm turned."""
    body = stage.body
    actions = torch.zeros(2, len(body.action_names))
    actions[1, body.action("jawOpen")] = 0.7
    turns = at_ease(body).to(body.v_template).expand(2, -1, -1).clone()
    turns[1, body.joint("upperarm01.R")] += torch.tensor([0.9, 0.0, 0.0])
    return motion_from_rest(*body.pose(None, turns, actions), stage.rest, stage.turns)


@pytest.mark.parametrize("view", VIEWS)
def test_the_person_fills_the_view(figure, motion, view):
    picture = figure.draw(motion, 0, view, 120)
    assert picture.dtype == np.uint8
    assert picture.shape[0] == 120
    assert picture.shape[1] % 2 == 0
    drawn = (picture < 250).any(-1)
    assert 0.15 < drawn.mean() < 0.95
    columns = np.flatnonzero(drawn.any(0))
    assert abs(columns.mean() / picture.shape[1] - 0.5) < 0.1  # in the middle


def test_a_mouth_that_opens_and_an_arm_that_rises_are_seen(figure, motion):
    change = lambda view: np.abs(np.subtract(*(figure.draw(motion, t, view, 120).astype(int) for t in (0, 1)))).mean()  # noqa: E731
    assert change("mouth") > 4
    assert change("body") > 1


def test_a_film_is_its_frames(figure, motion):
    film = figure.film(motion, view="mouth", height=60)
    assert film.shape[0] == 2
    assert np.array_equal(film[1], figure.draw(motion, 1, "mouth", 60))
    assert np.array_equal(figure.film(motion, [1], "mouth", 60)[0], film[1])

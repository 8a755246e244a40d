"""The sides of the face: polluted skin seen aslant gives way to skin, a beard seen aslant stays one."""

import numpy as np
import pytest

from aa.sides import nearby, smooth_sides

SKIN, BEARD = np.array([0.8, 0.6, 0.5]), np.array([0.45, 0.47, 0.5])


@pytest.fixture
def cheek():
    """A cheek of 10 x 10 cm as points (n, 3), the scalp above and an ear beside it, all of skin; sure up to 7 cm to the side."""
    x, z = (a.ravel() for a in np.meshgrid(np.linspace(0, 0.1, 41), np.linspace(0, 0.1, 41)))
    rest = np.stack([x, 0 * x, z], 1)
    rest = np.r_[rest, [[0.05, 0, 0.2]] * 10, [[0.12, 0, 0.05]] * 10]
    names = np.array(["face"] * len(x) + ["scalp"] * 10 + ["ear"] * 10)
    rng = np.random.default_rng(0)
    colors = SKIN + 0.01 * rng.standard_normal((len(rest), 3))
    sure = np.where(rest[:, 0] < 0.07, 1.0, 0.1)
    return rest, names, np.zeros(len(rest), bool), colors, sure


def test_specks_seen_aslant_become_skin(cheek):
    rest, names, folds, colors, sure = cheek
    speck = (sure < 0.5) & (names == "face") & (np.arange(len(rest)) % 4 == 0)
    colors[speck] = (0.2, 0.1, 0.3)
    after = smooth_sides(rest, names, folds, colors, sure)
    assert np.abs(after[speck] - SKIN).max() < 0.1
    assert np.array_equal(after[sure > 0.5], colors[sure > 0.5])


def test_a_beard_stays_where_it_is_all_there_is(cheek):
    rest, names, folds, colors, sure = cheek
    beard = (names == "face") & (rest[:, 2] < 0.04)
    colors[beard] = BEARD
    inside = beard & (rest[:, 2] < 0.025) & (sure < 0.5)
    after = smooth_sides(rest, names, folds, colors, sure)
    assert np.abs(after[inside] - BEARD).max() < 0.05
    above = (names == "face") & (rest[:, 2] > 0.07)
    assert np.abs(after[above] - SKIN).max() < 0.1


def test_nearby_is_a_mean_of_what_is_near():
    places, values = np.array([[0.0, 0, 0], [1.0, 0, 0]]), np.array([[0.0], [1.0]])
    middle, left = nearby(np.array([[0.5, 0, 0], [0.001, 0, 0]]), places, values, np.ones(2))[:, 0]
    assert middle == pytest.approx(0.5)
    assert left < 0.01

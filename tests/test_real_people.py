"""Judging against real people: the file's own offset, lags, recordings with a transcript."""

import numpy as np
import pytest

from aa.body import load_body
from aa.motion import MotionModel
from aa.motion_data import Recipe, Stage, sound_of
from aa.real_people import LATE, apertures, heard_shut, lag_curve, own_offset, recorded


@pytest.fixture(scope="module")
def speech():
    return sound_of(Recipe("speech", ("Maybe Bob bought a big bag of apples. Peter may help.",), "joe", seed=4))


def test_own_offset_is_found_from_p_b_m():
    """A picture that runs three frames ahead of the sound, whatever else the mouth does."""
    rng = np.random.default_rng(0)
    at = np.arange(15, 480, 31)
    gap = 1 + 0.3 * rng.standard_normal(500)
    for d, depth in ((-1, 0.4), (0, 0.0), (1, 0.4)):
        gap[at + d] *= depth
    shut = np.zeros(500)
    shut[at + 3] = 0.9  # what the recogniser says, late by LATE in truth
    offset, depth = own_offset(gap, shut)
    assert offset == pytest.approx(3 - LATE, abs=0.3)
    assert depth < 0.1
    assert own_offset(gap, np.zeros(500))[0] is None, "nothing is said of a file in which no p, b, m is heard"


def test_lag_is_positive_where_the_made_mouth_comes_late():
    t = np.arange(200) / 4
    curve = lag_curve(np.sin(t - 0.5), np.sin(t))
    assert max(curve, key=curve.get) == 2
    assert curve[2] == pytest.approx(1, abs=1e-3)


def test_the_recogniser_hears_p_b_m_where_they_are(speech):
    shut = heard_shut(speech.audio)
    assert shut.min() >= 0
    assert shut.max() <= 1.001
    assert 4 <= shut.sum() <= 30


def test_a_recording_is_judged_at_its_own_phonemes(speech):
    stage = Stage(load_body())
    out = recorded(MotionModel.load(), speech, stage)
    assert out["closures"] == 11  # m b, b b, b, b, b, p, p, m, p
    assert out["closure"] >= 0.75
    assert out["closure"] > out["closure_shifted"] + 0.2
    assert out["pause_aperture"] < 0.15
    assert (apertures(MotionModel.load(), np.zeros(32_000, np.float32), stage) < 1e-3).all()

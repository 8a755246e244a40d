"""Motion while sound comes in: late by a bounded time, alike however the sound is cut, without seams, without drift."""

import numpy as np
import pytest
import torch

from aa.body import load_body
from aa.media import FPS, SAMPLE_RATE
from aa.motion import MotionModel
from aa.motion_data import Recipe, Stage, closures, sound_of
from aa.motion_metrics import closure_rate, correlation


@pytest.fixture(scope="module")
def stage():
    stage = Stage(load_body())
    return stage.select(stage.sparse())


@pytest.fixture(scope="module")
def model(stage):
    """The shipped model, decoding to few vertices: ten times faster."""
    model = MotionModel.load()
    basis = model.basis.select(stage.ids)
    model.to_motion = lambda x: model.embedding.decode(basis, x * model.scale)
    return model


@pytest.fixture(scope="module")
def speech():
    return sound_of(Recipe("speech", ("Maybe Bob bought a big bag of apples.",), "us-man", seed=4))


@pytest.fixture(scope="module")
def said(model, speech):
    """The live motion of the speech, pushed 40 ms at a time, and how late each frame came."""
    live, means, late = model.live(seed=2), [], []
    for start in range(0, len(speech.audio), 640):
        motion = live.push(speech.audio[start : start + 640])
        now, shown = min(start + 640, len(speech.audio)) / SAMPLE_RATE, sum(map(len, means))
        late += [now - (shown + k + 1) / FPS for k in range(len(motion))]
        means.append(motion.means)
    means.append(live.finish().means)
    return torch.cat(means), late, live.delay


def test_frames_come_within_the_delay(said, speech):
    means, late, delay = said
    assert len(means) == round(FPS * len(speech.audio) / SAMPLE_RATE)
    assert max(late) <= delay + 1e-6 <= 0.4 + 1e-6
    assert min(late) > 0
    assert means.isfinite().all()


def test_how_the_sound_is_cut_does_not_matter(model, speech, said):
    live, rng, pieces, at = model.live(seed=2), np.random.default_rng(0), [], 0
    while at < len(speech.audio):
        n = int(rng.integers(1, 9000))
        pieces.append(live.push(speech.audio[at : at + n]).means)
        at += n
    pieces.append(live.finish().means)
    torch.testing.assert_close(torch.cat(pieces), said[0], atol=1e-5, rtol=0)


def test_lips_are_nearly_those_of_the_whole_recording(model, stage, speech, said):
    whole = stage.rest + model.generate(speech.audio).means
    opening = lambda means: stage.lips(type("Motion", (), {"means": means})).numpy()  # noqa: E731
    made, wanted = opening(said[0]), opening(whole - stage.rest)
    assert correlation(made, wanted) > 0.85
    assert closure_rate(made, closures(speech)) >= 0.75


def test_frames_follow_each_other_without_seams(said, stage, speech, model):
    """Speed and acceleration where a new piece begins are like those elsewhere."""
    hands = said[0][:, stage.parts.hand]
    step = model.live(0).step
    for order in (1, 2):
        change = hands.diff(dim=0, n=order).norm(dim=-1).mean(1).numpy()
        at = np.arange(len(change)) % step == (step - 1) % step
        assert change[at].mean() < 1.6 * change[~at].mean()


def test_silence_is_rest_and_an_empty_piece_is_nothing(model, stage):
    live = model.live()
    assert len(live.push(np.zeros(0, np.float32))) == 0
    motion = live.push(np.zeros(3 * SAMPLE_RATE, np.float32))
    assert float(stage.lips(motion).max()) < 1e-3
    assert len(motion) + len(live.finish()) == 75


@pytest.mark.slow
def test_minute_ten_is_like_minute_one(model, stage, speech):
    """Speed, reach and posture of hands and head do not drift over ten minutes, whole and live."""
    sound = np.tile(speech.audio, 1 + 600 * SAMPLE_RATE // len(speech.audio))[: 600 * SAMPLE_RATE]
    points = torch.cat([stage.parts.hand[::4], stage.parts.frames["head"][:5]])
    means = torch.cat([m.means[:, points] for m in model.stream(sound, seed=1)])
    first, last = means[:1500], means[-1500:]
    for measure in (lambda m: m.diff(dim=0).norm(dim=-1).mean(), lambda m: m.std(0).norm(dim=-1).mean()):
        assert 0.75 < float(measure(last) / measure(first)) < 1.33
    assert float((last.mean(0) - first.mean(0)).norm(dim=-1).max()) < 0.06

"""Inhalations: planned in pauses, seen and heard at the same time; without one a pause is a closed mouth, whatever the noise."""

import numpy as np
import pytest
import torch

from aa.audio import loudness, speech_level
from aa.augment import coloured_noise as room
from aa.body import load_body
from aa.breath import breathing, heard_breaths, inhalation, plan_breaths, with_breaths
from aa.motion_recipes import concatenate
from aa.performer import lip_aperture, perform
from aa.speech import SILENCE, Speech, silence, speak


def spaced(voice: str = "us-man") -> Speech:
    """Three phrases with pauses of 0.9, 0.9, 0.9 and 0.5 s."""
    phrases = [speak(text, voice) for text in ("Bring the maps.", "Nobody came back.", "Every boat has to wait.")]
    return concatenate([*(x for p in phrases for x in (silence(0.8), p)), silence(0.5)])


@pytest.fixture(scope="module")
def speech():
    return next(s for s in (breathing(spaced(), seed) for seed in range(30)) if len(s.breaths) == 2)


@pytest.fixture(scope="module")
def gap(speech):
    """Lips of the performed speech (T,) mm."""
    body = load_body()
    return 1000 * lip_aperture(body.rest(actions=perform(body, speech).actions)).numpy()


def pauses(speech) -> list[tuple[float, float]]:
    out = []
    for symbol, start, end in speech.phonemes:
        if symbol == SILENCE and out and abs(out[-1][1] - start) < 1e-6:
            out[-1] = (out[-1][0], end)
        elif symbol == SILENCE:
            out.append((start, end))
    return out


def test_breaths_are_drawn_in_most_pauses_right_before_phrases():
    speech = spaced()
    found = [plan_breaths(speech.phonemes, speech.duration, np.random.default_rng(k)) for k in range(300)]
    count = sum(map(len, found))
    assert 0.62 < count / 900 < 0.78  # the pause at the end is none
    assert 0.12 < np.mean([len(f) == 0 for f in found]) < 0.30  # through the nose
    long = [p for p in pauses(speech) if p[1] - p[0] > 0.28][:-1]
    assert len(long) == 3
    for start, end, opening in (b for f in found for b in f):
        first, last = next(p for p in long if p[0] <= start < p[1])
        assert 0.15 < end - start <= 0.5
        assert 0.05 <= last - end <= 0.1
        assert start >= first
        assert 0.75 <= opening <= 1
    assert plan_breaths([("ɑ", 0, 1), ("_", 1, 1.2), ("ɑ", 1.2, 2), ("_", 2, 4)], 4.0, np.random.default_rng(0)) == []


def test_the_same_seed_breathes_the_same():
    a, b, c = (breathing(spaced(), seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(a.audio, b.audio)
    assert a.breaths == b.breaths
    assert not np.array_equal(a.audio, c.audio)


def test_a_breath_is_noise_of_the_middle_bands():
    rng = np.random.default_rng(0)
    power = np.mean([np.abs(np.fft.rfft(inhalation(6400, rng))) ** 2 for _ in range(40)], axis=0)
    hertz = np.fft.rfftfreq(6400, 1 / 16000)
    band = (hertz > 700) & (hertz < 5500)
    assert power[band].sum() > 0.7 * power.sum()
    shapes = [np.abs(np.fft.rfft(inhalation(6400, rng)))[600:2000].reshape(20, -1).mean(1) for _ in range(2)]
    assert np.corrcoef(shapes)[0, 1] < 0.9  # no two sound alike


def test_breaths_are_heard_above_the_room_and_below_the_speech():
    dry, rng = spaced(), np.random.default_rng(5)
    breaths = [(0.35, 0.8, 1.0), (2.2, 2.6, 1.0)]
    above, below = [], []
    for decibel in (-75, -65, -55, -48):
        noisy = dry.audio + 10 ** (decibel / 20) * room(len(dry.audio), rng)
        made = with_breaths(noisy, breaths, rng)
        t = (np.arange(len(loudness(made))) + 0.5) / 25
        inside = (t > 0.5) & (t < 0.7)
        above.append(np.median((loudness(made) - loudness(noisy))[inside]))
        below.append(speech_level(made)[0] - np.median(loudness(made)[inside]))
        outside = (t > 0.9) & (t < 2.1)
        np.testing.assert_allclose(loudness(made)[outside], loudness(noisy)[outside])
    print("above", np.round(above, 1), "below", np.round(below, 1))
    assert min(above) > 4
    assert min(below) > 14


def test_the_mouth_opens_where_the_breath_is_heard(speech, gap):
    t = (np.arange(len(gap)) + 0.5) / 25
    for start, end, _ in speech.breaths:
        inside = (t > start + 0.1) & (t < end - 0.1)
        assert gap[inside].min() > 6
        assert gap[inside].max() < 14
    drawn = [any(a <= s < b for s, _, _ in speech.breaths) for a, b in pauses(speech)]
    quiet = [p for p, d in zip(pauses(speech), drawn) if not d and p[1] - p[0] > 0.4]
    assert len(quiet) >= 2
    for start, end in quiet:
        assert gap[(t > start + 0.25) & (t < end - 0.2)].max() < 0.5


def test_the_mouth_does_not_close_between_breath_and_speech(speech, gap):
    t = (np.arange(len(gap)) + 0.5) / 25
    first = next(s for p, s, e in speech.phonemes if p != SILENCE and s > speech.breaths[-1][1])
    between = gap[(t > speech.breaths[-1][1] - 0.1) & (t < first)]
    assert len(between) >= 2
    assert between.min() > 1.5


def test_without_breaths_noise_alone_opens_no_mouth():
    body, dry = load_body(), spaced()
    loud = Speech(dry.audio + 0.05 * room(len(dry.audio), np.random.default_rng(0)).astype(np.float32), "", dry.phonemes, dry.words)
    gap = 1000 * lip_aperture(body.rest(actions=perform(body, loud).actions)).numpy()
    t = (np.arange(len(gap)) + 0.5) / 25
    for start, end in pauses(dry):
        if end - start > 0.4:
            assert gap[(t > start + 0.25) & (t < end - 0.2)].max() < 0.5


def test_the_chest_rises_with_a_breath(speech):
    body = load_body()
    still = Speech(speech.audio, speech.text, speech.phonemes, speech.words)
    more = (perform(body, speech).rotvecs - perform(body, still).rotvecs)[:, body.joint("clavicle.L"), 1]
    start, end, _ = speech.breaths[0]
    assert more[: int(start * 25) - 2].abs().max() < 1e-6
    assert more[int(end * 25)] < -0.01  # the shoulder goes up: the arms hang from it
    assert more.abs().max() < 0.05


def test_a_breath_gives_way_to_closed_lips():
    body = load_body()
    spoken = [("_", 0.0, 0.5), ("b", 0.5, 0.58), ("ɑ", 0.58, 0.8), ("_", 0.8, 1.2)]
    audio = np.zeros(19200, np.float32)
    audio[8000:12800] = 0.2 * np.sin(2 * np.pi * 140 / 16000 * np.arange(4800))
    speech = Speech(audio, "", spoken, [], breaths=[(0.1, 0.46, 1.0)])
    gap = 1000 * lip_aperture(body.rest(actions=perform(body, speech).actions))
    assert gap[13] < 0.3  # 0.54 s
    assert gap[6:10].max() > 8
    assert torch.isfinite(gap).all()


def test_breaths_are_found_in_recordings_and_silence_is_none():
    found = missed = wrong = 0
    for seed in range(12):
        speech = breathing(spaced(("us-man", "gb-woman", "joe")[seed % 3]), seed)
        heard = heard_breaths(speech.audio, speech.phonemes)
        meet = lambda a, b: a[0] < b[1] - 0.1 and a[1] > b[0] + 0.1  # noqa: E731
        found += sum(any(meet(h, b) for h in heard) for b in speech.breaths)
        missed += sum(not any(meet(h, b) for h in heard) for b in speech.breaths)
        wrong += sum(not any(meet(h, b) for b in speech.breaths) for h in heard)
    print(f"{found} found, {missed} missed, {wrong} are none")
    assert found > 4 * missed
    assert found > 3 * wrong
    assert heard_breaths(np.zeros(32000, np.float32), [("_", 0, 1.0), ("ɑ", 1.0, 2.0)]) == []

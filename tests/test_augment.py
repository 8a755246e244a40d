"""Other voices, rooms and telephones: another sound, the same words at the same time."""

import numpy as np
import pytest
import torch

from aa.audio import augment, features, load_audio, loudness
from aa.augment import babble, overdrive, reverberate, shift_formants, telephone
from aa.body import ASSETS


@pytest.fixture(scope="module")
def hello():
    return load_audio(ASSETS / "speech/hello.wav")


def power(sound: np.ndarray, low: float, high: float) -> float:
    hertz = np.fft.rfftfreq(len(sound), 1 / 16000)
    return float(np.square(np.abs(np.fft.rfft(sound)))[(hertz >= low) & (hertz < high)].sum())


def test_the_sound_changes_and_its_timing_does_not(hello):
    level, rows = 10 ** (loudness(hello) / 20), features(hello)
    changes, heard = [], []
    for seed in range(8):
        other = augment(hello, seed)
        assert (other.shape, other.dtype) == (hello.shape, np.float32)
        assert np.abs(other).max() <= 1
        now = 10 ** (loudness(other) / 20)
        score = [np.corrcoef(level[5:-5], np.roll(now, -lag)[5:-5])[0, 1] for lag in range(-4, 5)]
        assert int(np.argmax(score)) == 4
        changes.append(np.abs(features(other, kind="mel") - features(hello, kind="mel")).mean())
        heard.append(np.corrcoef(features(other)[:, :34].ravel(), rows[:, :34].ravel())[0, 1])
    assert np.mean(changes) > 0.1
    assert np.mean(heard) > 0.85  # the recogniser hears the same phones


def test_the_same_seed_gives_the_same_sound(hello):
    assert np.array_equal(augment(hello, 3), augment(hello, 3))
    assert not np.array_equal(augment(hello, 3), augment(hello, 4))
    draws = [augment(hello, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert np.array_equal(*draws)


def test_silence_stays_silence_and_short_sounds_pass():
    for seed in range(10):
        assert np.abs(augment(np.zeros(4000, np.float32), seed)).max() < 1e-6
        assert np.isfinite(augment(np.full(7, 0.1, np.float32), seed)).all()


def test_formants_move_and_pitch_does_not():
    t = np.arange(16000) / 16000
    voice = sum(np.sin(2 * np.pi * 125 * k * t) * np.exp(-(((125 * k - 1200) / 400) ** 2)) for k in range(1, 30))
    moved = shift_formants(voice, 1.25)
    spectrum = np.abs(np.fft.rfft(moved * np.hanning(16000)))
    peak = np.argmax(spectrum)
    assert 1350 < peak < 1650  # 1200 * 1.25
    assert min(peak % 125, 125 - peak % 125) < 3  # still a harmonic of 125 Hz


def test_the_parts_do_what_they_say(hello):
    rng = np.random.default_rng(0)
    narrow = telephone(hello)
    assert power(narrow, 4000, 8000) < 0.01 * power(hello, 4000, 8000) + 1e-3 * power(narrow, 0, 8000)
    assert np.corrcoef(narrow, hello)[0, 1] > 0.6
    click = np.zeros(16000, np.float32)
    click[4000] = 1
    room = reverberate(click, rng)
    assert np.abs(room[:4000]).max() < 1e-9
    assert np.argmax(np.abs(room)) == 4000
    assert np.abs(overdrive(hello, 4)).max() <= np.abs(hello).max()
    crowd = babble(16000, rng, [hello, hello[::-1]])
    assert np.sqrt(np.square(crowd).mean()) == pytest.approx(1, rel=1e-3)
    assert np.corrcoef(crowd, hello[:16000])[0, 1] < 0.5

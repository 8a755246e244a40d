"""The sound features: in phase with the frames, blind to the recording's level, quiet in silence, fast."""

import time
from functools import partial

import numpy as np
import pytest
import torch

from aa import audio
from aa.acoustics import N_MELS
from aa.audio import augment, feature_dim, loudness

FEATURE_DIM = feature_dim("mel")
features = partial(audio.features, kind="mel")
MEL = slice(0, 4 * N_MELS)
ENERGY, VOICING, PITCH = range(4 * N_MELS, FEATURE_DIM)


def talk(seconds: float = 4.0, f0: float = 120.0) -> np.ndarray:
    """Buzzing syllables, three a second, every third one left out, on a faint hiss."""
    t = np.arange(round(seconds * 16000)) / 16000
    buzz = sum(np.sin(2 * np.pi * f0 * k * t) / k for k in range(1, 20))
    syllable = np.sin(np.pi * 3 * t).clip(0) ** 2 * ((3 * t).astype(int) % 3 > 0)
    hiss = 1e-4 * np.random.default_rng(0).standard_normal(len(t))
    return (0.15 * buzz * syllable + hiss).astype(np.float32)


@pytest.mark.parametrize("samples", [1, 319, 640, 961, 16000, 16321, 100000])
def test_one_row_per_video_frame(samples):
    rows = features(np.zeros(samples, np.float32))
    assert rows.shape == (max(1, round(25 * samples / 16000)), FEATURE_DIM)
    assert rows.dtype == np.float32
    assert features(np.ones(samples, np.float32) * 0.1, frames=7).shape == (7, FEATURE_DIM)


def test_four_mel_windows_sit_at_5_15_25_35_ms():
    for window in range(4):
        click = np.zeros(32000, np.float32)
        click[30 * 640 + 80 + 160 * window] = 0.9
        power = features(click)[:, MEL].reshape(50, 4, N_MELS).sum(axis=2).ravel()
        peak = 30 * 4 + window
        assert np.argmax(power) == peak
        assert power[peak - 1] == pytest.approx(power[peak + 1], rel=1e-2)  # symmetric: exactly centred
        assert np.argmax(features(click)[:, ENERGY]) == 30
        assert np.argmax(loudness(click)) == 30


def test_the_level_of_the_recording_does_not_matter():
    sound = talk()
    reference = features(sound)
    for gain_db in (-12, 12):
        assert np.abs(features(sound * 10 ** (gain_db / 20)) - reference).mean() < 0.02
    pause = talk()[:1] * 0
    longer = features(np.concatenate([sound, np.zeros(10 * 16000, np.float32) + pause]))[: len(reference)]
    assert np.abs(longer - reference)[:-1].mean() < 0.02  # nor does a long silence behind it


def test_silence_and_hiss_stay_far_below_speech():
    speech = features(talk())
    assert np.abs(features(np.zeros(64000, np.float32))).max() == 0
    noise = np.random.default_rng(1).standard_normal(64000).astype(np.float32)
    loud = np.percentile(speech[:, ENERGY], 90)
    assert features(noise * 1e-3)[:, ENERGY].max() < loud - 1.5  # -60 dB: over 30 dB below speech
    assert features(noise * 3e-3)[:, ENERGY].max() < loud - 1.2  # -50 dB
    assert features(noise * 1e-3)[:, VOICING].max() < 0.05
    assert speech[:, MEL].mean() > 5 * features(noise * 1e-3)[:, MEL].mean()


def test_voicing_and_pitch_follow_the_voice():
    rows = features(talk())
    loud = rows[:, ENERGY] > 1.8
    assert rows[loud, VOICING].mean() > 0.8
    assert np.abs(rows[loud, PITCH]).max() < 0.1
    high = features(np.concatenate([talk(4, 110), talk(4, 165)]))
    voiced = high[:, VOICING] > 0.8
    step = np.median(high[100:][voiced[100:], PITCH]) - np.median(high[:100][voiced[:100], PITCH])
    assert step == pytest.approx(np.log2(165 / 110), abs=0.1)


def test_loudness_is_rms_in_db():
    tone = 0.5 * np.sin(2 * np.pi * 400 * np.arange(16000) / 16000)
    np.testing.assert_allclose(loudness(tone), 20 * np.log10(0.5 / np.sqrt(2)), atol=0.05)
    np.testing.assert_allclose(loudness(np.zeros(16000)), -100, atol=1e-3)


def test_chunks_join_without_a_seam():
    sound = np.tile(talk(5), 14)  # 70 s: more than one block of 60 s
    rows = features(sound)
    np.testing.assert_allclose(rows[1490:1510, MEL], features(sound[: 64 * 16000])[1490:1510, MEL], atol=2e-3)


def test_augmentation_changes_the_sound_and_keeps_its_timing():
    sound = talk(6)
    before = loudness(sound)
    lags, changes = [], []
    for seed in range(12):
        other = augment(sound, seed)
        assert (other.shape, other.dtype) == (sound.shape, np.float32)
        assert np.isfinite(other).all()
        assert np.abs(other).max() <= 1
        changes.append(np.abs(features(other) - features(sound))[:, MEL].mean())
        a, b = 10 ** (before / 20), 10 ** (loudness(other) / 20)
        score = [np.corrcoef(a[5:-5], np.roll(b, -lag)[5:-5])[0, 1] for lag in range(-4, 5)]
        lags.append(int(np.argmax(score)) - 4)
        assert max(score) > 0.6
    assert np.abs(lags).max() == 0
    assert np.mean(changes) > 0.05
    assert np.array_equal(augment(sound, 3), augment(sound, 3))
    draws = [augment(sound, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert np.array_equal(*draws)


def test_bad_sound_is_refused():
    for sound in (np.zeros(0), np.zeros((2, 100)), np.array([np.nan] * 1000)):
        with pytest.raises(ValueError, match="mono"):
            features(sound)


def test_fifty_times_faster_than_real_time():
    sound = talk(20)
    features(sound[:16000])
    start = time.process_time()
    features(sound)
    assert 20 / (time.process_time() - start) > 50

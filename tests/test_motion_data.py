"""What the motion model learns from: who may be heard in training, what every take has in common, and clips on disk."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from aa.body import load_body
from aa.motion_data import Stage, clip_key, clip_path, learn_basis, make_clips, silent_frames
from aa.motion_recipes import VOICES_TRAIN, VOICES_UNSEEN, Recipe, recipes, resized, sound_of, takes_of
from aa.noises import bumps, crowd, hum, music, no_speech
from aa.speech import ACCENTS, ESPEAK, SILENCE, TIMBRES, any_voice, sentences, speak


@pytest.fixture(scope="module")
def stage():
    return Stage(load_body())


def test_held_out_voices_and_sentences_are_strictly_apart():
    train, held = recipes(400), recipes(40, seed=9, split="held-out", voices=VOICES_UNSEEN)
    unseen = {part for name in VOICES_UNSEEN for part in ESPEAK[name][0].split("+")}
    assert not unseen & {*ACCENTS, *TIMBRES}
    heard = {r.voice for r in train if r.kind == "speech"}
    assert not heard & set(VOICES_UNSEEN)
    assert not any(part in unseen for voice in heard for part in voice.split("+"))
    assert {r.voice for r in held} == set(VOICES_UNSEEN)
    assert {t for r in held for t in r.text} <= set(sentences("held-out"))
    assert not {t for r in train for t in r.text} & set(sentences("held-out"))
    assert all(r.size == 1 and r.kind == "speech" for r in held)
    assert {r.voice for r in recipes(60, split="held-out")} <= set(VOICES_TRAIN)


def test_training_hears_many_voices_sizes_and_rates():
    made = [r for r in recipes(400) if r.kind == "speech"]
    assert 35 <= sum(r.kind == "rest" for r in recipes(400)) <= 50
    share = np.mean([r.voice == "joe" for r in made])
    assert 0.3 < share < 0.5
    assert len({r.voice for r in made if "+" in r.voice}) > 60
    sizes = np.array([r.size for r in made])
    assert 0.4 < np.mean(sizes != 1) < 0.8
    assert (sizes.min(), sizes.max()) == (pytest.approx(0.82, abs=0.02), pytest.approx(1.23, abs=0.02))
    assert all(0.5 <= r.rate <= 2 for r in made)
    assert len({r.seed for r in recipes(400)}) == 400
    assert recipes(20) == recipes(40)[:20]


def test_every_random_voice_can_speak():
    rng = np.random.default_rng(1)
    for voice in {any_voice(rng) for _ in range(6)}:
        speech = speak("Bob buys maps.", voice, cache=False)
        assert speech.duration > 0.6
        assert sum(p != SILENCE for p, _, _ in speech.phonemes) >= 8


def test_another_size_moves_pitch_and_times_together():
    speech = speak("Bob buys maps.", "us-man")
    small = resized(speech, 0.8)
    assert small.duration == pytest.approx(0.8 * speech.duration, rel=1e-3)
    np.testing.assert_allclose([p[1] for p in small.phonemes], 0.8 * np.array([p[1] for p in speech.phonemes]), atol=1e-3)
    assert small.phonemes[-1][2] == pytest.approx(small.duration)
    peak = lambda s: np.argmax(np.abs(np.fft.rfft(s.audio))) / s.duration  # noqa: E731
    assert peak(small) == pytest.approx(peak(speech) / 0.8, rel=0.02)


def test_takes_share_their_breaths_and_are_the_same_every_time():
    recipe = next(r for r in recipes(80) if r.kind == "speech" and sound_of(r).breaths)
    speech = sound_of(recipe)
    takes = takes_of(recipe, speech)
    assert len(takes) == recipe.takes
    np.testing.assert_array_equal(takes[0], speech.audio)
    for a, b in zip(takes, takes_of(recipe, sound_of(recipe))):
        np.testing.assert_array_equal(a, b)
        assert (a.shape, a.dtype, bool(np.isfinite(a).all())) == (speech.audio.shape, np.float32, True)
    frames = round(25 * speech.duration)
    t = (np.arange(frames) + 0.5) / 25
    silent = silent_frames(speech, frames).numpy()
    for start, end, _ in speech.breaths:
        assert not silent[(t > start) & (t < end)].any()  # it is no rest
    assert silent.any()


def test_clips_at_rest_hold_no_speech_and_no_breath(stage):
    rest = [r for r in recipes(60) if r.kind == "rest"]
    assert all(sound_of(r).breaths == [] for r in rest)
    assert max(np.abs(takes_of(r, sound_of(r))[1]).max() for r in rest) > 0.02  # but sound
    assert float(stage.lips(stage.motion(rest[0], sound_of(rest[0]), every=10)).max()) < 2e-4


@pytest.mark.parametrize("sound", [hum, bumps, music, crowd, no_speech])
def test_noises(sound):
    a, b, c = (sound(40000, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert a.shape == (40000,)
    assert np.isfinite(a).all()
    assert not np.array_equal(a, c)
    rms = np.sqrt(np.square(a).mean())
    assert rms < 0.3 if sound is no_speech else 0.2 < rms < 3


def test_clips_are_kept_by_recipe_basis_and_sound(stage, tmp_path):
    recipe = Recipe("speech", ("Bob buys maps.",), "us-man", seed=3, takes=2)
    basis = learn_basis(stage, [recipe], every=6)
    a = make_clips(stage, basis, [recipe], tmp_path, sound="mel")[0]
    path = clip_path(tmp_path, recipe, clip_key(basis, "mel"))
    assert list(tmp_path.iterdir()) == [path]
    written = path.stat().st_mtime_ns
    b = make_clips(stage, basis, [recipe], tmp_path, sound="mel")[0]
    assert path.stat().st_mtime_ns == written  # read, not made
    assert all(torch.equal(a[k], b[k]) for k in a)
    fresh = make_clips(stage, basis, [recipe], sound="mel")[0]
    assert all(torch.equal(a[k], fresh[k]) for k in a)
    keys = {clip_key(basis, s) for s in ("mel", "phones")} | {
        clip_key(learn_basis(stage, [replace(recipe, seed=4)], every=6), "mel")
    }
    assert len(keys) == 3
    assert clip_path(tmp_path, replace(recipe, rate=1.1), "k") != clip_path(tmp_path, recipe, "k")

"""The sound features: in phase with the frames, blind to the level, quiet in silence, the same phones through bad lines."""

import time
from functools import partial

import numpy as np
import pytest

from aa import acoustics, audio
from aa.acoustics import BAND_HZ, N_MELS
from aa.audio import PROSODY, feature_dim, features, load_audio, loudness
from aa.body import ASSETS
from aa.phones import MOUTH_CLASSES

mel_features = partial(audio.features, kind="mel")
MEL = slice(0, 4 * N_MELS)
SEEN = [i + j for i in (0, 17) for j, name in enumerate(MOUTH_CLASSES) if name not in ("blank", "other", "word")]
PHONES, NOISE = slice(0, 94), slice(94, 94 + 2 * (len(BAND_HZ) - 1))
ENERGY, VOICING, PITCH = -3, -2, -1


def talk(seconds: float = 4.0, f0: float = 120.0) -> np.ndarray:
    """Buzzing syllables, three a second, every third one left out, on a faint hiss."""
    t = np.arange(round(seconds * 16000)) / 16000
    buzz = sum(np.sin(2 * np.pi * f0 * k * t) / k for k in range(1, 20))
    syllable = np.sin(np.pi * 3 * t).clip(0) ** 2 * ((3 * t).astype(int) % 3 > 0)
    hiss = 1e-4 * np.random.default_rng(0).standard_normal(len(t))
    return (0.15 * buzz * syllable + hiss).astype(np.float32)


@pytest.fixture(scope="module")
def hello():
    """Real words, in the voice `joe`, on the faint hiss of a room."""
    sound = load_audio(ASSETS / "speech/hello.wav")
    return sound + 1e-4 * np.random.default_rng(0).standard_normal(len(sound)).astype(np.float32)


def alike(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.parametrize("kind", ["phones", "mel"])
@pytest.mark.parametrize("samples", [1, 319, 961, 1600, 16321, 100000])
def test_one_row_per_video_frame(samples, kind):
    rows = features(np.zeros(samples, np.float32), kind=kind)
    assert rows.shape == (max(1, round(25 * samples / 16000)), feature_dim(kind))
    assert rows.dtype == np.float32
    assert features(np.ones(samples, np.float32) * 0.1, frames=7, kind=kind).shape == (7, feature_dim(kind))


def test_kinds_differ_only_before_the_prosody(hello):
    assert (feature_dim(), feature_dim("phones"), feature_dim("mel"), PROSODY) == (113, 113, 163, 3)
    sound = hello[:32000]
    np.testing.assert_array_equal(features(sound)[:, -PROSODY:], mel_features(sound)[:, -PROSODY:])
    np.testing.assert_array_equal(features(sound), features(sound))


def test_four_mel_windows_sit_at_5_15_25_35_ms():
    for window in range(4):
        click = np.zeros(32000, np.float32)
        click[30 * 640 + 80 + 160 * window] = 0.9
        rows = mel_features(click)
        power = rows[:, MEL].reshape(50, 4, N_MELS).sum(axis=2).ravel()
        peak = 30 * 4 + window
        assert np.argmax(power) == peak
        assert power[peak - 1] == pytest.approx(power[peak + 1], rel=0.01)  # symmetric: exactly centred
        assert np.argmax(rows[:, ENERGY]) == 30
        assert np.argmax(loudness(click)) == 30


def test_noise_bands_sit_at_10_and_30_ms():
    for half in range(2):
        click = 1e-4 * np.random.default_rng(0).standard_normal(32000).astype(np.float32)
        click[30 * 640 + 160 + 320 * half] = 0.9
        power = features(click)[:, NOISE].reshape(100, -1).sum(axis=1)
        assert np.argmax(power) == 60 + half
        assert power[60 + half] > power[59 + half] + power[61 + half]


def test_a_burst_of_lips_shows_in_its_frame_and_moves_with_it(hello):
    closed = features(hello)[:, [0, 17]].max(1)
    later = features(np.concatenate([1e-4 * np.ones(640 * 9, np.float32), hello]))[9:, [0, 17]].max(1)
    peaks = np.flatnonzero(closed > 0.5)
    assert len(peaks) >= 3  # a m(inute), p(articles), m(oves)
    assert (later[peaks] > 0.3).all()


@pytest.mark.parametrize("kind", ["phones", "mel"])
def test_the_level_of_the_recording_does_not_matter(hello, kind):
    reference = features(hello, kind=kind)
    for gain_db in (-12, -16, 6):
        assert np.abs(features(hello * 10 ** (gain_db / 20), kind=kind) - reference).mean() < 0.01
    longer = features(np.concatenate([hello, np.zeros(10 * 16000, np.float32)]), kind=kind)[: len(reference)]
    assert np.abs(longer - reference)[:-5].mean() < 0.01  # nor does a long silence behind it


def test_gaps_of_digital_silence_make_no_breath_of_the_room(hello):
    room = 2e-4 * np.random.default_rng(0).standard_normal(len(hello)).astype(np.float32)  # 48 dB below the speech
    gap = np.zeros(640 * 50, np.float32)
    before, after = features(hello + room)[:, NOISE], features(np.concatenate([gap, hello + room, gap]))[50:-50, NOISE]
    assert np.abs(before - after)[2:-2].max() < 0.3


def test_a_breath_stands_above_the_noise():
    rng = np.random.default_rng(0)
    sound = talk(4)
    breath = np.convolve(rng.standard_normal(640 * 8), [1, -0.5], "same") * 2e-3  # 40 dB below the speech, no voice in it
    sound[640 * 25 : 640 * 33] += breath.astype(np.float32)  # in the pause from 25 to 33; there is none in that from 75 to 83
    rows = features(sound)
    assert rows[26:32, NOISE].mean() > rows[76:82, NOISE].mean() + 0.3
    assert rows[26:32, VOICING].max() < 0.1


def test_silence_and_hiss_stay_far_below_speech(hello):
    speech = features(hello)
    nothing = features(np.zeros(64000, np.float32))
    assert nothing[:, SEEN].max() < 0.02
    assert np.abs(nothing[:, 94:]).max() == 0
    assert np.abs(mel_features(np.zeros(64000, np.float32))).max() == 0
    noise = np.random.default_rng(1).standard_normal(64000).astype(np.float32)
    loud = np.percentile(speech[:, ENERGY], 90)
    for level, below in ((1e-3, 1.5), (3e-3, 1.2)):  # -60 and -50 dB
        rows = features(noise * level)
        assert rows[:, ENERGY].max() < loud - below
        assert rows[:, VOICING].max() < 0.05
        assert rows[:, SEEN].mean() < 0.1 * speech[:, SEEN].mean()
        assert rows[:, NOISE].mean() < 0.3
    assert mel_features(talk())[:, MEL].mean() > 5 * mel_features(noise * 1e-3)[:, MEL].mean()


def through_a_telephone(sound):
    import soxr

    return soxr.resample(soxr.resample(sound, 16000, 8000), 8000, 16000)[: len(sound)].astype(np.float32)


@pytest.mark.parametrize(
    ("line", "least"),
    [
        (lambda s: s + 0.2, 0.999), (lambda s: np.clip(8 * s, -1, 1), 0.85), (through_a_telephone, 0.9),
        (lambda s: np.round(s * 127) / 127, 0.85),
    ],
    ids=["offset", "clipped", "8 kHz", "8 bit"],
)  # fmt: skip
def test_the_same_phones_are_heard_through_bad_lines(hello, line, least):
    assert alike(features(line(hello).astype(np.float32))[:, PHONES], features(hello)[:, PHONES]) > least


@pytest.mark.parametrize("kind", ["phones", "mel"])
def test_no_sound_makes_them_explode(kind):
    rng, n = np.random.default_rng(0), 32000
    t = np.arange(n) / 16000
    clicks = np.zeros(n)
    clicks[:: 16000 // 3] = 1
    sounds = [
        rng.standard_normal(n),
        30 * talk(2),
        np.sign(np.sin(2 * np.pi * 440 * t)),
        clicks,
        np.ones(n),
        1e-30 * np.ones(n),
        1e4 * clicks,
    ]
    for sound in sounds:
        rows = features(sound.astype(np.float32), kind=kind)
        assert np.isfinite(rows).all()
        assert -1 <= rows.min() <= rows.max() < 6


def test_an_offset_changes_nothing_at_all(hello):
    assert np.abs(features(hello + 0.3)[1:] - features(hello)[1:]).mean() < 1e-3


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


def test_mel_filters_are_triangles_that_share_every_bin():
    filters = acoustics.mel_filters()
    hertz = np.fft.rfftfreq(512, 1 / 16000)
    inside = (hertz > hertz[filters[:, 0].argmax() + 1]) & (hertz < hertz[filters[:, -1].argmax()])
    np.testing.assert_allclose(filters.sum(1)[inside], 1, atol=1e-5)
    centres = hertz[filters.argmax(0)]
    assert (np.diff(centres) > 0).all()
    assert np.ptp(np.diff(centres[centres < 900])) <= 2 * hertz[1]  # evenly spaced up to 1 kHz


def test_blocks_join_without_a_seam():
    sound = np.tile(talk(5), 14)  # 70 s: blocks of 15 s
    rows = mel_features(sound)
    np.testing.assert_allclose(rows[365:385, MEL], mel_features(sound[: 64 * 16000])[365:385, MEL], atol=2e-3)
    np.testing.assert_allclose(rows[365:385, VOICING], rows[740:760, VOICING], atol=1e-3)


def test_bad_sound_is_refused():
    for sound in (np.zeros(0), np.zeros((2, 100)), np.array([np.nan] * 1000), np.array([np.inf] * 1000)):
        with pytest.raises(ValueError, match="mono"):
            features(sound)


@pytest.mark.parametrize(("kind", "times"), [("mel", 100), ("phones", 20)])
def test_many_times_faster_than_real_time(kind, times):
    sound = talk(12)
    features(sound[:16000], kind=kind)
    start = time.process_time()
    features(sound, kind=kind)
    assert 12 / (time.process_time() - start) > times

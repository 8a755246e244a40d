"""Live features: the same as of the whole recording but for a bounded look-ahead; level and noise are learned on the way."""

import numpy as np
import pytest

from aa.audio import Ear, feature_dim, features, load_audio
from aa.body import ASSETS


@pytest.fixture(scope="module")
def hello():
    return load_audio(ASSETS / "speech/hello.wav")


def live(ear: Ear, sound: np.ndarray, piece: int = 1000) -> np.ndarray:
    rows = [ear.push(sound[i : i + piece]) for i in range(0, len(sound), piece)]
    return np.concatenate([*rows, ear.finish()])


def alike(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_live_rows_agree_with_those_of_the_whole(hello):
    whole, rows = features(hello), live(Ear(hop=5), hello)
    assert (rows.shape, rows.dtype) == (whole.shape, np.float32)
    assert alike(rows[:, :34], whole[:, :34]) > 0.9
    assert alike(rows[:, 34:94], whole[:, 34:94]) > 0.9
    assert alike(rows[25:, 94:110], whole[25:, 94:110]) > 0.85  # the noise is known after the first pause
    assert alike(rows[:, -3], whole[:, -3]) > 0.97
    assert alike(rows[:, -2], whole[:, -2]) > 0.97


def test_rows_come_in_time_and_do_not_depend_on_the_pieces(hello):
    sound = hello[: 640 * 60 + 77]
    ear, given = Ear("mel", ahead=0.2, hop=2), 0
    assert ear.delay == pytest.approx(0.24)
    pieces = np.split(sound, np.cumsum(np.random.default_rng(0).integers(0, 3000, 12)))
    rows, pushed = [], 0
    for piece in pieces:
        rows.append(ear.push(piece))
        given, pushed = given + len(rows[-1]), pushed + len(piece)
        assert given >= int(pushed / 640 - ear.delay * 25)
        assert given <= max(0, pushed / 640 - 5)
    rows = np.concatenate([*rows, ear.finish()])
    np.testing.assert_allclose(rows, live(Ear("mel"), sound, 640 * 7), atol=1e-5)
    assert len(rows) == round(len(sound) / 640)


def test_only_the_sound_so_far_counts(hello):
    other = hello.copy()
    other[640 * 40 :] = 0.1 * np.random.default_rng(0).standard_normal(len(other) - 640 * 40)
    a, b = (live(Ear(hop=1), s[: 640 * 50]) for s in (hello, other))
    np.testing.assert_array_equal(a[:35], b[:35])  # rows 0-34 see sound up to the end of frame 39
    assert np.abs(a[40:] - b[40:]).max() > 0.3


def test_a_quiet_recording_is_soon_heard_as_loud_as_another(hello):
    sound = np.tile(hello, 2)
    loud, quiet = (live(Ear("mel"), sound * gain) for gain in (1.0, 0.2))
    half = len(loud) // 2
    assert np.abs(loud - quiet)[half:, :160].mean() < 0.03
    assert alike(loud[half:, -3], quiet[half:, -3]) > 0.99


def test_memory_is_constant():
    ear, rng = Ear("mel", hop=25), np.random.default_rng(0)
    for _ in range(75):
        rows = ear.push(0.1 * rng.standard_normal(16000))
        assert len(rows) <= 25
        assert len(ear.sound) <= 16000 * 3.5
    assert len(ear.heard.levels) == 1500
    assert len(ear.heard.f0) <= 1500


def test_short_empty_silent_and_one_after_the_other(hello):
    ear = Ear()
    assert ear.finish().shape == (0, feature_dim())
    assert ear.push(np.zeros(0, np.float32)).shape == (0, feature_dim())
    ear.push(hello[:100])
    assert ear.finish().shape == (1, feature_dim())
    silent = live(ear, np.zeros(1600, np.float32))
    assert silent.shape == (round(2.5), feature_dim())
    assert silent[:, -3:].max() == 0
    assert len(live(ear, hello[:16000])) == 25
    with pytest.raises(ValueError, match="finite"):
        ear.push(np.array([np.nan], np.float32))

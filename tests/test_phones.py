"""The phone recogniser: what it hears in speech and when, how long sound is cut, and what is said when its weights are missing."""

import importlib.util

import numpy as np
import pytest
import torch

from aa import phones
from aa.audio import load_audio, normalise
from aa.body import ASSETS
from aa.errors import InputError
from aa.phones import MOUTH_CLASSES, in_windows, load_recogniser, mouth_features, mouth_posteriors, posteriors, read_arrays, smear
from aa.speech import speak
from aa.visemes import BILABIAL, segments

CLOSED = list(MOUTH_CLASSES).index("closed")


@pytest.fixture(scope="module")
def hello():
    return normalise(load_audio(ASSETS / "speech/hello.wav"))


def test_it_hears_the_shipped_sentence(hello):
    net = load_recogniser()
    said = posteriors(hello).argmax(1)
    heard = "".join(net.tokens[i] for i, before in zip(said, [-1, *said]) if i != before).replace("<blank>", "")
    words = "ɛloʊ<wb>i<wb>wɑz<wb>ə<wb>sɪŋgəl<wb>foʊtə"  # hello I was a single photo
    assert heard.startswith(words)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(2.1e6, rel=0.05)


def test_posteriors_are_probabilities_at_50_hz(hello):
    rows = posteriors(hello[: 640 * 30 + 100])
    assert rows.shape == (60, 191)
    np.testing.assert_allclose(np.exp(rows).sum(1), 1, atol=1e-4)
    assert posteriors(hello[:1]).shape == (2, 191)


def test_every_token_is_in_one_class():
    tokens = load_recogniser().tokens
    listed = " ".join(MOUTH_CLASSES.values()).split()
    assert len(set(listed)) == len(listed)
    assert set(listed) <= set(tokens)
    np.testing.assert_allclose(mouth_posteriors(np.full((1, 191), -np.log(191))).sum(1), 1, rtol=1e-5)
    assert mouth_posteriors(np.log(np.eye(191)[[tokens.index("m"), 190]] + 1e-9)).argmax(1).tolist() == [CLOSED, 15]


@pytest.mark.parametrize(("voice", "share"), [("joe", 0.9), ("us-woman", 0.7)])
def test_closed_lips_are_heard_where_they_close(voice, share):
    speech = speak("Bob may pay Pam a big bonus. My mother bought a purple map.", voice)
    closed = mouth_posteriors(posteriors(normalise(speech.audio)))[:, CLOSED]
    middles = [round(25 * (s.start + s.end)) for s in segments(speech.phonemes, speech.duration) if s.symbol in BILABIAL]
    near = [closed[max(0, m - 2) : m + 6].max() for m in middles]  # a spike when the lips open again, 40-60 ms later
    assert np.mean(np.array(near) > 0.3) >= share
    away = np.ones(len(closed), bool)
    for m in middles:
        away[max(0, m - 7) : m + 10] = False
    assert closed[away].mean() < 0.03


def test_frames_are_centred_at_multiples_of_320(hello):
    click = torch.zeros(1, 32000)
    click[0, 100 * 160] = 1
    power = load_recogniser().mel(click)[0].exp().sum(0)
    assert power.argmax() == 100
    assert power[99] == pytest.approx(float(power[101]), rel=0.01)
    later = posteriors(np.concatenate([np.zeros(640 * 5, np.float32), hello]))[10:]  # 0.2 s of silence before it
    assert np.abs(np.exp(later) - np.exp(posteriors(hello)))[20:].mean() < 2e-4


@pytest.mark.parametrize("frames", [1, 299, 300, 301, 499, 500, 701, 1900])
def test_windows_cover_a_long_sound_once(frames):
    sound, sizes = np.arange(frames, dtype=np.float32).repeat(640), []

    def run(x):
        sizes.append(x.shape)
        return x[:, ::320, None]

    np.testing.assert_array_equal(in_windows(sound, run)[:, 0], np.arange(frames).repeat(2))
    assert max(b * n for b, n in sizes) <= 4 * 12 * 16000


def test_windows_hardly_differ_from_the_whole(hello):
    sound = np.concatenate([hello] * 4)[: 640 * 500]
    with torch.no_grad():
        whole = load_recogniser()(torch.from_numpy(sound)[None])[0, :-1].exp().numpy()
    cut = np.exp(posteriors(sound))
    assert np.corrcoef(mouth_posteriors(np.log(whole)).ravel(), mouth_posteriors(np.log(cut)).ravel())[0, 1] > 0.98
    np.testing.assert_allclose(posteriors(sound, batch=1), np.log(cut), atol=1e-3)


def test_spikes_are_smeared_both_ways():
    p = np.zeros((9, 1), np.float32)
    p[4] = 1
    forwards, backwards = smear(p).T
    np.testing.assert_allclose(forwards[4:7], [1, 0.6, 0.36], rtol=1e-5)
    np.testing.assert_allclose(backwards, forwards[::-1])
    assert mouth_features(np.zeros(6400, np.float32)).shape == (10, 94)


def test_missing_or_damaged_weights(tmp_path, monkeypatch):
    whole = (phones._folder() / "asr_waveform.hama").read_bytes()
    for name, data in {"cut": whole[: len(whole) // 2], "foreign": b"PK" + whole[2:], "empty": b"", "head": whole[:300]}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="damaged"):
            read_arrays(tmp_path / name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    load_recogniser.cache_clear()
    with pytest.raises(InputError, match="pip install hama==1"):
        posteriors(np.zeros(6400, np.float32))

"""Recordings without a transcript: which sounds are said, when, and what is no speech at all."""

import difflib
import unicodedata

import numpy as np
import pytest

from aa.arpabet import is_vowel, to_arpabet
from aa.augment import coloured_noise as room
from aa.errors import InputError
from aa.noises import hum
from aa.phones import load_recogniser
from aa.recognise import plain, recognise
from aa.speech import SILENCE, sentences, speak

HELD = sentences("held-out")[:3]


def sounds(phonemes) -> list[tuple[str, float]]:
    """(ARPABET with one name for all vowels, start s)."""
    names = [(n, start) for p, start, _ in phonemes if p != SILENCE for n in to_arpabet(p)]
    return [("V" if is_vowel(n) else n, start) for n, start in names]


@pytest.mark.parametrize(("voice", "least"), [("joe", 0.85), ("lancaster-woman", 0.75)])
def test_sounds_and_their_times_are_found_without_a_transcript(voice, least):
    late, found, said = [], 0, 0
    for text in HELD:
        speech = speak(text, voice)
        a, b = sounds(speech.phonemes), sounds(recognise(speech.audio))
        blocks = difflib.SequenceMatcher(None, [n for n, _ in a], [n for n, _ in b], autojunk=False).get_matching_blocks()
        late += [b[m.b + k][1] - a[m.a + k][1] for m in blocks for k in range(m.size)]
        found, said = found + sum(m.size for m in blocks), said + len(a)
    print(f"{voice}: {found / said:.2f} found, {1000 * np.median(np.abs(late)):.0f} ms off")
    assert found / said >= least
    assert np.median(np.abs(late)) < 0.025


def test_phonemes_keep_the_promise_of_speech():
    speech = speak(HELD[0], "joe")
    phonemes = recognise(speech.audio)
    starts, ends = (np.array([p[i] for p in phonemes]) for i in (1, 2))
    assert (starts[0], ends[-1]) == (0, speech.duration)
    np.testing.assert_array_equal(starts[1:], ends[:-1])
    assert sum(p[0] == "ˈ" for p, _, _ in phonemes) >= 3  # for the hands
    assert recognise(speech.audio) == phonemes


def test_no_token_of_the_recogniser_is_lost():
    latin = [t for t in load_recogniser().tokens if t.isalpha() and unicodedata.category(t[0]) == "Ll"]
    assert len(latin) > 80
    assert not [t for t in latin if not to_arpabet(plain(t))]
    assert plain("t͡ʃ") == "tʃ"
    assert [to_arpabet(plain(t)) for t in ("pʰ", "m", "e", "ɝ", "ja")] == [["P"], ["M"], ["EY"], ["ER"], ["Y", "AA"]]


def test_what_is_no_speech_is_refused():
    rng = np.random.default_rng(0)
    for sound in (room(48000, rng), hum(48000, rng)):
        with pytest.raises(InputError, match="no speech was heard in noise"):
            recognise(0.05 * sound.astype(np.float32), "noise")
    with pytest.raises(InputError, match="silent"):
        recognise(np.zeros(16000, np.float32))

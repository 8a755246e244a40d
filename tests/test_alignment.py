"""Forced alignment: its times against the exact ones of spoken sentences, its symbols, and transcripts that do not fit."""

import difflib
import functools

import numpy as np
import pytest

from aa import alignment
from aa.alignment import align
from aa.arpabet import ARPABET, is_vowel, to_arpabet, to_ipa
from aa.errors import InputError
from aa.media import write_video
from aa.speech import SILENCE, VOICES, Speech, bare, sentences, silence, speak
from aa.visemes import segments

HELD = [s for s in sentences("held-out") if 6 <= len(s.split()) <= 14][:4]
CASES = [(HELD[n % 4], voice) for n, voice in enumerate((*VOICES, "joe", "joe", "joe"))]


@functools.cache
def pair(text: str, voice: str) -> tuple[Speech, Speech]:
    """What was spoken, and what the alignment makes of its sound."""
    truth = speak(text, voice, seed=1, cache=False)
    return truth, Speech(truth.audio, text, *align(truth.audio, text))


def sounds(speech: Speech) -> list:
    """(ARPABET, start or None inside a symbol, end or None)."""
    out = []
    for symbol, start, end in speech.phonemes:
        names = ["SIL"] if symbol == SILENCE else to_arpabet(symbol)
        out += [(name, start if k == 0 else None, end if k == len(names) - 1 else None) for k, name in enumerate(names)]
    return out


def matched(truth: Speech, found: Speech) -> list:
    """Pairs of sounds that are the same; vowels may differ, for the dictionary's accent is American."""
    rows = [sounds(truth), sounds(found)]
    names = [["V" if is_vowel(name) else name for name, _, _ in row] for row in rows]
    blocks = difflib.SequenceMatcher(None, *names, autojunk=False).get_matching_blocks()
    return [(rows[0][b.a + k], rows[1][b.b + k]) for b in blocks for k in range(b.size)]


def errors(cases, kinds=None) -> np.ndarray:
    """Onset errors in ms."""
    pairs = [two for case in cases for two in matched(*pair(*case))]
    return 1000 * np.array(
        [b[1] - a[1] for a, b in pairs if None not in (a[1], b[1]) and a[1] > 0 and (kinds is None or a[0] in kinds)]
    )


def test_phoneme_onsets_are_those_that_were_spoken():
    found = errors(CASES)
    assert len(found) > 300
    assert abs(np.median(found)) < 5
    assert np.median(np.abs(found)) < 12
    assert np.percentile(np.abs(found), 90) < 40


def test_lips_close_in_time():
    for closed in (errors(CASES, {"P", "B", "M"}), errors([c for c in CASES if c[1] == "joe"], {"P", "B", "M"})):
        assert len(closed) > 10
        assert np.median(np.abs(closed)) < 15
        assert np.percentile(np.abs(closed), 90) < 40  # one frame of the video


def test_nearly_every_sound_is_found():
    counts = [(len(matched(*pair(*case))), len(sounds(pair(*case)[0]))) for case in CASES]
    assert sum(a for a, _ in counts) / sum(b for _, b in counts) > 0.95


def test_words_begin_when_they_were_spoken():
    late = []
    for case in CASES:
        truth, found = pair(*case)
        starts = {word: start for word, start, _ in found.words}
        late += [starts[word] - start for word, start, _ in truth.words if word in starts and found.text.count(word) == 1]
        assert " ".join(w for w, _, _ in found.words).split() == " ".join(w for w, _, _ in truth.words).split()
    assert len(late) > 60
    assert np.median(np.abs(late)) < 0.015
    assert np.percentile(np.abs(late), 90) < 0.08


@pytest.mark.parametrize("case", CASES[:3])
def test_times_keep_the_promise_of_speech(case):
    truth, found = pair(*case)
    starts, ends = (np.array([p[i] for p in found.phonemes]) for i in (1, 2))
    assert starts[0] == 0
    assert ends[-1] == truth.duration
    np.testing.assert_array_equal(starts[1:], ends[:-1])
    assert (ends > starts).all()
    assert all(a != b or a != SILENCE for a, b in zip([p[0] for p in found.phonemes], [p[0] for p in found.phonemes[1:]]))
    for symbol, start, end in found.phonemes:
        assert (symbol != SILENCE) == any(a <= start and end <= b for _, a, b in found.words)
    assert sum(symbol[0] in "ˈˌ" for symbol, _, _ in found.phonemes) >= 3  # stress comes from espeak
    assert {s.symbol for s in segments(found.phonemes, found.duration)} - {""}
    assert align(truth.audio, found.text) == (found.phonemes, found.words)


def test_numbers_unknown_words_and_punctuation():
    text = "Mr. Zorblatt paid $3.50 for the snorkelberries – in 1969!"
    truth = speak(text, "us-woman")
    phonemes, words = align(truth.audio, text)
    assert [w for w, _, _ in words] == ["Mr", "Zorblatt", "paid", "$3.50", "for", "the", "snorkelberries", "in", "1969"]
    known = {word: (start, end) for word, start, end in truth.words}
    for word, start, end in words:
        if word in known:
            assert np.abs(np.subtract((start, end), known[word])).max() < 0.12
    inside = [bare(p) for p, a, b in phonemes if known["Zorblatt"][0] - 0.03 <= a and b <= known["Zorblatt"][1] + 0.03]
    assert inside[0] == "z"
    assert {"b", "l"} <= set(inside)


def test_long_recordings_are_timed_in_pieces(monkeypatch):
    parts = [pair(*case)[0] for case in CASES[:4]]
    text, audio = " ".join(p.text for p in parts), np.concatenate([p.audio for p in parts])
    whole, words = align(audio, text)
    cuts = []
    monkeypatch.setattr(alignment, "PIECE", 3.0)
    find = alignment._find_sounds
    monkeypatch.setattr(alignment, "_find_sounds", lambda *given: cuts.append(given[2]) or find(*given))
    pieces, words_too = align(audio, text)
    assert len(cuts) >= 3
    assert [w for w, _, _ in words_too] == [w for w, _, _ in words]
    starts = [np.array([a for _, a, _ in rows]) for rows in (words, words_too)]
    assert np.percentile(np.abs(starts[0] - starts[1]), 90) < 0.03
    assert abs(len(whole) - len(pieces)) <= 4
    assert pieces[-1][2] == len(audio) / 16000


def test_a_transcript_that_does_not_fit_is_refused():
    audio = pair(*CASES[0])[0].audio
    both = np.concatenate([audio, pair(*CASES[-1])[0].audio])
    for sound, text in ((audio, HELD[2]), (audio, " ".join(HELD)), (both, HELD[0]), (audio[:4000], HELD[0])):
        with pytest.raises(InputError, match="does not fit"):
            align(sound, text)
    hiss = np.random.default_rng(0).normal(0, 0.1, 40000).astype(np.float32)
    with pytest.raises(InputError, match="does not fit"):
        align(hiss, HELD[0])


def test_what_cannot_be_aligned_is_refused():
    audio = pair(*CASES[0])[0].audio
    for text, reason in (("", "at least one word"), ("!!! 😀", "at least one word"), ("Привет", "Cyrillic"), (None, "string")):
        with pytest.raises(InputError, match=reason):
            align(audio, text)
    with pytest.raises(InputError, match="silent"):
        align(silence(2).audio, "Hello.")
    with pytest.raises(InputError, match="12 minutes"):
        align(np.tile(audio, 12 * 60 * 16000 // len(audio) + 1), "Hello.")


def test_recording_with_transcript(tmp_path):
    truth = pair(*CASES[0])[0]
    frames = [np.zeros((32, 32, 3), np.uint8)] * round(25 * truth.duration)
    speech = Speech.from_recording(write_video(tmp_path / "film.mp4", frames, truth.audio), f" {truth.text}\n")
    assert speech.text == truth.text
    late = [b[1] - a[1] for a, b in matched(truth, speech) if None not in (a[1], b[1])]
    assert np.median(np.abs(late)) < 0.02  # AAC costs little
    assert Speech.load(speech.save(tmp_path / "kept")).phonemes == speech.phonemes


def test_arpabet_goes_both_ways():
    assert len(ARPABET) == 39
    for name, symbols in ARPABET.items():
        assert all(to_arpabet(symbol) == [name] for symbol in symbols.split())
    assert to_arpabet("ˈaɪə") == ["AY", "AH"]
    assert to_arpabet("ɔːɹ") == ["AO", "R"]
    assert to_arpabet("tʃ") == ["CH"]
    assert to_ipa(["AH", "B", "AH", "V"], ["ə", "b", "ˈʌ", "v"]) == ["ə", "b", "ˈʌ", "v"]
    assert to_ipa(["N", "ER", "S", "ER"], ["n", "ˈɜː", "s", "ɚ"]) == ["n", "ˈɜː", "s", "ɚ"]
    assert to_ipa(["F", "AO", "R"], ["f", "ˈɔːɹ"]) == ["f", "ˈɔː", "ɹ"]
    assert to_ipa(["AH"], []) == ["ə"]

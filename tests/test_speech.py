"""Speech: the times of phonemes and words agree with what is heard, for the neural voice and for the synthetic ones."""

import functools
import threading

import numpy as np
import pytest

from aa import voices
from aa.errors import InputError
from aa.speech import SILENCE, VOICES, Speech, bare, sentences, silence, speak

TEXT = "A happy baby put the paper cup on top of the map, didn't he? Pick up two big books today."
VOWELS = tuple("aeiouæɑɒɔəɐɛɜɪʊʌɚᵻʉ")


@functools.cache
def said(voice: str) -> Speech:
    return speak(TEXT, voice)


def level(sound: np.ndarray) -> np.ndarray:
    """dB in steps of 5 ms."""
    blocks = sound[: len(sound) // 80 * 80].reshape(-1, 80)
    return 10 * np.log10(np.square(blocks).mean(axis=1) + 1e-10)


@pytest.mark.parametrize("voice", VOICES)
def test_times_are_gapless_and_end_with_the_sound(voice):
    speech = said(voice)
    assert speech.audio.dtype == np.float32
    assert np.abs(speech.audio).max() <= 1
    starts, ends = (np.array([p[i] for p in speech.phonemes]) for i in (1, 2))
    assert starts[0] == 0
    np.testing.assert_array_equal(starts[1:], ends[:-1])
    assert (ends > starts).all()
    assert ends[-1] == len(speech.audio) / 16000 == speech.duration
    assert sum(ends - starts) == pytest.approx(speech.duration)
    assert speech.phonemes[0][0] == speech.phonemes[-1][0] == SILENCE


@pytest.mark.parametrize("voice", VOICES)
def test_words_cover_the_phonemes(voice):
    speech = said(voice)
    heard = " ".join(word for word, _, _ in speech.words).split()
    assert heard == TEXT.replace(",", "").replace("?", "").replace(".", "").split()
    for symbol, start, end in speech.phonemes:
        inside = any(a <= start and end <= b for _, a, b in speech.words)
        assert inside == (symbol != SILENCE)
    assert all(a[2] <= b[1] for a, b in zip(speech.words, speech.words[1:]))


@pytest.mark.parametrize("voice", VOICES)
def test_stops_are_silent_before_loud_vowels(voice):
    """The lip closure itself is inside /p b t k/, not in the vowel before it."""
    speech, db = said(voice), level(said(voice).audio)
    steps = []
    for (symbol, start, end), (after, _, until) in zip(speech.phonemes, speech.phonemes[1:]):
        if bare(symbol) in tuple("pbtk") and bare(after)[0] in VOWELS and end - start > 0.04:
            closed = db[int(start * 200) + 1 : int((start + 0.6 * (end - start)) * 200)]
            steps.append(db[int(end * 200) : int(until * 200) + 1].max() - np.median(closed))
    assert len(steps) >= 6
    assert np.median(steps) > 18
    assert np.mean(np.array(steps) > 8) > 0.9


@pytest.mark.parametrize("voice", VOICES)
def test_pauses_are_quiet_and_words_begin_where_sound_begins(voice):
    speech, db = said(voice), level(said(voice).audio)
    vowels = [db[int(a * 200) : int(b * 200) + 1].max() for s, a, b in speech.phonemes if bare(s)[0] in VOWELS and b - a > 0.06]
    for (symbol, start, end), (_, begin, _) in zip(speech.phonemes, speech.phonemes[1:]):
        if symbol == SILENCE and end - start > 0.1:
            inner = db[int((start + 0.04) * 200) : int((end - 0.03) * 200)]
            assert inner.max() < np.median(vowels) - 30
            first = int((begin - 0.1) * 200) + np.flatnonzero(db[int((begin - 0.1) * 200) :] > -50)[0]
            assert -0.015 < first / 200 - begin < 0.1  # the closure of a stop may come first


def test_same_seed_same_bytes_and_another_seed_differs():
    for voice in ("joe", "gb-woman"):
        one, two, other = (speak("We move our lips.", voice, seed=seed) for seed in (3, 3, 4))
        assert one.audio.tobytes() == two.audio.tobytes()
        assert one.phonemes == two.phonemes
        assert len(other.audio) != len(one.audio)
        assert [p[0] for p in other.phonemes] == [p[0] for p in one.phonemes]


@pytest.mark.parametrize("voice", ["joe", "us-man"])
def test_rate_changes_the_speed(voice):
    slow, fast = (speak("Nothing moved on the river.", voice, rate=rate) for rate in (0.7, 1.4))
    assert 1.5 < slow.words[-1][2] / fast.words[-1][2] < 2.3


def test_voices_differ_in_pitch_and_accent():
    assert len(VOICES) >= 7
    joined = {voice: "".join(symbol for symbol, _, _ in said(voice).phonemes) for voice in VOICES}
    assert len(set(joined.values())) >= 4

    def pitch(voice):
        from aa.audio import _pitch, frame_count

        strength, hertz = _pitch(said(voice).audio, frame_count(len(said(voice).audio)))
        return np.median(hertz[strength > 0.8])

    assert pitch("gb-woman") > 1.3 * pitch("gb-man")
    assert pitch("us-woman") > 1.2 * pitch("us-man")


def test_numbers_abbreviations_and_merged_words():
    for voice in ("joe", "us-woman"):
        speech = speak("Mr. Brown paid 3.50 for the box.", voice)
        assert [word for word, _, _ in speech.words] == ["Mr", "Brown", "paid", "3.50", "for the", "box"]
        assert [symbol for symbol, _, _ in speech.phonemes].count(SILENCE) == 2  # none after "Mr."
        three_fifty = next(word for word in speech.words if word[0] == "3.50")
        assert three_fifty[2] - three_fifty[1] > 0.6


def test_piper_reads_the_same_phonemes_as_espeak():
    symbols = [[symbol for symbol, _, _ in speech.phonemes] for speech in (said("joe"), said("us-man"))]
    assert symbols[0] == symbols[1]


def test_espeak_can_be_used_again_and_from_threads():
    alone = {voice: said(voice).audio for voice in ("gb-man", "us-woman")}
    found = {}

    def work(voice):
        found[voice] = speak(TEXT, voice).audio

    threads = [threading.Thread(target=work, args=(voice,)) for voice in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for voice, sound in alone.items():
        np.testing.assert_array_equal(found[voice], sound)


def test_bad_requests_are_refused():
    for text in ("", "  \n ", "...", "?!"):
        with pytest.raises(InputError, match="at least one word"):
            speak(text, "us-man")
    with pytest.raises(InputError, match="joe"):
        speak("Hello.", "nobody")
    with pytest.raises(InputError, match="between"):
        speak("Hello.", rate=9)


def test_speech_round_trip(tmp_path):
    speech = said("us-man")
    back = Speech.load(speech.save(tmp_path / "speech"))
    np.testing.assert_array_equal(back.audio, speech.audio)
    assert (back.text, back.voice, back.phonemes, back.words) == (TEXT, "us-man", speech.phonemes, speech.words)
    with pytest.raises(InputError):
        Speech.load(tmp_path)


def test_silence():
    quiet = silence(1.5)
    assert quiet.duration == 1.5
    assert not quiet.audio.any()
    assert quiet.phonemes == [(SILENCE, 0.0, 1.5)]


def test_corpus_is_varied_and_split_once_and_for_all():
    everything, train, held = sentences(), sentences("train"), sentences("held-out")
    assert len(everything) == len(set(everything)) >= 110
    assert sorted(train + held) == sorted(everything)
    assert 0.1 < len(held) / len(everything) < 0.2
    assert sum(s.endswith("?") for s in everything) >= 12
    heard = set()
    for sentence in everything:
        _, rate, events = voices._events(sentence, "en-us", 400, 50)
        heard |= {bare(phone.symbol) for phone in voices._phones(sentence, events, rate)[0]}
    consonants = set("pbtdkɡfvθðszʃʒhmnŋlɹwj") | {"tʃ", "dʒ"}
    vowels = {"iː", "ɪ", "eɪ", "ɛ", "æ", "ɑː", "ɔː", "oʊ", "ʊ", "uː", "ʌ", "ɜː", "ə", "ɚ", "aɪ", "aʊ", "ɔɪ"}
    assert heard >= consonants | vowels
    with pytest.raises(ValueError, match="split"):
        sentences("test")

"""Speech: the times of phonemes and words agree with what is heard, for the neural voice and for the synthetic ones."""

import functools
import threading

import numpy as np
import pytest

from aa import speech as module
from aa.corpus import LIP_PAIRS, PHONEMES, VISEMES
from aa.errors import InputError
from aa.media import write_video
from aa.speech import SILENCE, VOICES, Speech, bare, coverage, sentences, silence, speak
from aa.transcript import readable

TEXT = "A happy baby put the paper cup on top of the map, didn't he? Pick up two big books today."
VOWELS = tuple("aeiouæɑɒɔəɐɛɜɪʊʌɚᵻʉ")


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@functools.cache
def said(voice: str) -> Speech:
    return speak(TEXT, voice, cache=False)


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
        one, two, other = (speak("We move our lips.", voice, seed=seed, cache=False) for seed in (3, 3, 4))
        assert one.audio.tobytes() == two.audio.tobytes()
        assert one.phonemes == two.phonemes
        assert len(other.audio) != len(one.audio)
        assert [p[0] for p in other.phonemes] == [p[0] for p in one.phonemes]


@pytest.mark.parametrize("voice", ["joe", "us-man", "scots-man", "nyc-woman"])
def test_rate_changes_the_speed(voice):
    lasts = [speak("Nothing moved on the river.", voice, rate=rate).words[-1][2] - module.LEAD for rate in (0.5, 0.7, 1, 1.4, 2)]
    assert lasts == sorted(lasts, reverse=True)
    assert 1.6 < lasts[1] / lasts[3] < 2.4
    assert 2.4 < lasts[0] / lasts[4] < 5


def test_voices_differ_in_pitch_and_accent():
    assert len(VOICES) >= 7
    joined = {voice: "".join(symbol for symbol, _, _ in said(voice).phonemes) for voice in VOICES}
    assert len(set(joined.values())) >= 4

    def pitch(voice):
        from aa import acoustics

        strength, hertz = acoustics.pitch(said(voice).audio, acoustics.frame_count(len(said(voice).audio)))
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
        found[voice] = speak(TEXT, voice, cache=False).audio

    threads = [threading.Thread(target=work, args=(voice,)) for voice in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for voice, sound in alone.items():
        np.testing.assert_array_equal(found[voice], sound)


def test_bad_requests_are_refused():
    for text in ("", "  \n ", "...", "?!", "!!!", "😀 👍🏽", "—", "\ud800"):
        with pytest.raises(InputError, match="at least one word"):
            speak(text, "us-man")
    with pytest.raises(InputError, match="string"):
        speak(None)
    with pytest.raises(InputError, match="joe"):
        speak("Hello.", "nobody")
    for rate in (9, 0.1, float("nan")):
        with pytest.raises(InputError, match="between"):
            speak("Hello.", rate=rate)
    with pytest.raises(InputError, match="6000 characters"):
        speak("Hello " * 999 + "Hello!", "us-man")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Привет, как дела?", "Cyrillic"),
        ("你好，世界", "Chinese"),
        ("مرحبا بالعالم", "Arabic"),
        ("Say ありがとう!", "Japanese"),
        ("안녕하세요", "Korean"),
        ("ελληνικά", "Greek"),
        ("Guten Morgen, wie geht es Ihnen heute?", "German"),
        ("Bonjour, je suis très content de vous voir.", "French"),
        ("Hola, ¿cómo está usted?", "Spanish"),
        ("Ciao, come stai oggi? Molto bene, grazie.", "Italian"),
    ],
)
def test_other_languages_are_refused_by_name(text, named):
    with pytest.raises(InputError, match=f"English only.*{named}"):
        speak(text, "us-man")


def test_english_with_foreign_bits_is_spoken():
    for text in (
        *sentences(),
        "Les Misérables is a musical.",
        "She said je ne sais quoi, and left.",
        "π is about 3.14",
        "c'est la vie",
    ):
        assert readable(text) == text
    assert readable(" Ｈello\t😀 there\u200b, cafe\u0301! ") == "Hello there, café!"
    words = [word for word, _, _ in speak("The café was naïve 😀, 20 °C.", "us-man").words]
    assert words == ["The", "café", "was", "naïve", "20", "°C"]


def test_an_endless_sentence_is_cut_between_words():
    speech = speak("the quick brown fox jumps over the lazy dog and then " * 8, "joe", rate=2)
    assert len(speech.words) == 88
    assert all(end - start < 0.05 for symbol, start, end in speech.phonemes[1:-1] if symbol == SILENCE)


def test_cache_gives_the_same_bytes_and_survives_damage(tmp_path, monkeypatch):
    monkeypatch.setenv("AA_CACHE", str(tmp_path / "cache"))
    fresh = speak("Bob buys maps.", "us-man", 1.1, 5)
    (entry,) = (tmp_path / "cache" / "speech").iterdir()
    monkeypatch.setattr(module, "_speak", None)  # from here on, speaking fails
    again = speak("  Bob buys\nmaps.", "us-man", 1.1, 5)
    assert again.audio.tobytes() == fresh.audio.tobytes()
    assert (again.text, again.voice, again.phonemes, again.words) == (fresh.text, fresh.voice, fresh.phonemes, fresh.words)
    for other in (("Bob buys mops.", "us-man", 1.1, 5), ("Bob buys maps.", "gb-man", 1.1, 5), ("Bob buys maps.", "us-man", 1.2, 5)):
        with pytest.raises(TypeError):
            speak(*other)
    with pytest.raises(TypeError):
        speak("Bob buys maps.", "us-man", 1.1, 5, cache=False)
    monkeypatch.undo()
    monkeypatch.setenv("AA_CACHE", str(tmp_path / "cache"))
    whole = entry.read_bytes()
    for damage in (b"", whole[:50], whole[: len(whole) // 2], b"x" * 100):
        entry.write_bytes(damage)
        assert speak("Bob buys maps.", "us-man", 1.1, 5).audio.tobytes() == fresh.audio.tobytes()
        assert entry.read_bytes() == whole
    monkeypatch.setattr(module, "VERSION", "another")
    speak("Bob buys maps.", "us-man", 1.1, 5)
    assert len(list(entry.parent.iterdir())) == 2
    module._trim(entry.parent, 1.5 * len(whole))
    assert len(list(entry.parent.iterdir())) == 1


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("AA_CACHE", str(tmp_path / "file"))
    assert speak("Bob buys maps.", "us-man").duration > 0.5


def test_recordings_without_transcript(tmp_path):
    film = write_video(tmp_path / "film.mp4", [np.zeros((32, 32, 3), np.uint8)] * 25, said("us-man").audio[:16000])
    speech = Speech.from_recording(film)
    assert (speech.duration, speech.text, speech.words) == (1.0, "", [])
    assert np.corrcoef(speech.audio, said("us-man").audio[:16000])[0, 1] > 0.95
    assert speech.phonemes[0][1] == 0
    assert speech.phonemes[-1][2] == 1.0
    heard, true = ({bare(p) for p, _, end in s.phonemes if end < 0.95} - {SILENCE} for s in (speech, said("us-man")))
    assert len(heard & true) >= 3


def test_bad_recordings_are_refused(tmp_path):
    frames = [np.zeros((32, 32, 3), np.uint8)] * 25
    (tmp_path / "broken.mp3").write_bytes(bytes(range(256)) * 40)
    with pytest.raises(InputError, match="does not exist"):
        Speech.from_recording(tmp_path / "nothing.wav")
    with pytest.raises(InputError, match=r"broken\.mp3"):
        Speech.from_recording(tmp_path / "broken.mp3", "Hello.")
    with pytest.raises(InputError, match="no sound"):
        Speech.from_recording(write_video(tmp_path / "mute.mp4", frames))
    with pytest.raises(InputError, match="silent"):
        Speech.from_recording(write_video(tmp_path / "quiet.mp4", frames, np.zeros(16000, np.float32)))


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
    assert len(everything) == len(set(everything)) >= 320
    assert sorted(train + held) == sorted(everything)
    assert 0.1 < len(held) / len(everything) < 0.2
    assert {"Stop!", "Hello, my name does not matter, but my voice does."} <= set(train)
    lengths = [len(s.split()) for s in everything]
    assert sum(n <= 4 for n in lengths) >= 30
    assert sum(n >= 25 for n in lengths) >= 10
    assert sum(s.endswith("?") for s in everything) >= 35
    assert sum(s.endswith("!") for s in everything) >= 8
    assert sum(s.count(",") >= 3 for s in everything) >= 20  # lists
    assert sum(any(c.isdigit() for c in s) for s in everything) >= 20
    with pytest.raises(ValueError, match="split"):
        sentences("test")


def test_corpus_covers_every_sound_and_the_neighbours_that_matter_for_lips():
    train, held = coverage(sentences("train")), coverage(sentences("held-out"))
    assert len(PHONEMES) == 39
    assert len(LIP_PAIRS) == 90
    assert train.missing(5) == []
    assert held.missing(1) == []
    assert set(held.visemes) == set(VISEMES)
    assert min(held.visemes.values()) >= 20
    british = coverage(sentences("held-out"), "gb-man")  # drops its r
    assert set(british.missing()) <= {"RP", "RB", "RM"}


def test_coverage_counts():
    found = coverage(["Bob, you may."])
    assert dict(found.phonemes) == {"B": 2, "AA": 1, "Y": 1, "UW": 1, "M": 1, "EY": 1}
    assert found.pairs["B+open"] == found.pairs["open+B"] == found.pairs["round+M"] == found.pairs["M+spread"] == 1
    assert found.pairs["BY"] == 0  # the comma is a pause
    assert "P" in found.missing()
    assert "P+round" in found.missing()

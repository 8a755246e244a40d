"""When is what said in a recording: forced alignment of sound with its transcript, by pocketsphinx (5.1, BSD licence), offline.

espeak-ng reads the transcript (numbers, abbreviations, stress); the dictionary of pocketsphinx says how each word may sound, and
espeak's own phonemes stand in for words it does not know. The recogniser then has only to find the times: first of the words and
pauses, then of the phonemes (three-state hidden Markov models, steps of 10 ms). Its ARPABET symbols become our IPA ones.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np

from aa.arpabet import to_arpabet, to_ipa
from aa.audio import loudness
from aa.errors import InputError
from aa.media import SAMPLE_RATE
from aa.transcript import readable
from aa.voices import SILENCE, bare, read

STEP = 0.01  # s from one frame of the recogniser to the next
LATE = 0.0078  # s: a frame is counted where its window of 25.6 ms begins, so that its 10 ms are centred 12.8 ms later
SILENT_DB = -60.0  # a recording whose loudest frame is below this is silent
LONGEST = 600.0  # s
PIECE = 20.0  # s: phonemes are timed in pieces cut at pauses, for the memory grows with the square of the length
SHORT_PAUSE = 0.08  # s: a gap between words below this is the closure of a stop or the end of a sound
NOISE = 10 ** (-40 / 20)  # of the speech's rms: digital silence is unknown to the acoustic model
# Mean log likelihood per frame in pocketsphinx's units: read as written -10 .. -50, other words -47 .. -90
WORST = -52.0  # of all that is said
WORST_SPELL, SPELL = -57.0, 1.5  # of any SPELL seconds, pauses as well


@dataclass(frozen=True)
class _Unit:
    """What is aligned in one piece: a word, or words that are read as one."""

    text: str
    group: int  # index of the word of `read`
    sounds: tuple[tuple[str, ...], ...]  # ways to say it, in ARPABET


@dataclass(frozen=True)
class _Timed:
    """A sound with its first and end frame; `unit` None for a pause."""

    unit: int | None
    name: str
    start: int
    end: int
    score: float  # sum over its frames


def check_sound(audio, name: str = "the recording") -> None:
    """InputError for a silent recording (`name` is how to call it), or one longer than ten minutes."""
    if loudness(audio).max() < SILENT_DB:
        raise InputError(f"{name} is silent: give a recording in which somebody speaks.")
    if len(audio) > LONGEST * SAMPLE_RATE:
        raise InputError(f"{name} lasts {len(audio) / SAMPLE_RATE / 60:.0f} minutes: give ten at most, the rest as another file.")


def align(audio, transcript: str):
    """Sound (n,) float32 at 16 kHz and the English words said in it -> phonemes, words as in `aa.speech.Speech`.

    Returns:
        phonemes: [(IPA symbol or SILENCE, start s, end s)], without gaps from 0 to the end of the sound.
        words: [(word, start s, end s)].
    Raises InputError: silent or too long sound, text that is not readable English, a transcript that does not fit the sound.
    """
    audio = np.asarray(audio, np.float32)
    check_sound(audio)
    text = readable(transcript, longest=25 * int(LONGEST))
    decoder = _decoder()
    units, symbols = _units(text, decoder)
    if not units:
        raise _misfit()
    timed = _times(decoder, units, audio)
    _check_fit(timed)
    return _as_speech(_without_dead_ends(timed, audio), units, symbols, len(audio) / SAMPLE_RATE)


# ---------------------------------------------------------------- what is to be said


def _pronunciations(decoder, word: str) -> list[tuple[str, ...]]:
    """What the dictionary offers for a word, nothing if it is unknown; words with hyphens are looked up in parts."""
    parts = []
    for part in filter(None, word.lower().replace("’", "'").split("-")):
        names = itertools.chain([part], (f"{part}({n})" for n in itertools.count(2)))
        parts.append([tuple(sounds.split()) for sounds in itertools.takewhile(bool, map(decoder.lookup_word, names))])
    choices = itertools.islice(itertools.product(*parts), 6) if parts else ()
    return [tuple(itertools.chain(*choice)) for choice in choices]


def _units(text: str, decoder) -> tuple[list[_Unit], list[list[str]]]:
    """Text -> units, and the symbols that espeak reads for each group of words."""
    phones, words = read(text)
    symbols = [[p.symbol for p in phones if p.word == g and p.symbol != SILENCE] for g in range(len(words))]
    units = []
    for g, group in enumerate(words):
        tokens = [token for token in group.split() if any(c.isalnum() for c in token)]
        known = [_pronunciations(decoder, token) for token in tokens]
        if len(tokens) < 2 or not all(known):  # an unknown word among those that espeak runs together: take them as one
            spoken = tuple(itertools.chain(*map(to_arpabet, symbols[g])))
            known = [[*(known[0] if len(tokens) == 1 else []), *([spoken] if spoken else [])]]
            tokens = [group]
        units += [_Unit(token, g, tuple(dict.fromkeys(sounds))) for token, sounds in zip(tokens, known) if sounds]
    return units, symbols


# ---------------------------------------------------------------- when it is said


def _decoder():
    """The recogniser, with beams so wide that any voice gets through: pruning serves searching, and here the words are known."""
    from pocketsphinx import Decoder

    wide = dict.fromkeys(("beam", "pbeam", "wbeam"), 1e-300)
    # bestpath is a search through the lattice of the first pass, which loses words when the beams are wide
    return Decoder(lm=None, bestpath=False, maxhmmpf=-1, loglevel="FATAL", backtrace=False, **wide)


def _decode(decoder, sound: bytes) -> None:
    decoder.start_utt()
    decoder.process_raw(sound, full_utt=True)
    decoder.end_utt()


def _bytes(audio: np.ndarray) -> bytes:
    """(n,) -> 16 bit samples, at one level, over faint noise."""
    audio = audio * (0.5 / np.abs(audio).max())
    noise = np.random.default_rng(0).normal(0, NOISE * np.sqrt(np.square(audio).mean()), len(audio))
    return np.round((audio + noise) * 32767).astype("<i2").tobytes()


def _times(decoder, units: list[_Unit], audio: np.ndarray) -> list[_Timed]:
    """Every sound with its frames. Long recordings: words first, then the sounds of one piece after the other."""
    names = {}
    for unit in units:  # every way to say a unit is a word of the dictionary: w0, w0(2), ...
        if unit.sounds not in names:
            names[unit.sounds] = f"w{len(names)}"
            for n, sounds in enumerate(unit.sounds):
                decoder.add_word(names[unit.sounds] + (f"({n + 1})" if n else ""), " ".join(sounds), False)
    sequence = [names[unit.sounds] for unit in units]
    sound, hop = _bytes(audio), round(STEP * SAMPLE_RATE) * 2  # bytes of one frame
    words = _find_words(decoder, sequence, sound)
    pieces, out = _pieces(words, len(units), len(sound) // hop), []
    for first, last, start, end in pieces:
        piece = sound[start * hop : end * hop] if len(pieces) > 1 else sound
        if len(pieces) > 1:
            _find_words(decoder, sequence[first:last], piece)
        out += _find_sounds(decoder, piece, first, start)
    return out


def align_sounds(audio, words: list[list[str]]) -> list[tuple[str, float, float]]:
    """Sound (n,) at 16 kHz and what is said in it, as words of IPA symbols -> phonemes as in `align`, however badly they fit."""
    units = [_Unit("", k, (tuple(itertools.chain(*map(to_arpabet, word))),)) for k, word in enumerate(words)]
    timed = _times(_decoder(), units, np.asarray(audio, np.float32))
    return _as_speech(_without_dead_ends(timed, audio), units, words, len(audio) / SAMPLE_RATE)[0]


def _misfit(where: str = "") -> InputError:
    return InputError(f"the transcript does not fit the recording{where}: give the words that are said in it, all and no others.")


def _check_fit(timed: list[_Timed]) -> None:
    """InputError where the sound is unlikely to be what is written."""
    frames = np.zeros(timed[-1].end)
    spoken = np.zeros(len(frames), bool)
    for t in timed:
        frames[t.start : t.end] = t.score / max(t.end - t.start, 1)
        spoken[t.start : t.end] = t.unit is not None
    if frames[spoken].mean() < WORST:
        raise _misfit()
    width = min(round(SPELL / STEP), len(frames))
    spells = np.convolve(frames, np.ones(width) / width, "valid")
    if spells.min() < WORST_SPELL:
        raise _misfit(f" around second {(np.argmin(spells) + width / 2) * STEP:.0f}")


def _find_words(decoder, sequence: list[str], sound: bytes) -> list[tuple[str, int, int]]:
    """First pass -> (name of the word or of a pause, first frame, end frame)."""
    decoder.set_align_text(" ".join(sequence))
    _decode(decoder, sound)
    found = [(s.word.split("(")[0], s.start_frame, s.end_frame + 1) for s in decoder.seg() or ()]
    if [name for name, _, _ in found if name[0] == "w"] != sequence:
        raise _misfit()
    return found


def _pieces(words, count: int, frames: int) -> list[tuple[int, int, int, int]]:
    """(first unit, end unit, first frame, end frame) of pieces of about PIECE seconds, cut in the middle of pauses."""
    pieces, first, start, seen = [], 0, 0, 0
    for name, begin, end in words:
        middle = (begin + end) // 2
        if name[0] == "w":
            seen += 1
        elif first < seen < count and end - begin > 10 and middle - start > PIECE / STEP:
            pieces.append((first, seen, start, middle))
            first, start = seen, middle
    return [*pieces, (first, count, start, frames)]


def _find_sounds(decoder, sound: bytes, first: int, offset: int) -> list[_Timed]:
    """Second pass over what `_find_words` has just done: the frames of each phoneme. The first unit is number `first`."""
    decoder.set_alignment()
    _decode(decoder, sound)
    out, unit = [], first - 1
    for word in decoder.get_alignment():
        spoken = word.name[0] == "w"
        unit += spoken
        for p in word:
            begin = offset + p.start
            out.append(_Timed(unit if spoken else None, p.name, begin, begin + p.duration, p.score))
    return out


def _without_dead_ends(timed: list[_Timed], audio: np.ndarray) -> list[_Timed]:
    """The last sound of a word ends where the level falls 45 dB below the loud frames; what follows is a pause.

    A stop may be silent, that is its nature; a gap inside a word or too short for a pause is left alone.
    """
    hop = round(STEP * SAMPLE_RATE)
    power = np.square(audio[: len(audio) // hop * hop].reshape(-1, hop)).mean(axis=1)
    heard = power > 10**-4.5 * np.percentile(power, 95)
    out, start = [], None  # start: of the pause that comes early
    for t, after in itertools.zip_longest(timed, timed[1:]):
        begin, start = t.start if start is None else start, None
        end = t.end
        if t.unit is not None and (after is None or after.unit != t.unit) and t.name not in tuple("PTKBDG"):
            last = np.flatnonzero(heard[begin:end])
            end = min(end, begin + max(3, int(last[-1]) + 3 if len(last) else 0))  # 20 ms more than is heard
        pause = after is not None and after.unit is None
        if not pause and t.end - end < SHORT_PAUSE / STEP:
            end = t.end
        out.append(replace(t, start=begin, end=end))
        if end < t.end and pause:
            start = end
        elif end < t.end:
            out.append(_Timed(None, "SIL", end, t.end, 0.0))
    return out


def _as_speech(timed: list[_Timed], units: list[_Unit], symbols, duration: float):
    """Frames -> phonemes and words in seconds."""
    said = {}  # group: its sounds in ARPABET
    for t in timed:
        if t.unit is not None:
            said.setdefault(units[t.unit].group, []).append(t.name)
    ipa = {group: iter(to_ipa(names, symbols[group])) for group, names in said.items()}
    rows = []  # symbol, start, unit
    for t in timed:
        start = round(t.start * STEP + LATE, 4) if t.start else 0.0
        symbol = SILENCE if t.unit is None else next(ipa[units[t.unit].group])
        if not (rows and symbol == SILENCE == rows[-1][0]) and start < duration:
            rows.append((symbol, start, t.unit))
    rows = _without_short_pauses(rows, duration)
    ends = [*(start for _, start, _ in rows[1:]), duration]
    phonemes = [(symbol, start, end) for (symbol, start, _), end in zip(rows, ends)]
    words = []
    for unit, parts in itertools.groupby(zip(rows, ends), key=lambda pair: pair[0][2]):
        parts = list(parts)
        if unit is not None:
            words.append((units[unit].text, parts[0][0][1], parts[-1][1]))
    return phonemes, words


def _without_short_pauses(rows, duration: float):
    """A pause too short to be one belongs to the stop whose closure it is, else to the sound before it."""
    out, gap = [], None
    for k, (symbol, start, unit) in enumerate(rows):
        end = rows[k + 1][1] if k + 1 < len(rows) else duration
        if symbol == SILENCE and 0 < k < len(rows) - 1 and end - start < SHORT_PAUSE:
            gap = start
            continue
        closes = gap is not None and bare(symbol)[:1] in tuple("pbtdkɡ")
        out.append((symbol, gap if closes else start, unit))
        gap = None
    return out

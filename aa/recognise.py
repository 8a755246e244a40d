"""What is said in a recording, and when, without a transcript: recognised phones, then forced alignment of these.

The recogniser (`aa.phones`) knows which phones are said, but its spikes (CTC) only roughly when; the aligner (`aa.alignment`) knows
when. Spelling is not recovered: lips do not need it.
"""

import unicodedata

import numpy as np

from aa.alignment import align_sounds, check_sound
from aa.arpabet import is_vowel, to_arpabet
from aa.audio import loudness, normalise
from aa.errors import InputError
from aa.media import FPS
from aa.phones import RATE, load_recogniser, posteriors

# Sounds of other languages, and of other ways to write English, as the nearest ones of our voices.
_LIKE = {
    "ɑ": "a", "eɪ": "e", "oʊ": "o", "uː": "y", "ɜ": "øœ", "ɚ": "ɝ", "ɪ": "ɨ", "ə": "ɘɤ", "ʊ": "ɯʏɵ", "ɡ": "gɣɟ", "k": "c",
    "b": "ɓʙ", "d": "ɗɖ", "t": "ʈ", "m": "ɱ", "n": "ɲ", "ŋ": "ɴ", "l": "ʎɮ", "j": "ʝ", "w": "ɰɥ", "v": "βʋ", "f": "ɸ", "ʃ": "ɕʂ",
    "ʒ": "ʑʐ", "h": "ɦχħ", "ɹ": "ʁʀɻɽ",
}  # fmt: skip
NEAREST = {letter: symbol for symbol, letters in _LIKE.items() for letter in letters}
BLANK_BIAS = 0.1  # of the log-posterior: rather one phone too many than a pair of lips that do not close


def heard_phones(audio) -> list[list[tuple[str, float]]]:
    """Sound (n,) at 16 kHz -> words of (IPA symbol as in `aa.arpabet`, time s of its spike)."""
    tokens, scores = load_recogniser().tokens, posteriors(normalise(audio))
    scores[:, tokens.index("<blank>")] -= BLANK_BIAS
    words, last = [[]], ""
    for k, token in enumerate(tokens[i] for i in scores.argmax(1)):
        if token == "<wb>" != last:
            words.append([])
        elif token not in (last, "<blank>"):
            symbol = plain(token)
            words[-1] += [(symbol, k / RATE)] * bool(to_arpabet(symbol))
        last = token
    return [word for word in words if word]


def plain(token: str) -> str:
    """A token of the recogniser without ties and diacritics, in the symbols of `aa.arpabet`."""
    letters = [c for c in unicodedata.normalize("NFD", token) if unicodedata.category(c) not in ("Mn", "Lm")]
    whole = "".join(letters)
    return whole if len(to_arpabet(whole)) == 1 and whole not in NEAREST else "".join(NEAREST.get(c, c) for c in letters)


def recognise(audio, name: str = "the recording") -> list[tuple[str, float, float]]:
    """Sound (n,) float32 at 16 kHz -> phonemes [(IPA symbol or SILENCE, start s, end s)], without gaps; the loudest full vowel
    of each word is stressed.

    Raises InputError: silent or too long, nothing that sounds like speech, sounds that could not be timed.
    """
    audio = np.asarray(audio, np.float32)
    check_sound(audio, name)
    words = heard_phones(audio)
    if sum(map(len, words)) < 2:
        raise InputError(f"no speech was heard in {name}: give a recording in which somebody speaks, or the words said in it.")
    level = loudness(audio)
    try:
        return align_sounds(audio, [_stressed(word, level) for word in words])
    except InputError as error:
        raise InputError(f"the speech in {name} could not be followed: give the words that are said in it.") from error


def _stressed(word: list[tuple[str, float]], level: np.ndarray) -> list[str]:
    """The symbols of a word, with a mark on its loudest vowel unless that is a schwa."""
    full = [k for k, (symbol, _) in enumerate(word) if is_vowel(to_arpabet(symbol)[0]) and symbol not in ("ə", "ɚ")]
    most = max(full, key=lambda k: level[min(int(word[k][1] * FPS), len(level) - 1)], default=None)
    return [("ˈ" if k == most else "") + symbol for k, (symbol, _) in enumerate(word)]

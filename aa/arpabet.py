"""ARPABET, the alphabet of the CMU pronouncing dictionary (39 sounds of American English), to and from the IPA of our voices."""

from aa.voices import bare

# The symbols of espeak's American English for each sound; the first one is what the sound becomes.
ARPABET = {
    "AA": "ɑː ɑ ɒ", "AE": "æ a", "AH": "ʌ ə ɐ", "AO": "ɔː ɔ oː", "AW": "aʊ", "AY": "aɪ", "EH": "ɛ", "ER": "ɚ ɜː ɜ", "EY": "eɪ e eː",
    "IH": "ɪ ᵻ", "IY": "iː i", "OW": "oʊ o əʊ", "OY": "ɔɪ", "UH": "ʊ", "UW": "uː u ʉ", "B": "b", "CH": "tʃ", "D": "d", "DH": "ð",
    "F": "f", "G": "ɡ", "HH": "h", "JH": "dʒ", "K": "k x", "L": "l ɫ", "M": "m", "N": "n", "NG": "ŋ", "P": "p", "R": "ɹ r",
    "S": "s", "SH": "ʃ", "T": "t ɾ ʔ", "TH": "θ", "V": "v", "W": "w ʍ", "Y": "j", "Z": "z", "ZH": "ʒ",
}  # fmt: skip
_SOUNDS = {symbol: name for name, symbols in ARPABET.items() for symbol in symbols.split()} | {"n̩": "AH N", "ɬ": "L"}
_WEAK = {"AH": "ə", "ER": "ɚ"}  # of an unstressed syllable
_STRONG = {"AH": "ʌ", "ER": "ɜː"}


def to_arpabet(symbol: str) -> list[str]:
    """An IPA symbol of espeak -> ARPABET: "ˈaɪə" -> ["AY", "AH"]. What is no English sound is left out."""
    rest, out = bare(symbol), []
    while rest:
        length = next((n for n in (3, 2, 1) if rest[:n] in _SOUNDS), 0)
        out += _SOUNDS[rest[:length]].split() if length else []
        rest = rest[length or 1 :]
    return out


def is_vowel(name: str) -> bool:
    """Whether an ARPABET sound is a vowel."""
    return name[0] in "AEIOU"


def to_ipa(names: list[str], symbols: list[str]) -> list[str]:
    """The ARPABET sounds of a word -> IPA, with stress marks and weak vowels after `symbols`, espeak's reading of the same word.

    Vowels are paired in order; where the two disagree about their number, by their share of the word.
    """
    read = []  # (symbol, stress mark) of each vowel that espeak reads
    for symbol in symbols:
        vowels = [name for name in to_arpabet(symbol) if is_vowel(name)]
        mark = symbol[: len(symbol) - len(bare(symbol))]
        read += [(bare(symbol) if len(to_arpabet(symbol)) == 1 else "", mark * (k == 0)) for k in range(len(vowels))]
    count, seen, out = sum(map(is_vowel, names)), 0, []
    for name in names:
        symbol = ARPABET[name].split()[0]
        if is_vowel(name):
            like, mark = read[min((2 * seen + 1) * len(read) // (2 * count), len(read) - 1)] if read else ("", "")
            plain = (_STRONG if mark else _WEAK).get(name, symbol)
            symbol = mark + (like if _SOUNDS.get(like) == name else plain)
            seen += 1
        out.append(symbol)
    return out

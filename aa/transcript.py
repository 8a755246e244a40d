"""Text that is to be spoken or aligned: made plain for the voices, which read English, or refused with the reason."""

import re
import unicodedata

from aa.errors import InputError

LONGEST = 5000  # characters: some six minutes of speech
SPOKEN_SIGNS = "°©®™№"  # picture-like signs (Unicode So) that have a reading; others, such as emoji, have none worth hearing
ALPHABETS = {"CJK": "Chinese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean"}
# Frequent little words; those that are English words as well are left out.
_ENGLISH = """
the a an of to in is it and that for on with as at by this be are was were not you he she we they i my your his her
our if or but do did does have has had will would can could what who why when where how there from than so up out no
yes me him us them its let's it's don't i'm about all one two please thank
"""
LANGUAGES = {
    "German": "und der das ist nicht ich wie ein eine einen mit wir sie auf für zu den dem von sich auch wenn aber oder guten geht",
    "French": "les est une dans que vous nous avec pas qui je suis et ce cette sur il elle le la un où très bonjour mais ça",
    "Spanish": "los las una que por para está hola cómo muy pero del gracias el es en y lo su no se con como usted qué",
    "Italian": "il che sono una della ciao grazie di è gli nel questo molto perché anche mi si non un bene oggi come",
    "Portuguese": "não uma para com você está obrigado os em é que do da um muito eu são mais isso ele",
    "Dutch": "het een niet ik je dat van de en wij jij maar voor met zijn goed gaat hoe ook naar",
    "Polish": "się nie jest to na dzień dobry jak czy ja że dla co bardzo tak jestem",
    "Swedish": "och är det att inte jag en ett som på av med för du vi hur mår",
    "Turkish": "bir ve bu için çok ben sen değil nasıl ne merhaba günaydın iyi",
}
ENGLISH = frozenset(_ENGLISH.split())
_WORDS = {language: frozenset(words.split()) for language, words in LANGUAGES.items()}


def readable(text: str, longest: int = LONGEST) -> str:
    """The text in one line, without emoji and control characters, letters in their plain form.

    Raises InputError: nothing to read, more than `longest` characters, letters of another script, or another language by its
    little words. Accented letters ("café") and single Greek ones ("π") are fine.
    """
    if not isinstance(text, str):
        raise InputError(f"the text to speak is of type {type(text).__name__}: give a string.")
    plain = "".join(map(_plain, unicodedata.normalize("NFC", text)))
    plain = " ".join(plain.split())
    if not any(c.isalnum() for c in plain):
        what = f'in "{" ".join(text.split())[:40]}" there is nothing to speak' if text.strip() else "there is no text to speak"
        raise InputError(f"{what}: give at least one word.")
    if len(plain) > longest:
        raise InputError(f"the text has {len(plain)} characters: give {longest} at most, the rest as another text.")
    _check_script(plain)
    _check_language(plain)
    return plain


def _plain(c: str) -> str:
    """One character as the voices take it."""
    kind = unicodedata.category(c)
    if kind[0] == "C" or (kind == "So" and c not in SPOKEN_SIGNS):  # controls, joiners, unpaired surrogates; emoji
        return "" if kind == "Cf" else " "
    if kind == "Sk" or unicodedata.name(c, "").startswith("VARIATION SELECTOR"):  # skin tones and styles of emoji
        return ""
    return unicodedata.normalize("NFKC", c) if kind[0] == "L" and ord(c) > 0x2000 else c  # fullwidth, mathematical, ligatures


def _check_script(text: str) -> None:
    for word in text.split():
        letters = [c for c in word if c.isalpha()]
        for c in letters:
            name = unicodedata.name(c, "unknown").split()[0].split("-")[0]
            if name == "LATIN" or c in "µªº" or (name == "GREEK" and len(letters) == 1):
                continue
            script = ALPHABETS.get(name, name.capitalize())
            raise InputError(f'the voices speak English only, but "{word[:20]}" is written in {script} letters: give English text.')


def _check_language(text: str) -> None:
    """Latin letters say little about the language: its little words do. Short texts and names pass."""
    words = [w.strip("'") for w in re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text.lower().replace("’", "'"))]
    if len(words) < 3:
        return
    english = sum(w in ENGLISH for w in words)
    for language, little in _WORDS.items():
        hits = [w for w in words if w in little]
        strange = [w for w in hits if w not in ENGLISH]
        if len(set(strange)) >= 2 and len(hits) >= 0.3 * len(words) and len(strange) > 2 * (english - len(hits) + len(strange)):
            raise InputError(f'the voices speak English only, but "{text[:40]}" looks {language}: give English text.')

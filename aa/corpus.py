"""The corpus: sentences of our own, their split into train and held-out, and which sounds and lip movements they cover."""

import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from aa.arpabet import ARPABET, to_arpabet
from aa.voices import ESPEAK, SILENCE, read

SENTENCES = Path(__file__).resolve().parent.parent / "assets" / "sentences.txt"
HELD_OUT = 15  # percent

# What the lips do, as groups of ARPABET sounds; diphthongs by the half that is next to the consonant, see `_edge`.
SPREAD, OPEN, ROUND = ("IY", "IH", "EH", "EY"), ("AE", "AA", "AH", "AY", "AW", "ER"), ("UW", "UH", "OW", "AO", "OY")
VOWELS = {**dict.fromkeys(SPREAD, "spread"), **dict.fromkeys(OPEN, "open"), **dict.fromkeys(ROUND, "round")}
_ENDS = {"AY": "spread", "OY": "spread", "AW": "round"}  # how the others end
SHAPES = {"CH": "SH", "JH": "SH", "ZH": "SH", "Z": "S", "DH": "TH"}  # consonants that look alike
VISEMES = {
    "closed": "P B M", "lip-teeth": "F V", "rounded": "W UW UH OW AO OY", "hush": "SH ZH CH JH", "teeth": "S Z", "tongue": "TH DH",
    "l": "L", "r": "R ER", "tip": "T D N", "back": "K G NG HH", "spread": "IY IH EH EY Y", "open": "AE AA AH AY AW",
}  # fmt: skip
CLUSTERS = "PL PR BL BR SP SM MP MB PS PT BD BZ MZ LP LM RP RB RM FR FL FT VD SW KW TW"
PHONEMES = tuple(ARPABET)  # the 39 of American English


def _pairs_wanted() -> tuple[str, ...]:
    groups = ("spread", "open", "round")
    single = [pair for c in ("P", "B", "M", "F", "V") for g in groups for pair in (f"{c}+{g}", f"{g}+{c}")]
    shapes = [pair for c in ("S", "SH", "TH", "L", "R") for g in groups for pair in (f"{c}+{g}", f"{g}+{c}")]
    return (*single, *shapes, "W+spread", "W+open", "W+round", "round+spread", "spread+round", *CLUSTERS.split())


LIP_PAIRS = _pairs_wanted()  # "P+round": p before a rounded vowel; "MP": the two in a row, also over the edge of a word


@dataclass(frozen=True)
class Coverage:
    """What a list of sentences holds; counts by ARPABET name and by pair."""

    phonemes: Counter = field(default_factory=Counter)
    pairs: Counter = field(default_factory=Counter)

    @property
    def visemes(self) -> dict[str, int]:
        """Number of sounds of each viseme group."""
        return {group: sum(self.phonemes[name] for name in names.split()) for group, names in VISEMES.items()}

    def missing(self, least: int = 1) -> list[str]:
        """Phonemes, then lip pairs, that occur fewer than `least` times."""
        return [p for p in PHONEMES if self.phonemes[p] < least] + [p for p in LIP_PAIRS if self.pairs[p] < least]


@functools.cache
def _all_sentences() -> tuple[str, ...]:
    lines = SENTENCES.read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def sentences(split: str | None = None) -> list[str]:
    """The corpus, or its "train" or "held-out" part (about 15%), told apart by a hash of the sentence."""
    if split not in (None, "train", "held-out"):
        raise ValueError(f'split must be "train", "held-out" or None, got {split!r}')
    held = [int(hashlib.sha256(s.encode()).hexdigest()[:8], 16) % 100 < HELD_OUT for s in _all_sentences()]
    return [s for s, out in zip(_all_sentences(), held) if split is None or out == (split == "held-out")]


def coverage(texts: Iterable[str], voice: str = "joe") -> Coverage:
    """Count the sounds of `texts` as `voice` says them, and the neighbours that matter for lips (`LIP_PAIRS`), within sentences."""
    out = Coverage()
    name = ESPEAK[voice][0] if voice in ESPEAK else "en-us"
    texts = list(texts)
    for start in range(0, len(texts), 20):  # an empty line ends a sentence; loading the voice once for many saves time
        phones, _ = read("\n\n".join(texts[start : start + 20]), name)
        row = [to_arpabet(phone.symbol) if phone.symbol != SILENCE else [""] for phone in phones]
        names = [name for sounds in row for name in sounds]
        out.phonemes.update(filter(None, names))
        for one, two in itertools.pairwise(names):
            out.pairs.update({_pair(one, two), one + two} if one and two else ())
    return out


def _pair(one: str, two: str) -> str:
    """Two ARPABET sounds -> "P+round", "spread+SH", "round+spread"; vowels by the end that meets the other sound."""
    left = _ENDS.get(one, VOWELS.get(one)) or SHAPES.get(one, one)
    right = VOWELS.get(two) or SHAPES.get(two, two)
    return f"{left}+{right}"

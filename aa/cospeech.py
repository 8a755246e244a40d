"""Which gesture goes with which word, and when: the plan behind the performer's arms.

Four kinds after McNeill ("Hand and Mind", 1992): beats; deictics that point to the speaker, the listener, here or there; the open
palm of questions, negations and doubt (Kendon, "Gesture", 2004); and lists, one step or one finger per item. Kind and posture
follow from the word and its accent alone, so that they can be learnt; a seed lets one gesture in ten become a mere beat. Every
gesture has Kendon's phases: preparation, stroke (which ends on the accent, the apex), hold, retraction.
"""

import re
from dataclasses import dataclass, replace

import numpy as np

from aa.gestures import Beat, phrases, vowel_accents
from aa.visemes import Segment

KINDS = ("beat", "deictic", "open-palm", "list")
LEXICON = {  # words that call for a kind of gesture
    name: frozenset(words.split())
    for name, words in {
        "self": "i me my mine myself we us our ours i'm i've i'll i'd we're we've we'll",
        "you": "you your yours yourself you're you've you'll you'd",
        "here": "this these here now today",
        "there": "that those there away yonder outside left right far everywhere",
        "asking": "what how why where when who whose which",
        "negative": "no not never nothing nobody none neither nor nowhere without cannot hardly",
        "unsure": "maybe perhaps know guess suppose whatever",
        "numbers": "six seven eight nine ten eleven twelve twenty thirty forty fifty sixty seventy eighty ninety hundred thousand",
        "small": "a an the some my your our his her their its and or of to more",  # they head no item of a list
    }.items()
}
COUNTS = {"one": "one", "two": "two", "three": "three", "four": "four", "five": "five"}  # word -> fingers shown
ORDINALS = {
    "first": "one",
    "firstly": "one",
    "second": "two",
    "secondly": "two",
    "third": "three",
    "thirdly": "three",
    "fourth": "four",
}
# Seconds: (least time from the start of the preparation to the stroke, stroke, hold after the apex).
PHASES = {"beat": (0.15, 0.22, 0.08), "deictic": (0.15, 0.30, 0.28), "open-palm": (0.15, 0.32, 0.34), "list": (0.10, 0.24, 0.18)}
PREPARE, FROM_REST, RETRACT = 0.52, 0.38, 0.85  # s from rest to the stroke, wanted and at least; back to rest
EARLY = 0.6  # s: hands may come up that much earlier to do so with the voice, and stay up that much longer
BRIDGE = 1.5  # s from apex to preparation: shorter gaps are bridged without retraction
SPACING, ITEM_SPACING, QUICK_RETRACT = (
    0.56,
    0.42,
    0.45,
)  # s between apexes, between items of a list; the fastest way down, at the end of a clip


@dataclass(frozen=True)
class Gesture:
    """One gesture and its phases, s. Preparation start..stroke, stroke ..apex, hold ..hold, retraction ..end."""

    kind: str  # one of KINDS
    hand: str  # "L", "R" or "both"
    word: str  # what it goes with, "" where words are unknown
    pose: str  # a posture of aa.arms.POSES
    shape: str  # of the fingers, a key of aa.handshapes.SHAPES
    start: float
    stroke: float
    apex: float  # the accent
    hold: float  # end of the hold
    end: float  # the arm is at rest again or the next preparation begins
    strength: float  # of the accent, in [0, 1]
    step: int = 0  # of a list
    rests: bool = True  # the arm goes back to rest afterwards, rather than on to the next gesture


@dataclass(frozen=True)
class Word:
    """A spoken word with what the text tells about it."""

    text: str  # lower case
    start: float  # s
    end: float  # s
    mark: str = ""  # punctuation that follows
    question: bool = False  # in a sentence that ends with "?"
    item: int = -1  # number in a list, if it is the head of an item


def read_words(text: str, words) -> list[Word]:
    """Spoken words [(word, start s, end s)] with punctuation, questions and lists found in `text`."""
    tokens = re.findall(r"[\w'’-]+|[.,;:!?]", text.lower().replace("’", "'"))
    at, out = 0, []
    for word, start, end in words:
        name = word.lower().replace("’", "'").strip(".,;:!?\"'")
        near = [k for k in range(at, min(at + 12, len(tokens))) if tokens[k] == name]
        if near:
            if out:
                out[-1] = replace(out[-1], mark="".join(t for t in tokens[at : near[0]] if t in ".,;:!?")[-1:])
            at = near[0] + 1
        out.append(Word(name, float(start), float(end)))
    if out:
        out[-1] = replace(out[-1], mark=tokens[at] if at < len(tokens) and tokens[at] in ".,;:!?" else "")
    return mark_lists(mark_questions(out))


def mark_questions(words: list[Word]) -> list[Word]:
    """Set `question` on every word up to a question mark, back to the end of the sentence before."""
    out, asked = [], False
    for w in reversed(words):
        asked = w.mark == "?" if w.mark in (".", "!", "?") and w.mark else asked
        out.append(replace(w, question=asked))
    return out[::-1]


def mark_lists(words: list[Word]) -> list[Word]:
    """Number the items of enumerations: three or more pieces between commas, of three words at most but for the first, the last of
    which begins with "and" or "or" or is a word or two. The first item is headed by its last word, others by their first telling
    word."""
    pieces, now = [], []
    for k, w in enumerate(words):
        now.append(k)
        if w.mark:
            pieces.append((now, w.mark))
            now = []
    if now:
        pieces.append((now, ""))
    out, run = list(words), []
    for piece, mark in pieces:
        names = [words[k].text for k in piece]
        if all(n in ORDINALS for n in names):
            continue
        last, short = names[0] in ("and", "or") and len(piece) <= 6, len(piece) <= 3 and names[0] not in ("but", "so")
        if run and (last or short):
            run.append(next((k for k in piece if words[k].text not in LEXICON["small"]), piece[-1]))
            if (last or (len(piece) <= 2 and mark not in (",", ";"))) and len(run) >= 3:
                for item, k in enumerate(run):
                    out[k] = replace(out[k], item=item)
        else:
            run = [piece[-1]]
        if mark not in (",", ";"):
            run = []
    return out


def meaning(word: Word, strength: float) -> tuple[str, str, str, float, int]:
    """What a word asks for: kind, posture, hand shape, how much it is preferred to a beat, step of a list."""
    t = word.text
    if (t in COUNTS and (strength > 0.3 or word.item >= 0)) or t in ORDINALS:
        return "list", "count", COUNTS.get(t) or ORDINALS[t], 0.95, max(word.item, 0)
    if word.item >= 0:
        return "list", "list", "flat", 0.9, word.item
    if set(t.split("-")) & LEXICON["numbers"]:
        return "beat", "beat", "precision", 0.2, 0
    if t in LEXICON["negative"] or t.endswith("n't"):
        return "open-palm", "apart", "open", 0.6, 0
    if (t in LEXICON["asking"] and word.question) or t in LEXICON["unsure"]:
        return "open-palm", "offer", "open", 0.6, 0
    for pose, shape, bonus in (("self", "flat", 0.6), ("you", "open", 0.55), ("here", "point", 0.5)):
        if t in LEXICON[pose]:
            return "deictic", pose, shape, bonus, 0
    if t in LEXICON["there"] and (strength > 0.45 or t not in ("that", "there", "right")):
        return "deictic", "there", "point", 0.4, 0
    if word.question and word.mark == "?":
        return "open-palm", "offer", "open", 0.35, 0
    if strength > 0.75:
        return "beat", "beat", "precision", 0.0, 0
    return "beat", "beat", "relaxed", 0.0, 0


def choose(parts: list[Segment], speech, words: list[Word], rate: float, tempo: float, rng) -> list[tuple[Word, Beat, tuple]]:
    """The words that get a gesture: the best accented or most telling ones, SPACING s apart; without words the accents alone.
    `rate` 1 is an average gesturer, below it weak accents go without and gestures are further apart."""
    accents, found, latest = vowel_accents(parts, speech.audio), [], float(speech.duration) - 0.12 - QUICK_RETRACT
    if not words:
        words = [Word("", a.time - 0.1, a.time + 0.1) for a in accents]
    for w in words:
        own = [a for a in accents if w.start - 0.01 <= a.time <= w.end + 0.01]
        mere = rng.uniform() < 0.1
        if not own:
            continue
        accent = max(own, key=lambda a: a.strength)
        asks = meaning(w, accent.strength)
        if mere and asks[0] != "list":
            asks = ("beat", "beat", "relaxed", 0.0, 0)
        score = accent.strength + asks[3]
        fits = FROM_REST + 0.02 + PHASES[asks[0]][1] / tempo <= accent.time <= latest
        if fits and score >= 0.42 + 0.5 * (1 - rate) and accent.strength >= 0.12:
            found.append((score, w, accent, asks))
    kept: list[tuple] = []
    spacing = SPACING / np.clip(rate, 0.4, 1)
    for _, w, accent, asks in sorted(found, key=lambda f: -f[0]):
        if all(abs(accent.time - k[1].time) >= (ITEM_SPACING if asks[0] == k[2][0] == "list" else spacing) for k in kept):
            kept.append((w, accent, asks))
    return sorted(kept, key=lambda k: k[1].time)


def which_hand(kind: str, strength: float, handedness: float) -> str:
    """Hand of a gesture: pointing and counting use the better hand, strong beats and open palms both unless one is much better."""
    better, bias = ("L" if handedness > 0 else "R"), abs(handedness)
    if bias > 0.85 or kind in ("deictic", "list"):
        return better
    if kind == "open-palm":
        return "both" if bias < 0.7 else better
    return "both" if strength > 0.25 + 0.6 * bias else better


def plan_gestures(speech, parts: list[Segment], tempo: float, handedness: float, rate: float, rng) -> list[Gesture]:
    """Gestures of a speech in order, with their phases.

    Args: speech with audio, duration and, where known, text and words [(word, start s, end s)]; parts its segments; tempo speeds up
        preparations and strokes; handedness -1 right .. 1 left; rate 1 is an average gesturer, 0 hardly gestures; rng.
    Returns: gestures whose arms start and end the clip at rest; accents too near to either end get none.
    """
    words = read_words(getattr(speech, "text", ""), getattr(speech, "words", None) or [])
    spoken = phrases(parts)
    out: list[Gesture] = []
    for word, accent, (kind, pose, shape, _, step) in choose(parts, speech, words, rate, tempo, rng):
        least, stroke, hold = (x / tempo for x in PHASES[kind])
        apex, strength = accent.time, accent.strength
        begin = apex - stroke - PREPARE / tempo
        begins, ends = next((p for p in spoken if p[0] <= apex <= p[1]), (apex, apex))
        bridged = bool(out) and begin - out[-1].apex < BRIDGE
        if bridged:
            start = max(begin, out[-1].apex + 0.08)
        else:
            start = max(min(begin, max(begins - 0.15, begin - EARLY)), out[-1].apex + BRIDGE - 0.4 if out else 0.02)
        if apex - stroke - (least if bridged else FROM_REST) < start:
            continue
        if out:
            out[-1] = (
                replace(out[-1], hold=min(out[-1].hold, start), end=start, rests=False)
                if bridged
                else retract(out[-1], tempo, start)
            )
        hold = max(apex + hold, min(word.end, apex + 0.25) if kind != "beat" else 0.0, min(ends - 0.2, apex + EARLY))
        hand = which_hand(kind, strength, handedness)
        out.append(Gesture(kind, hand, word.text, pose, shape, start, apex - stroke, apex, hold, hold, strength, step))
    if out:
        out[-1] = retract(out[-1], tempo, float(speech.duration) - 0.04)
    return out


def retract(g: Gesture, tempo: float, latest: float) -> Gesture:
    """Back to rest after the hold, by `latest` s, for which the hold may be cut."""
    down = np.clip(latest - g.hold, QUICK_RETRACT, RETRACT / tempo)
    hold = min(g.hold, latest - down)
    return replace(g, hold=float(hold), end=float(hold + down))

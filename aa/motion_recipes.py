"""What the motion model is trained on and judged by, as recipes: who says what, with which pauses and breaths, heard how.

Everything about a clip follows from its recipe, so that its sound and its motion agree on where the words and the breaths are.
"""

from dataclasses import dataclass, replace

import numpy as np

from aa.augment import FORMANTS, LEVEL_DB, augment, coloured_noise, equalise, shift_formants
from aa.breath import breathing, with_breaths
from aa.media import SAMPLE_RATE
from aa.noises import neighbours, no_speech
from aa.speech import ESPEAK, Speech, any_voice, sentences, silence, speak

SHORTEST = 3.6  # s: a window of the motion model and a little more
VOICES_TRAIN = ("joe", *list(ESPEAK)[:6])  # the last two voices, their accents and timbres, are kept for tests
VOICES_UNSEEN = tuple(list(ESPEAK)[6:])


@dataclass(frozen=True)
class Recipe:
    """What one clip is made of; everything follows from it."""

    kind: str  # "speech" or "rest"
    text: tuple[str, ...] = ()  # one or two sentences
    voice: str = "joe"
    rate: float = 1.0
    seed: int = 0
    person: bool = False  # performed on a random person and carried over, rather than on the template
    takes: int = 3  # versions of the sound: the clean one and augmented ones
    size: float = 1.0  # of the speaker: 0.8 is a smaller head, whose pitch, formants and tempo all are 1 / 0.8 times as high


def recipes(count: int, seed: int = 0, split: str = "train", voices=VOICES_TRAIN, people: float = 0.08) -> list[Recipe]:
    """`count` different clips: two sentences in a fifth, a third of them by the natural voice where it is among the `voices`.

    For training one in nine is at rest, half of them are spoken by a head of another size and, if `voices` are those of training, a
    third by random voices of espeak-ng. The sentences are few and a model learns them by heart, so two thirds of the training texts
    are shuffled words of them, half of those mixed with words that do not exist, half in two phrases. Held-out sentences never
    occur in training, voices outside `voices` and their accents and timbres neither, and in tests nobody changes size. The
    first clips are the same whatever the count.
    """
    texts, train, out = sentences(split), split == "train", []
    for n in range(count):
        rng = np.random.default_rng([seed, n])
        number = seed * 100_000 + n + 1
        if n % 9 == 8 and train:
            out.append(Recipe("rest", seed=number))
            continue
        order = np.random.default_rng([seed, 1, n // len(texts)]).permutation(len(texts))
        text = tuple(texts[order[(n + k) % len(texts)]] for k in range(1 + int(rng.random() < 0.2)))
        if train and n % 3:
            text = shuffled(texts, rng, invented=0.5 * (n % 3 - 1))
        size = float(2 ** rng.uniform(-0.3, 0.3)) if train and rng.random() < 0.6 else 1.0
        rate = float(rng.uniform(0.8, 1.25) * size ** rng.uniform(0, 1))  # a stretched voice is partly slower
        voice = choose_voice(voices, rng, train)
        out.append(Recipe("speech", text, voice, rate, number, bool(rng.random() < people), size=size))
    return out


def choose_voice(voices, rng: np.random.Generator, train: bool) -> str:
    """One of `voices`: a third of the time the natural one, if there; in training with VOICES_TRAIN another third any voice."""
    kind = int(rng.integers(3))
    if kind == 0 and "joe" in voices:
        return "joe"
    varied = train and tuple(voices) == VOICES_TRAIN
    return any_voice(rng) if kind == 1 and varied else str(rng.choice(list(voices)))


# Spellings that espeak reads as the sounds one would think.
ONSETS = "b br bl p pr pl m m b p f fl fr v w t tr st d dr s sh ch k kr g gr l r n h j y th sp sm"
NUCLEI = "a e i o u ee oo ai ow oa ar or er oy"
CODAS = "- - b p m n t d s f v l k ng sh st mp nd"  # - for none


def shuffled(texts: list[str], rng: np.random.Generator, invented: float) -> tuple[str, ...]:
    """Six to nine random words of the sentences, a share of them invented, in one phrase or two: neighbours no sentence has."""
    words = [w.strip('.,;:!?"').lower() for t in texts for w in t.split()]
    out = []
    for _ in range(int(rng.integers(6, 10))):
        syllables = [str(rng.choice(x.split())) for x in (ONSETS, NUCLEI, CODAS) * int(rng.integers(1, 3))]
        out.append("".join(syllables).replace("-", "") if rng.random() < invented else str(rng.choice(words)))
    cut = int(rng.integers(2, len(out) - 1)) if rng.random() < 0.5 else len(out)
    return tuple(" ".join(part).capitalize() + "." for part in (out[:cut], out[cut:]) if part)


def spoken(recipe: Recipe) -> Speech:
    """The speech of a recipe as it is synthesised, with pauses before, between and after; nothing at all for "rest"."""
    rng = np.random.default_rng(recipe.seed)
    if recipe.kind == "rest":
        return silence(float(rng.uniform(SHORTEST, 5.5)))
    pieces = [silence(float(rng.choice([0.05, rng.uniform(0.1, 1.2)], p=[0.25, 0.75])))]
    for text in recipe.text:
        said = speak(text, recipe.voice, recipe.rate, recipe.seed % 1000)
        pieces += [resized(said, recipe.size), silence(float(rng.uniform(0.3, 1.4)))]
    spare = SHORTEST - sum(p.duration for p in pieces)
    return concatenate([*pieces, silence(spare)] if spare > 0.02 else pieces)


def sound_of(recipe: Recipe) -> Speech:
    """The speech of a recipe as one hears and performs it: `spoken`, in a room, with the breaths that are drawn in its pauses."""
    return spoken(recipe) if recipe.kind == "rest" else breathing(spoken(recipe), recipe.seed)


def resized(speech: Speech, size: float) -> Speech:
    """The same words by a speaker whose head is `size` times as large: played slower by that factor, hence deeper."""
    if size == 1:
        return speech
    import soxr

    audio = soxr.resample(speech.audio, SAMPLE_RATE / size, SAMPLE_RATE).astype(np.float32)
    longer = len(audio) / len(speech.audio)
    phonemes, words = ([(s, a * longer, b * longer) for s, a, b in items] for items in (speech.phonemes, speech.words))
    return replace(speech, audio=audio, phonemes=phonemes, words=words)


def concatenate(pieces: list[Speech]) -> Speech:
    """One speech after the other, times shifted."""
    phonemes, words, breaths, now = [], [], [], 0.0
    for p in pieces:
        phonemes += [(s, a + now, b + now) for s, a, b in p.phonemes]
        words += [(s, a + now, b + now) for s, a, b in p.words]
        breaths += [(a + now, b + now, opening) for a, b, opening in p.breaths]
        now += p.duration
    audio = np.concatenate([p.audio for p in pieces]).astype(np.float32)
    return Speech(audio, " ".join(p.text for p in pieces if p.text), phonemes, words, max(p.voice for p in pieces), breaths)


def takes_of(recipe: Recipe, speech: Speech) -> list[np.ndarray]:
    """The sound (n,) of a recipe's speech (`sound_of`) as it may be recorded: clean, then in turn well and badly, the same breaths
    in each, as loud as its noise asks for. A clip at rest gets silence and then what nobody opens the mouth for."""
    rng = np.random.default_rng(recipe.seed + 7)
    if recipe.kind == "rest":
        return [speech.audio, *(no_speech(len(speech.audio), rng) for _ in range(recipe.takes - 1))]
    dry = spoken(recipe).audio
    takes = (augment(dry, rng, neighbours()) if k % 2 else well_recorded(dry, rng) for k in range(recipe.takes - 1))
    return [speech.audio, *(np.clip(with_breaths(a, speech.breaths, rng), -1, 1) for a in takes)]


def well_recorded(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The sound (n,) of another voice at a good microphone in a quiet room, as most recordings are: too much of what `augment` does
    teaches a model to expect that it hears nothing for certain."""
    out = shift_formants(audio, 2 ** rng.uniform(-FORMANTS, FORMANTS)) if rng.random() < 0.5 else audio
    out = equalise(out, rng)
    noise = coloured_noise(len(out), rng) * np.sqrt(np.square(out).mean()) * 10 ** (-rng.uniform(30, 65) / 20)
    return ((out + noise) * 10 ** (rng.uniform(*LEVEL_DB) / 20)).astype(np.float32)

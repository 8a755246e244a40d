"""Training data of the motion model: performed clips as coordinates in the particle basis, with the sound they go with.

Speech (several voices and rates, pauses before, within and after it), silence, hiss and hum are performed by several people and
styles, carried to the template body where they were made on another one, and written clip by clip, so that an interrupted run goes
on where it stopped.
"""

from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from aa.audio import augment, features
from aa.body import Body
from aa.media import FPS, SAMPLE_RATE, replacing
from aa.parts import Basis, Parts, fit_basis, make_parts, split_parts, vertex_weights
from aa.performer import Style, at_ease, perform
from aa.speech import ESPEAK, SILENCE, Speech, sentences, silence, speak
from aa.transfer import Deformation, Transfer, motion_from_rest
from aa.visemes import BILABIAL, LIP_LOWER, LIP_UPPER, SKULL_FRONT, SKULL_TOP, UPPER_TEETH, lip_aperture, segments

SHORTEST = 3.6  # s: a window of the motion model and a little more
VOICES_TRAIN = ("joe", *list(ESPEAK)[:6])  # the last two voices are kept for tests
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


def recipes(count: int, seed: int = 0, split: str = "train", voices=VOICES_TRAIN, people: float = 0.08) -> list[Recipe]:
    """`count` different clips: one in nine at rest, four in ten of the speech by the natural voice, two sentences in a fifth.

    The sentences are few and a model learns them by heart, so two thirds of the training texts are shuffled words of them, half of
    those mixed with words that do not exist. The first clips are the same whatever the count.
    """
    texts, out = sentences(split), []
    natural = [v for v in voices if v == "joe"] * (len(voices) // 2)
    for n in range(count):
        rng = np.random.default_rng([seed, n])
        number = seed * 100_000 + n + 1
        if n % 9 == 8 and split == "train":
            out.append(Recipe("rest", seed=number))
            continue
        order = np.random.default_rng([seed, 1, n // len(texts)]).permutation(len(texts))
        text = tuple(texts[order[(n + k) % len(texts)]] for k in range(1 + int(rng.random() < 0.2)))
        if split == "train" and n % 3:
            text = (shuffled(texts, rng, invented=0.5 * (n % 3 - 1)),)
        voice = str(rng.choice([*voices, *natural]))
        out.append(Recipe("speech", text, voice, float(rng.uniform(0.85, 1.2)), number, bool(rng.random() < people)))
    return out


# Spellings that espeak reads as the sounds one would think.
ONSETS = "b br bl p pr pl m m b p f fl fr v w t tr st d dr s sh ch k kr g gr l r n h j y th sp sm"
NUCLEI = "a e i o u ee oo ai ow oa ar or er oy"
CODAS = "- - b p m n t d s f v l k ng sh st mp nd"  # - for none


def shuffled(texts: list[str], rng: np.random.Generator, invented: float) -> str:
    """Six to nine random words of the sentences, a share of them invented: neighbours no sentence has."""
    words = [w.strip('.,;:!?"').lower() for t in texts for w in t.split()]
    out = []
    for _ in range(int(rng.integers(6, 10))):
        syllables = [str(rng.choice(x.split())) for x in (ONSETS, NUCLEI, CODAS) * int(rng.integers(1, 3))]
        out.append("".join(syllables).replace("-", "") if rng.random() < invented else str(rng.choice(words)))
    return " ".join(out).capitalize() + "."


def sound_of(recipe: Recipe) -> Speech:
    """The clean speech of a recipe, with pauses before, between and after; nothing at all for "rest"."""
    rng = np.random.default_rng(recipe.seed)
    if recipe.kind == "rest":
        return silence(float(rng.uniform(SHORTEST, 5.5)))
    pieces = [silence(float(rng.choice([0.05, rng.uniform(0.1, 1.2)], p=[0.4, 0.6])))]
    for text in recipe.text:
        pieces += [speak(text, recipe.voice, recipe.rate, recipe.seed % 1000), silence(float(rng.uniform(0.3, 1.4)))]
    spare = SHORTEST - sum(p.duration for p in pieces)
    return concatenate([*pieces, silence(spare)] if spare > 0.02 else pieces)


def concatenate(pieces: list[Speech]) -> Speech:
    """One speech after the other, times shifted."""
    phonemes, words, now = [], [], 0.0
    for p in pieces:
        phonemes += [(s, a + now, b + now) for s, a, b in p.phonemes]
        words += [(s, a + now, b + now) for s, a, b in p.words]
        now += p.duration
    audio = np.concatenate([p.audio for p in pieces]).astype(np.float32)
    return Speech(audio, " ".join(p.text for p in pieces if p.text), phonemes, words, max(p.voice for p in pieces))


def takes_of(recipe: Recipe, audio: np.ndarray) -> list[np.ndarray]:
    """The sound (n,) as it may be recorded: clean, then augmented. A clip at rest gets silence, hiss and hum."""
    rng = np.random.default_rng(recipe.seed + 7)
    if recipe.kind == "speech":
        return [audio, *(augment(audio, rng) for _ in range(recipe.takes - 1))]
    n, t = len(audio), np.arange(len(audio)) / SAMPLE_RATE
    hiss = rng.standard_normal(n) * 10 ** (-rng.uniform(45, 75) / 20)
    hum = sum(np.sin(2 * np.pi * k * rng.choice([50, 60, 117]) * t) / k for k in (1, 2, 3)) * 10 ** (-rng.uniform(45, 70) / 20)
    bump = np.convolve(rng.standard_normal(n), np.ones(64) / 64, "same") * 10 ** (-rng.uniform(40, 60) / 20)
    choices = [audio, hiss, hum + 0.3 * hiss, bump]
    return [choices[i].astype(np.float32) for i in (0, *rng.choice([1, 2, 3], recipe.takes - 1))]


class Stage:
    """The template body at ease and what is needed to turn performances into its motion dG."""

    def __init__(self, body: Body):
        self.body = body
        self.ease = at_ease(body).to(body.v_template)
        vertices, rotations = body.pose(rotvecs=self.ease)
        self.rest, self.turns, self.ids = vertices, rotations, None
        self.parts: Parts = make_parts(body, vertices)
        self.weights = vertex_weights(body, self.parts)

    def motion(self, recipe: Recipe, speech: Speech, every: int = 1) -> Deformation:
        """dG (T, V, 3) on the template of a performed recipe, every so many frames."""
        g = torch.Generator().manual_seed(recipe.seed)
        # How wide somebody opens the mouth cannot be heard; people differ in gestures, not in that.
        style = replace(Style.sample(g), expressiveness=1.0)
        played = perform(self.body, speech, recipe.seed, style)
        if not recipe.person:
            v, R = self.body.pose(None, played.rotvecs[::every], played.actions[::every])
            return motion_from_rest(v, R, self.rest, self.turns)
        betas = torch.randn(len(self.body.shape_dirs), generator=g).clamp(-2, 2)
        rest, turns = self.body.pose(betas, self.ease)
        v, R = self.body.pose(betas, played.rotvecs[::every], played.actions[::every])
        return Transfer(self.body, rest, self.rest)(motion_from_rest(v, R, rest, turns))

    def sparse(self, body_each: int = 20, face_each: int = 8) -> torch.Tensor:
        """Vertices (n,), about one in ten, from which the coordinates of articulated motion can be read as well as from all."""
        p = self.parts
        lips = torch.tensor([LIP_UPPER, LIP_LOWER, SKULL_TOP, SKULL_FRONT, UPPER_TEETH], device=p.rest.device)
        some = [p.body[::body_each], p.face[::face_each], p.hand[:: face_each // 2], lips]
        return torch.unique(torch.cat([*some, *(v[:: 1 + len(v) // 60] for v in p.frames.values())]))

    def select(self, vertices: torch.Tensor) -> "Stage":
        """The stage reduced to some vertices (n,): motion is (T, n, 3), ten times cheaper. For the template person only."""
        out = copy(self)
        out.body, out.parts = self.body.select(vertices), self.parts.select(vertices)
        out.rest, out.turns, out.ids = self.rest[vertices], self.turns[vertices], vertices
        return out

    def lips(self, motion: Deformation) -> torch.Tensor:
        """Inner-lip aperture (T,) m."""
        moved = self.rest + motion.means
        if self.ids is not None:
            full = moved.new_zeros(len(moved), int(self.ids.max()) + 1, 3)
            full[:, self.ids] = moved
            moved = full
        return lip_aperture(moved)


def closures(speech: Speech) -> torch.Tensor:
    """Frames (m,) at the middle of each p, b, m."""
    parts = segments(speech.phonemes, speech.duration)
    return torch.tensor([int((s.start + s.end) / 2 * FPS) for s in parts if s.symbol in BILABIAL], dtype=torch.long)


def silent_frames(speech: Speech, frames: int) -> torch.Tensor:
    """(T,) bool: nothing is said at the frame's centre nor 60 ms around it."""
    centre = (torch.arange(frames) + 0.5) / FPS
    said = torch.zeros(frames, dtype=torch.bool)
    for symbol, a, b in speech.phonemes:
        if symbol not in ("", SILENCE):
            said |= (centre > a - 0.06) & (centre < b + 0.06)
    return ~said


def learn_basis(stage: Stage, chosen: list[Recipe], every: int = 9) -> Basis:
    """PCA bases from every so many frames of the chosen clips."""
    splits = [split_parts(stage.parts, stage.motion(r, sound_of(r), every)) for r in chosen]
    return fit_basis(stage.parts, splits, stage.weights)


def make_clip(stage: Stage, basis: Basis, recipe: Recipe, reduced: tuple[Stage, Basis] | None = None) -> dict[str, torch.Tensor]:
    """One clip: coordinates (T, K), features (takes, T, F), silent (T,), aperture (T,) m, closures (m,).

    `reduced`: stage and basis on few vertices, for speed; a motion that was carried over from another person needs all of them.
    """
    speech = sound_of(recipe)
    if reduced is not None and not recipe.person:
        stage, basis = reduced
    motion = stage.motion(recipe, speech)
    T = len(motion)
    sound = np.stack([features(a, T) for a in takes_of(recipe, speech.audio)])
    return {
        "coordinates": basis.encode(motion), "features": torch.from_numpy(sound).half(), "silent": silent_frames(speech, T),
        "aperture": stage.lips(motion), "closures": closures(speech),
    }  # fmt: skip


def make_clips(stage: Stage, basis: Basis, chosen: list[Recipe], folder=None, progress: bool = False) -> list[dict]:
    """All clips; in `folder`, those that are there already are read instead of made."""
    from tqdm.auto import tqdm

    out, few = [], stage.sparse()
    reduced = stage.select(few), basis.select(few)
    for n, recipe in enumerate(tqdm(chosen, desc="clips", disable=not progress)):
        path = None if folder is None else Path(folder) / f"{recipe.seed:08d}.safetensors"
        if path is not None and path.exists():
            out.append(load_file(path))
            continue
        out.append({k: v.contiguous() for k, v in make_clip(stage, basis, recipe, reduced).items()})
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part:
                save_file(out[-1], part, {"recipe": f"{n} {recipe.voice} {recipe.kind}"})
    return out

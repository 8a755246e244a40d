"""Inhalations: when a speaker breathes in through the mouth before a phrase, and how that sounds.

In the pauses of real speech the mouth is either at rest or open to draw breath, in one recording at twice its speaking gap, and
the only sign of it in the sound is a hiss 10 to 15 dB above the room's own at 1 to 5 kHz, some 45 dB below the speech. So a breath
is planned once, from a seed; the performer opens the mouth in it, and the sound gets its hiss. Who breathes through the nose is
neither seen nor heard. Noise of any level without a breath in it leaves the mouth alone.
"""

from dataclasses import replace

import numpy as np

from aa.audio import loudness, speech_level
from aa.media import SAMPLE_RATE
from aa.noises import room
from aa.visemes import segments

SHORTEST_PAUSE = 0.28  # s
NOSE = 0.2  # share of speakers that breathe through the nose alone; the others use the mouth in MOUTH of their pauses
MOUTH = 0.875
BELOW_SPEECH = (30.0, 50.0)  # dB
ABOVE_ROOM = (8.0, 15.0)  # dB
LOUDEST = -18.0  # dB below the speech, also in a noisy room


def plan_breaths(phonemes, duration: float, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """[(start s, end s, opening of the mouth in [0.75, 1])] of one speaker: 0.25 to 0.5 s long, 50 to 100 ms before a phrase."""
    share = 0.0 if rng.random() < NOSE else MOUTH
    parts, out = segments(phonemes, duration), []
    for pause in parts[:-1]:  # nobody needs air after the last word
        takes, late, early, length, opening = rng.random(), *rng.uniform((0.05, 0, 0.25, 0.75), (0.10, 0.08, 0.50, 1.0))
        if not pause.pause or pause.end - pause.start < SHORTEST_PAUSE or takes > share:
            continue
        end = pause.end - late
        start = max(pause.start + early, end - length)
        if end - start > 0.15:
            out.append((float(start), float(end), float(opening)))
    return out


def inhalation(count: int, rng: np.random.Generator) -> np.ndarray:
    """Sound (count,) of drawn breath, rms 1: noise around 1-5 kHz with a few formants, swelling, ending faster than it began."""
    octave = np.log2(np.maximum(np.fft.rfftfreq(count, 1 / SAMPLE_RATE), 50) / 2000)
    gain = -rng.uniform(2, 6) * np.maximum(np.abs(octave) - 1, 0) - rng.uniform(0, 3) * np.abs(octave)  # dB
    for _ in range(int(rng.integers(2, 5))):
        gain = gain + rng.uniform(3, 12) * np.exp(-(((octave - rng.uniform(-2, 1.5)) / rng.uniform(0.1, 0.4)) ** 2))
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(count)) * 10 ** (gain / 20), count)
    t = np.linspace(0, 1, count)
    swell = np.minimum(1, t / rng.uniform(0.15, 0.6)) * np.minimum(1, (1 - t) / rng.uniform(0.08, 0.3))
    return noise * swell / np.sqrt(np.square(noise).mean() + 1e-12)


def with_breaths(audio: np.ndarray, breaths, rng: np.random.Generator) -> np.ndarray:
    """Sound (n,) with its `breaths` [(start s, end s, ...)] made audible: above the noise that is there, far below the speech."""
    out, level = np.array(audio, np.float32), speech_level(audio)[0]
    room = float(np.percentile(loudness(audio), 5))
    quieter, above = rng.uniform(*BELOW_SPEECH), rng.uniform(*ABOVE_ROOM)  # a person's way and a room's
    for start, end, *_ in breaths:
        i, j = int(start * SAMPLE_RATE), min(int(end * SAMPLE_RATE), len(out))
        decibel = min(max(level - quieter, room + above), level + LOUDEST) + rng.uniform(-2, 2)
        out[i:j] += inhalation(j - i, rng).astype(np.float32) * 10 ** (decibel / 20)
    return out


def breathing(speech, seed: int):
    """A speech (`aa.speech.Speech`) in a room, with breaths planned, noted in its `breaths` and heard in its sound; the same seed,
    the same breaths. Three rooms in ten are perfectly still."""
    rng = np.random.default_rng([seed, 11])
    breaths = plan_breaths(speech.phonemes, speech.duration, rng)
    decibel = speech_level(speech.audio)[0] - rng.uniform(35, 75)
    audio = speech.audio + (rng.random() < 0.7) * 10 ** (decibel / 20) * room(len(speech.audio), rng)
    return replace(speech, audio=with_breaths(audio, breaths, rng), breaths=breaths)

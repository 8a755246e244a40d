"""Inhalations: when a speaker breathes in through the mouth before a phrase, and how that sounds.

In the pauses of real speech the mouth is either at rest or open to draw breath, in one recording at twice its speaking gap, and
the only sign of it in the sound is a hiss 10 to 15 dB above the room's own at 1 to 5 kHz, some 45 dB below the speech. So a breath
is planned once, from a seed; the performer opens the mouth in it, and the sound gets its hiss. Who breathes through the nose is
neither seen nor heard. Noise of any level without a breath in it leaves the mouth alone.
"""

from dataclasses import replace

import numpy as np

from aa.audio import loudness, speech_level
from aa.augment import coloured_noise
from aa.media import SAMPLE_RATE
from aa.visemes import segments

SHORTEST_PAUSE = 0.28  # s
NOSE = 0.2  # share of speakers that breathe through the nose alone; the others use the mouth in MOUTH of their pauses
MOUTH = 0.875
BELOW_SPEECH = (20.0, 40.0)  # dB
ABOVE_ROOM = (8.0, 15.0)  # dB
LOUDEST = -18.0  # dB below the speech, also in a noisy room
BAND = (1000.0, 5000.0)  # Hz
HEARD_ABOVE, HEARD_BELOW = 7.0, 8.0  # dB above the room and below the speech, in BAND: a breath in a recording
STEP = 0.02  # s


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
    audio = speech.audio + (rng.random() < 0.7) * 10 ** (decibel / 20) * coloured_noise(len(speech.audio), rng)
    return replace(speech, audio=with_breaths(audio, breaths, rng), breaths=breaths)


def heard_breaths(audio, phonemes) -> list[tuple[float, float, float]]:
    """Breaths [(start s, end s, 1)] that can be heard in the pauses of a recording (n,) before a phrase: hiss of 0.14 s or so.

    In training clips nine in ten that are there are found, of those in a noisy room six in ten, one in seven is none.
    """
    level = _band_level(audio)
    room_level, speech = np.percentile(level, (3, 80))
    smooth = np.convolve(level, np.ones(3) / 3, "same")
    hiss, t = (smooth > room_level + HEARD_ABOVE) & (smooth < speech - HEARD_BELOW), (np.arange(len(level)) + 0.5) * STEP
    out = []
    for pause in segments(phonemes, len(audio) / SAMPLE_RATE)[:-1]:
        if not pause.pause or pause.end - pause.start < SHORTEST_PAUSE:
            continue
        inside = np.flatnonzero((t > pause.start + 0.06) & (t < pause.end - 0.03))  # sounds die away, and begin
        runs = np.split(inside, np.flatnonzero(np.diff(hiss[inside])) + 1)
        first, last = max(((len(r), r[0], r[-1]) for r in runs if len(r) and hiss[r[0]]), default=(0, 0, -1))[1:]
        if (last + 1 - first) * STEP > 0.13 and pause.end - t[last] < 0.35:
            out.append((float(t[first] - STEP / 2), float(t[last] + STEP / 2), 1.0))
    return out


def _band_level(audio) -> np.ndarray:
    """Level (m,) in BAND in dB, one value every STEP."""
    hertz, size = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE), round(STEP * SAMPLE_RATE)
    within = np.fft.irfft(np.fft.rfft(audio) * ((hertz > BAND[0]) & (hertz < BAND[1])), len(audio))
    return 10 * np.log10(np.square(within[: len(audio) // size * size].reshape(-1, size)).mean(1) + 1e-10)

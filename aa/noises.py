"""Sounds in which nobody speaks: rooms, hum, bumps, music, and so many people at once that nobody can be followed."""

import functools

import numpy as np

from aa.augment import babble, coloured_noise
from aa.media import SAMPLE_RATE
from aa.speech import ESPEAK, sentences, speak


def no_speech(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) samples of a room, hum, bumps, music or many people talking at once; half of it over noise, loud or faint."""
    kind, t = rng.choice(["room", "hum", "bumps", "music", "crowd"]), np.arange(count) / SAMPLE_RATE
    sound = {"room": coloured_noise, "hum": hum, "bumps": bumps, "music": music, "crowd": crowd}[kind](count, rng)
    sound = (
        sound * 10 ** (-rng.uniform(25, 70) / 20) * (1 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.1, 2) * t) * (rng.random() < 0.3))
    )
    if rng.random() < 0.5:
        sound = sound + coloured_noise(count, rng) * 10 ** (-rng.uniform(40, 75) / 20)
    return np.clip(sound, -1, 1).astype(np.float32)


def hum(count: int, rng: np.random.Generator) -> np.ndarray:
    """Mains or a fan (count,), rms about 1."""
    t, base = np.arange(count) / SAMPLE_RATE, rng.choice([50, 60, 117])
    return sum(np.sin(2 * np.pi * k * base * t + rng.uniform(0, 6.28)) / k for k in (1, 2, 3))


def bumps(count: int, rng: np.random.Generator) -> np.ndarray:
    """Knocks and rustling (count,): short bursts of dull noise at random times."""
    out, t = np.zeros(count), np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    for start in rng.integers(0, count - len(t), int(rng.integers(2, 12))):
        burst = np.convolve(rng.standard_normal(len(t)), np.ones(width := int(rng.integers(1, 64))) / np.sqrt(width), "same")
        out[start : start + len(t)] += burst * np.exp(-t / rng.uniform(0.01, 0.15))
    return 2 * out


def music(count: int, rng: np.random.Generator) -> np.ndarray:
    """Chords of plucked tones with overtones and vibrato (count,), rms about 1: pitched and formant-like, yet nobody speaks."""
    out, now, t = np.zeros(count), 0, np.arange(count) / SAMPLE_RATE
    while now < count:
        length = int(rng.uniform(0.15, 0.9) * SAMPLE_RATE)
        s = t[: min(length, count - now)]
        decay, bright = np.minimum(1, s / 0.01) * np.exp(-s / rng.uniform(0.15, 1.0)), rng.uniform(0.3, 0.8)
        for note in 110 * 2 ** (rng.choice(37, int(rng.integers(1, 4))) / 12):
            phase = 2 * np.pi * note * s + rng.uniform(0, 0.5) * np.sin(2 * np.pi * 5.5 * s)
            out[now : now + len(s)] += decay * sum(bright**k * np.sin(k * phase) for k in range(1, 9) if k * note < 7500)
        now += length
    return out / (np.sqrt(np.square(out).mean()) + 1e-9)


def crowd(count: int, rng: np.random.Generator) -> np.ndarray:
    """Six to twelve people talking at once (count,), rms about 1: the spectrum of speech, of which no word can be followed."""
    return (babble(count, rng, neighbours()) + babble(count, rng, neighbours())) / np.sqrt(2)


@functools.cache
def neighbours() -> tuple[np.ndarray, ...]:
    """What people say in the background: twelve training sentences, two by each of the first six voices of espeak-ng."""
    return tuple(speak(text, list(ESPEAK)[n % 6]).audio for n, text in enumerate(sentences("train")[:12]))

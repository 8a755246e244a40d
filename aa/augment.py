"""Other voices, microphones, rooms, telephones and neighbours for the same sound, with its timing untouched.

A model that learns from clean synthetic voices holds for recordings only if it has never been able to rely on how they sound.
Speed and pitch are not touched here: they would move the phonemes (the recipes of `aa.motion_data` take care of them).
"""

import functools

import numpy as np

from aa.media import SAMPLE_RATE

FORMANTS = 0.35  # octaves up or down: from a child's to a giant's vocal tract
NOISE_DB, BABBLE_DB = (5.0, 45.0), (10.0, 40.0)  # below the speech
LEVEL_DB = (-15.0, 6.0)
TELEPHONE_HZ = (300.0, 3400.0)


def augment(audio, generator, others=()) -> np.ndarray:
    """A random other voice, microphone, room and level for the same (n,) float32 sound; the same length, every sound at its time.

    Formants, equaliser, room, noise, babble, telephone, overdriven microphone and gain, each with a chance of its own.

    Args: generator: numpy Generator, torch.Generator or an integer seed; others: other people's speech [(m,) float32], of which the
        babble is made; without it, of pieces of this voice played backwards.
    """
    audio, rng = np.asarray(audio, np.float32), _as_numpy(generator)
    rms = float(np.sqrt(np.square(audio).mean()))
    out = shift_formants(audio, 2 ** rng.uniform(-FORMANTS, FORMANTS)) if rng.random() < 0.8 else audio
    out = equalise(out, rng)
    if rng.random() < 0.5:
        out = reverberate(out, rng)
    if rng.random() < 0.6:
        out = out + coloured_noise(len(out), rng) * rms * 10 ** (-rng.uniform(*NOISE_DB) / 20)
    if rng.random() < 0.5:
        out = out + babble(len(out), rng, others or (audio[::-1],)) * rms * 10 ** (-rng.uniform(*BABBLE_DB) / 20)
    if rng.random() < 0.2:
        out = telephone(out)
    if rng.random() < 0.3:
        out = overdrive(out, rng.uniform(1, 4))
    return np.clip(out * 10 ** (rng.uniform(*LEVEL_DB) / 20), -1, 1).astype(np.float32)


def _as_numpy(generator) -> np.random.Generator:
    if hasattr(generator, "initial_seed"):  # torch.Generator
        import torch

        return np.random.default_rng(int(torch.randint(2**31, (), generator=generator, device=generator.device)))
    return np.random.default_rng(generator)


@functools.cache
def _transform(size: int = 512):
    from scipy.signal import ShortTimeFFT

    return ShortTimeFFT(np.hanning(size + 1)[:-1], size // 4, SAMPLE_RATE)


def shift_formants(audio: np.ndarray, ratio: float) -> np.ndarray:
    """Move the spectral envelope up in frequency by `ratio` and leave pitch and timing: another length of vocal tract."""
    transform = _transform()
    padded = np.pad(audio, (0, max(0, 2 * transform.m_num - len(audio))))
    spectrum = transform.stft(padded)  # (257, frames)
    cepstrum = np.fft.irfft(np.log(np.abs(spectrum) + 1e-5), axis=0)
    cepstrum[25:-24] = 0  # what is left is smoother than any harmonic: the envelope
    envelope = np.fft.rfft(cepstrum, axis=0).real
    at = np.clip(np.arange(len(envelope)) / ratio, 0, len(envelope) - 1)
    low = at.astype(int)
    high, part = np.minimum(low + 1, len(envelope) - 1), (at - low)[:, None]
    moved = envelope[low] * (1 - part) + envelope[high] * part
    return transform.istft(spectrum * np.exp(moved - envelope), k1=len(padded))[: len(audio)]


def _octaves(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies of a real transform of `size` samples, in Hz and in octaves from 1 kHz (from 20 Hz on)."""
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    return hertz, np.log2(np.maximum(hertz, 20) / 1000)


def equalise(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another microphone: tilt, bumps and band limits, with zero phase."""
    size = len(audio) + SAMPLE_RATE // 4
    hertz, octave = _octaves(size)
    gain = rng.uniform(-3, 3) * octave  # dB
    for _ in range(4):
        centre, width = rng.uniform(-3.5, 3), rng.uniform(0.3, 1.0)
        gain += rng.uniform(-8, 8) * np.exp(-(((octave - centre) / width) ** 2))
    gain -= 12 * np.maximum(0, np.log2(rng.uniform(40, 200) / np.maximum(hertz, 20)))
    if rng.random() < 0.3:  # old microphones, low bit rates
        gain -= 24 * np.maximum(0, octave - np.log2(rng.uniform(3.4, 7)))
    return np.fft.irfft(np.fft.rfft(audio, size) * 10 ** (gain / 20), size)[: len(audio)]


def reverberate(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A room: the direct sound at its time, behind it a tail that fades by 60 dB in 0.1 to 0.6 s."""
    size = len(audio) + SAMPLE_RATE // 2
    t = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / rng.uniform(0.1, 0.6))
    tail *= 10 ** (-rng.uniform(4, 25) / 20) / np.linalg.norm(tail)
    return np.fft.irfft(np.fft.rfft(audio, size) * (1 + np.fft.rfft(tail, size)), size)[: len(audio)]


def coloured_noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) noise of rms 1, between white and brown."""
    hertz = np.maximum(np.fft.rfftfreq(count, 1 / SAMPLE_RATE), 40)
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(count)) * hertz ** -rng.uniform(0, 1), count)
    return _unit(noise)


def babble(count: int, rng: np.random.Generator, voices) -> np.ndarray:
    """(count,) of rms 1: three to six people talking at once, each a random piece of one of `voices` [(m,)]."""
    out = np.zeros(count)
    for _ in range(int(rng.integers(3, 7))):
        voice = voices[int(rng.integers(len(voices)))]
        out += np.resize(np.roll(voice, int(rng.integers(len(voice)))), count) * rng.uniform(0.4, 1)
    return _unit(out)


def telephone(audio: np.ndarray) -> np.ndarray:
    """300 to 3400 Hz, quantised to eight bits by the mu-law of ITU-T G.711."""
    hertz, _ = _octaves(len(audio))
    out = np.fft.irfft(np.fft.rfft(audio) * np.where((hertz > TELEPHONE_HZ[0]) & (hertz < TELEPHONE_HZ[1]), 1, 0.03), len(audio))
    peak, mu = np.abs(out).max() + 1e-9, 255
    code = np.round(np.sign(out) * np.log1p(mu * np.abs(out) / peak) / np.log1p(mu) * 127) / 127
    return np.sign(code) * np.expm1(np.abs(code) * np.log1p(mu)) / mu * peak


def overdrive(audio: np.ndarray, drive: float) -> np.ndarray:
    """A microphone or an amplifier at its limit: peaks are rounded off, the more the larger `drive`."""
    peak = np.abs(audio).max() + 1e-9
    return np.tanh(audio / peak * drive) * peak


def _unit(sound: np.ndarray) -> np.ndarray:
    return sound / (np.sqrt(np.square(sound).mean()) + 1e-12)

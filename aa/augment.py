"""Other voices, microphones, rooms and telephones for the same sound, with its timing untouched."""

import numpy as np

from aa.media import SAMPLE_RATE

N_FFT = 512


def augment(audio, generator) -> np.ndarray:
    """A random other voice, microphone, room and level for the same (n,) sound, with the timing untouched.

    Formant shift, equaliser, reverberation, noise, gain: a model trained on a few synthetic voices then holds for recordings.
    `generator`: numpy Generator, torch.Generator or an integer seed.
    """
    audio, rng = np.asarray(audio, np.float32), _as_numpy(generator)
    out = _shift_formants(audio, 2 ** rng.uniform(-0.25, 0.25)) if rng.random() < 0.7 else audio
    out = _colour(out, rng)
    power = np.square(audio).mean() + 1e-12
    if rng.random() < 0.6:
        out = out + _noise(len(out), rng) * np.sqrt(power) * 10 ** (-rng.uniform(8, 50) / 20)
    out = out * 10 ** (rng.uniform(-15, 6) / 20)
    return np.clip(out, -1, 1).astype(np.float32)


def _as_numpy(generator) -> np.random.Generator:
    if hasattr(generator, "initial_seed"):  # torch.Generator
        import torch

        return np.random.default_rng(int(torch.randint(2**31, (), generator=generator, device=generator.device)))
    return np.random.default_rng(generator)


def _shift_formants(audio: np.ndarray, ratio: float) -> np.ndarray:
    """Move the spectral envelope up in frequency by `ratio` and leave pitch and timing: another length of vocal tract."""
    from librosa import istft, stft

    spectrum = stft(audio, n_fft=N_FFT, hop_length=N_FFT // 4)  # (257, frames)
    cepstrum = np.fft.irfft(np.log(np.abs(spectrum) + 1e-5), axis=0)
    cepstrum[25:-24] = 0  # what is left is smoother than any harmonic: the envelope
    envelope = np.fft.rfft(cepstrum, axis=0).real
    at = np.clip(np.arange(len(envelope)) / ratio, 0, len(envelope) - 1)
    low = at.astype(int)
    high, part = np.minimum(low + 1, len(envelope) - 1), (at - low)[:, None]
    moved = envelope[low] * (1 - part) + envelope[high] * part
    return istft(spectrum * np.exp(moved - envelope), hop_length=N_FFT // 4, length=len(audio))


def _colour(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random equaliser (tilt, three bumps, band limits) with zero phase, and sometimes a room whose direct sound is at 0."""
    size = len(audio) + SAMPLE_RATE // 2
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    octave = np.log2(np.maximum(hertz, 20) / 1000)
    gain = rng.uniform(-2, 2) * octave
    for _ in range(3):
        centre, width = rng.uniform(-3.5, 3), rng.uniform(0.3, 1.0)
        gain += rng.uniform(-6, 6) * np.exp(-(((octave - centre) / width) ** 2))
    gain -= 12 * np.maximum(0, np.log2(rng.uniform(40, 200)) - np.log2(np.maximum(hertz, 20)))
    if rng.random() < 0.25:  # telephone and old microphones
        gain -= 24 * np.maximum(0, octave - np.log2(rng.uniform(3.4, 7)))
    response = 10 ** (gain / 20)
    if rng.random() < 0.4:
        t = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
        tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / rng.uniform(0.1, 0.5))  # -60 dB after 0.1-0.5 s
        tail *= 10 ** (-rng.uniform(6, 25) / 20) / np.linalg.norm(tail)
        response = response * (1 + np.fft.rfft(tail, size))
    return np.fft.irfft(np.fft.rfft(audio, size) * response, size)[: len(audio)]


def _noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) noise of rms 1, between white and brown."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    hertz = np.maximum(np.fft.rfftfreq(count, 1 / SAMPLE_RATE), 40)
    noise = np.fft.irfft(spectrum * hertz ** -rng.uniform(0, 1), count)
    return noise / (np.sqrt(np.square(noise).mean()) + 1e-12)

"""Level, mel bands, noise floor, voicing and pitch of sound, per video frame.

Level. The loudness of the *speech* is set to a fixed value, so that a recording 12 dB quieter looks alike; yet what is
faint or steady as a whole is left as it is, so that hiss is never blown up into speech. Digital silence stays silence.
"""

import functools
from itertools import pairwise

import numpy as np

from aa.media import FPS, SAMPLE_RATE

FRAME = SAMPLE_RATE // FPS  # 640 samples
N_MELS, WINDOWS = 40, 4  # mel windows per video frame: one every 10 ms
BAND_HZ = (60, 250, 500, 1000, 1600, 2500, 3600, 5000, 7600)  # edges of the bands that are held against the noise
N_FFT, WINDOW = 512, 400  # 25 ms Hann window in a 32 ms transform
BLOCK = 15 * FPS  # frames that are computed at a time, so that memory does not grow with length
OFFSET_POLE = 0.998  # of the filter that takes out what is constant: 5 Hz at 16 kHz
TARGET_DB = -20.0  # speech is brought to this level (dB re full scale, rms)
LOUD_DB, QUIET_DB = -45.0, -56.0  # full gain above the first, none below the second
FLOOR_DB = -65.0  # mel power that counts as silence
SILENT_DB = -72.0  # band power that counts as silence: 50 dB below speech, rooms and microphones are seldom so quiet
PITCH_HZ = (70.0, 400.0)


def frame_count(samples: int) -> int:
    """T = round(25 * seconds), at least 1."""
    return max(1, round(FPS * samples / SAMPLE_RATE))


def checked(audio) -> np.ndarray:
    """`audio` as (n,) float32; ValueError if it is empty, not mono or not finite."""
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 1 or len(audio) == 0 or not np.isfinite(audio).all():
        raise ValueError(f"audio must be finite mono samples (n,) with n > 0, got shape {audio.shape}")
    return audio


def fit(audio: np.ndarray, before: int, length: int) -> np.ndarray:
    """`audio` behind `before` zeros, cut or filled with zeros to `length`."""
    out = np.zeros(length, np.float32)
    out[before : before + len(audio)] = audio[: length - before]
    return out


def _windows(audio: np.ndarray, size: int, hop: int, count: int):
    """`count` windows (m, size) `hop` samples apart, some at a time; the first is centred `hop / 2` samples into the sound."""
    padded = fit(audio, (size - hop) // 2, (count - 1) * hop + size)
    views = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    step = BLOCK * FRAME // hop
    return (views[i : i + step] for i in range(0, count, step))


# ---------------------------------------------------------------- level


def without_offset(audio: np.ndarray, state=None) -> tuple[np.ndarray, tuple]:
    """(n,) -> the same without what is constant or sways below 5 Hz, and the filter's state for the sound that follows."""
    from scipy.signal import lfilter

    state = np.array([-audio[0]], np.float32) if state is None else state  # as if the first sample had gone on for ever
    return lfilter(np.float32([1, -1]), np.float32([1, -OFFSET_POLE]), audio, zi=state)


def _power(audio: np.ndarray, count: int) -> np.ndarray:
    """(n,) -> (count,) mean square of each video frame."""
    return np.square(fit(audio, 0, count * FRAME).reshape(count, FRAME)).mean(axis=1)


def loudness(audio, frames: int | None = None) -> np.ndarray:
    """(n,) sound -> (T,) rms level of each video frame in dB re full scale, never below -100."""
    audio = checked(audio)
    return (10 * np.log10(_power(audio, frames or frame_count(len(audio))) + 1e-10)).astype(np.float32)


def speech_level(audio) -> tuple[float, float]:
    """Level of the speech and the spread (10th to 90th percentile) of the frames that sound, both in dB.

    The level is the median over frames that pass an absolute and then a relative gate, as in ITU-R BS.1770.
    """
    return level_of(loudness(audio))


def level_of(levels: np.ndarray) -> tuple[float, float]:
    """`speech_level` from the levels of frames (T,) in dB."""
    active = levels[levels > QUIET_DB]
    if not len(active):
        return float(levels.max()), 0.0
    mean = 10 * np.log10(np.mean(10 ** (active / 10)))
    low, high = np.percentile(active, (10, 90))
    return float(np.median(active[active > mean - 10])), float(high - low)


def gain_of(levels: np.ndarray) -> np.float32:
    """Levels of frames (T,) dB -> the factor that brings their speech to -20 dB; faint or steady sound is not made louder."""
    level, spread = level_of(levels)
    gain = TARGET_DB - level
    if gain > 0:
        gain *= np.clip((level - QUIET_DB) / (LOUD_DB - QUIET_DB), 0, 1)
        gain *= np.clip((spread - 2) / 3, 0, 1)  # hiss and hum keep within 1 dB, speech ranges over 10 and more
    return np.float32(10 ** (gain / 20))


def normalise(audio) -> np.ndarray:
    """(n,) -> (n,) with its speech at -20 dB; what is too faint or too steady to be speech is not made louder."""
    return checked(audio) * gain_of(loudness(audio))


# ---------------------------------------------------------------- spectra


def _log(power: np.ndarray) -> np.ndarray:
    """Power -> 0 at silence, +1 per 20 dB above the floor."""
    return np.log10(1 + power / 10 ** (FLOOR_DB / 10)) / 2


@functools.cache
def mel_filters(low: float = 50.0, high: float = 7600.0) -> np.ndarray:
    """(257, N_MELS) triangles of height 1 between neighbours on Slaney's mel scale: linear up to 1 kHz, then logarithmic."""
    step = np.log(6.4) / 27
    mel = [15 + np.log(f / 1000) / step if f > 1000 else 3 * f / 200 for f in (low, high)]
    at = np.linspace(*mel, N_MELS + 2)
    hertz = np.where(at > 15, 1000 * np.exp(step * (at - 15)), 200 * at / 3)
    up, down = hertz[1:-1] - hertz[:-2], hertz[2:] - hertz[1:-1]
    bins = np.fft.rfftfreq(N_FFT, 1 / SAMPLE_RATE)[:, None]
    return np.minimum((bins - hertz[:-2]) / up, (hertz[2:] - bins) / down).clip(0).astype(np.float32)


@functools.cache
def band_filters() -> np.ndarray:
    """(257, 8) of 0 and 1: the bins of each of the bands BAND_HZ."""
    hertz = np.fft.rfftfreq(N_FFT, 1 / SAMPLE_RATE)
    return np.stack([(hertz >= a) & (hertz < b) for a, b in pairwise(BAND_HZ)], 1).astype(np.float32)


def _filtered(audio: np.ndarray, hop: int, count: int, filters: np.ndarray, hann: np.ndarray) -> np.ndarray:
    """(n,) -> power (count, bands) through `filters`; a sine of amplitude 1 has power 1."""
    filters = filters / (hann.sum() / 2) ** 2
    return np.concatenate([np.abs(np.fft.rfft(w * hann, N_FFT)) ** 2 @ filters for w in _windows(audio, WINDOW, hop, count)])


def mel(audio: np.ndarray, count: int) -> np.ndarray:
    """(n,) -> (count, 4 * N_MELS) compressed mel power, windows centred 5, 15, 25 and 35 ms into each frame."""
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)
    power = _filtered(audio, FRAME // WINDOWS, WINDOWS * count, mel_filters(), hann)
    return _log(power).reshape(count, WINDOWS * N_MELS)


def bands(audio: np.ndarray, count: int) -> np.ndarray:
    """(n,) -> (2 * count, 8) dB: power in eight bands, 10 and 30 ms into each frame."""
    power = _filtered(audio, FRAME // 2, 2 * count, band_filters(), np.hanning(WINDOW).astype(np.float32))
    return 10 * np.log10(power + 1e-14)


def above_noise(decibels: np.ndarray, heard: np.ndarray, gain: float = 1.0) -> np.ndarray:
    """Bands (2T, 8) dB -> (T, 16): how far each is above its noise, the 5th percentile of all `heard`: +1 per 30 dB, at most 2.

    What is below SILENT_DB after `gain` is all alike: else a gap of digital silence would make a loud breath of a room's hush.
    """
    lowest = SILENT_DB - 20 * np.log10(gain)
    floor = np.percentile(np.maximum(heard, lowest), 5, axis=0)
    return np.clip((np.maximum(decibels, lowest) - floor) / 30, 0, 2).reshape(len(decibels) // 2, -1)


# ---------------------------------------------------------------- voice


def pitch(audio: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) -> voicing (T,) in [0, 1] and f0 (T,) in Hz from the windowed autocorrelation (Boersma 1993), 64 ms windows."""
    size = 1024
    window = np.hanning(size).astype(np.float32)
    lags = np.arange(int(SAMPLE_RATE / PITCH_HZ[1]), int(SAMPLE_RATE / PITCH_HZ[0]))

    def correlation(x):
        return np.fft.irfft(np.abs(np.fft.rfft(x, 2 * size)) ** 2)[..., :size]

    ours, voicing, f0 = correlation(window), [], []
    for block in _windows(audio, size, FRAME, count):
        own = correlation(block * window)
        strength = own[:, lags] / (own[:, :1] + 1e-6 * size) / (ours[lags] / ours[0])
        best = np.argmax(strength - 0.02 * np.log2(lags), axis=1)  # octave cost: of equal peaks the shorter period
        voicing.append(np.clip(strength[np.arange(len(own)), best], 0, 1))
        f0.append(SAMPLE_RATE / lags[best])
    return np.concatenate(voicing), np.concatenate(f0)


def prosody(audio: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalised sound (n,) -> energy (T,), voicing (T,) in [0, 1], f0 (T,) in Hz."""
    energy = _log(_power(audio, count))
    voicing, f0 = pitch(audio, count)
    return energy, voicing * np.clip(energy - 0.5, 0, 1), f0  # 10-30 dB above the floor: a hum in silence is no voice

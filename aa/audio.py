"""What the motion model hears: log-mel windows at the video's 25 fps, loudness, voicing and pitch; and augmentation.

Phase. Frame t covers [40 t, 40 (t + 1)) ms. Its four mel windows (25 ms long) are centred 5, 15, 25 and 35 ms into it, so
that they lie symmetrically around the frame's centre, where motion is sampled: no lag has to be learned.

Level. The loudness of the *speech* is set to a fixed value, so that a recording 12 dB quieter looks alike; yet what is
faint or steady as a whole is left as it is, so that hiss is never blown up into speech. Digital silence gives zeros.
"""

import numpy as np

from aa.media import FPS, SAMPLE_RATE, load_audio

__all__ = ["FEATURE_DIM", "N_MELS", "augment", "features", "load_audio", "loudness", "normalise", "speech_level"]

N_MELS = 40
WINDOWS = 4  # mel windows per video frame: one every 10 ms
FEATURE_DIM = WINDOWS * N_MELS + 3  # + energy, voicing, pitch

FRAME = SAMPLE_RATE // FPS  # 640 samples
HOP = FRAME // WINDOWS  # 160 samples, 10 ms
N_FFT, WINDOW = 512, 400  # 25 ms Hann window in a 32 ms transform
TARGET_DB = -20.0  # speech is brought to this level (dB re full scale, rms)
LOUD_DB, QUIET_DB = -45.0, -56.0  # full gain above the first, none below the second
FLOOR_DB = -65.0  # band power that counts as silence
PITCH_HZ = (70.0, 400.0)


def frame_count(samples: int) -> int:
    """T = round(25 * seconds), at least 1."""
    return max(1, round(FPS * samples / SAMPLE_RATE))


def _checked(audio) -> np.ndarray:
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 1 or len(audio) == 0 or not np.isfinite(audio).all():
        raise ValueError(f"audio must be finite mono samples (n,) with n > 0, got shape {audio.shape}")
    return audio


def _fit(audio: np.ndarray, before: int, length: int) -> np.ndarray:
    """`audio` behind `before` zeros, cut or filled with zeros to `length`."""
    out = np.zeros(length, np.float32)
    out[before : before + len(audio)] = audio[: length - before]
    return out


def _power(audio: np.ndarray, count: int) -> np.ndarray:
    """(n,) -> (count,) mean square of each video frame."""
    return np.square(_fit(audio, 0, count * FRAME).reshape(count, FRAME)).mean(axis=1)


def loudness(audio, frames: int | None = None) -> np.ndarray:
    """(n,) sound -> (T,) rms level of each video frame in dB re full scale, never below -100."""
    audio = _checked(audio)
    return (10 * np.log10(_power(audio, frames or frame_count(len(audio))) + 1e-10)).astype(np.float32)


def speech_level(audio) -> tuple[float, float]:
    """Level of the speech and the spread (10th to 90th percentile) of the frames that sound, both in dB.

    The level is the median over frames that pass an absolute and then a relative gate, as in ITU-R BS.1770.
    """
    level = loudness(audio)
    active = level[level > QUIET_DB]
    if not len(active):
        return float(level.max()), 0.0
    mean = 10 * np.log10(np.mean(10 ** (active / 10)))
    low, high = np.percentile(active, (10, 90))
    return float(np.median(active[active > mean - 10])), float(high - low)


def normalise(audio) -> np.ndarray:
    """(n,) -> (n,) with its speech at -20 dB; what is too faint or too steady to be speech is not made louder."""
    level, spread = speech_level(audio)
    gain = TARGET_DB - level
    if gain > 0:
        gain *= np.clip((level - QUIET_DB) / (LOUD_DB - QUIET_DB), 0, 1)
        gain *= np.clip((spread - 2) / 3, 0, 1)  # hiss and hum keep within 1 dB, speech ranges over 10 and more
    return _checked(audio) * np.float32(10 ** (gain / 20))


def _log(power: np.ndarray) -> np.ndarray:
    """Power -> 0 at silence, +1 per 20 dB above the floor."""
    return np.log10(1 + power / 10 ** (FLOOR_DB / 10)) / 2


def _mel(audio: np.ndarray, count: int) -> np.ndarray:
    """(n,) -> (count, 4 * N_MELS) compressed mel power, a minute at a time so that memory does not grow with length."""
    from librosa.feature import melspectrogram

    before = N_FFT // 2 - HOP // 2  # puts the centre of window i at sample 80 + 160 i
    padded = _fit(audio, before, (WINDOWS * count - 1) * HOP + N_FFT)
    rows = np.empty((WINDOWS * count, N_MELS), np.float32)
    for start in range(0, len(rows), 6000):
        stop = min(start + 6000, len(rows))
        power = melspectrogram(
            y=padded[start * HOP : (stop - 1) * HOP + N_FFT], sr=SAMPLE_RATE, n_fft=N_FFT, hop_length=HOP, win_length=WINDOW,
            center=False, n_mels=N_MELS, fmin=50, fmax=7600, norm=None,
        )  # fmt: skip
        rows[start:stop] = _log(power.T / (WINDOW / 4) ** 2)  # a sine of amplitude 1 has power 1
    return rows.reshape(count, WINDOWS * N_MELS)


def _pitch(audio: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) -> voicing (T,) in [0, 1] and f0 (T,) in Hz from the windowed autocorrelation (Boersma 1993), 64 ms windows."""
    size = 1024
    padded = _fit(audio, (size - FRAME) // 2, (count - 1) * FRAME + size)
    window = np.hanning(size).astype(np.float32)
    blocks = np.lib.stride_tricks.sliding_window_view(padded, size)[::FRAME] * window  # (T, size)
    lags = np.arange(int(SAMPLE_RATE / PITCH_HZ[1]), int(SAMPLE_RATE / PITCH_HZ[0]))

    def correlation(x):
        return np.fft.irfft(np.abs(np.fft.rfft(x, 2 * size)) ** 2)[..., :size]

    own, ours = correlation(blocks), correlation(window)
    strength = own[:, lags] / (own[:, :1] + 1e-6 * size) / (ours[lags] / ours[0])
    best = np.argmax(strength - 0.02 * np.log2(lags), axis=1)  # octave cost: of equal peaks the shorter period
    return np.clip(strength[np.arange(count), best], 0, 1), SAMPLE_RATE / lags[best]


def features(audio, frames: int | None = None) -> np.ndarray:
    """(n,) float32 sound at 16 kHz -> (T, FEATURE_DIM) float32 at 25 fps, T = round(25 n / 16000) unless `frames` is given.

    Columns: 4 x N_MELS log-mel (5, 15, 25, 35 ms into the frame; 0 is silence, +1 per 20 dB), energy (same scale), voicing in
    [0, 1], pitch in octaves from the speaker's median, times voicing. Raises ValueError for empty or non-finite sound.
    """
    audio = normalise(_checked(audio))
    count = frames or frame_count(len(audio))
    energy = _log(_power(audio, count))
    blocks = [_pitch(audio[i * FRAME : (i + 1500) * FRAME], min(1500, count - i)) for i in range(0, count, 1500)]
    voicing, f0 = (np.concatenate(parts) for parts in zip(*blocks))
    voicing = voicing * np.clip(energy - 0.5, 0, 1)  # 10-30 dB above the floor: a hum in silence is no voice
    voiced = voicing > 0.5
    octaves = np.log2(f0 / (np.median(f0[voiced]) if voiced.any() else 130.0))
    pitch = np.clip(octaves, -1, 1) * voicing * voiced
    return np.column_stack([_mel(audio, count), energy, voicing, pitch]).astype(np.float32)


# ---------------------------------------------------------------- augmentation


def augment(audio, generator) -> np.ndarray:
    """A random other voice, microphone, room and level for the same (n,) sound, with the timing untouched.

    Formant shift, equaliser, reverberation, noise, gain: a model trained on a few synthetic voices then holds for recordings.
    `generator`: numpy Generator, torch.Generator or an integer seed.
    """
    audio, rng = _checked(audio), _as_numpy(generator)
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

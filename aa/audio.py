"""What the motion model hears, 25 times a second: phones as a mouth shows them, the noise floor, energy, voicing and pitch.

Kinds of sound features. "phones": posteriors of a recogniser trained on real speech (`aa.phones`) and eight bands above the
recording's own noise, in which a breath shows. "mel": log-mel windows, nothing learned. Any other word is the folder or the name of
wav2vec 2.0 or HuBERT weights (`aa.wav2vec`). The last three columns are always energy, voicing and pitch.

Phase. Frame t covers [40 t, 40 (t + 1)) ms; motion is sampled at its centre. Windows lie symmetrically around it (mel: 5, 15, 25
and 35 ms into the frame; bands and hidden states: 10 and 30 ms), only the recogniser's two are centred at 0 and 20 ms.

Level. The loudness of the *speech* is set to a fixed value, so that a recording 12 dB quieter looks alike; yet what is
faint or steady as a whole is left as it is, so that hiss is never blown up into speech. Digital silence stays silence.
"""

from itertools import pairwise

import numpy as np

from aa.augment import augment
from aa.media import FPS, SAMPLE_RATE, load_audio

__all__ = ["PROSODY", "augment", "feature_dim", "features", "load_audio", "loudness", "normalise", "speech_level"]

PROSODY = 3  # the last columns of every kind: energy, voicing, pitch
N_MELS, WINDOWS = 40, 4  # mel windows per video frame: one every 10 ms
BAND_HZ = (60, 250, 500, 1000, 1600, 2500, 3600, 5000, 7600)  # edges of the bands above the noise floor
WIDTHS = {"phones": 34 + 60 + 2 * (len(BAND_HZ) - 1), "mel": WINDOWS * N_MELS}  # columns before the prosody

FRAME = SAMPLE_RATE // FPS  # 640 samples
HOP = FRAME // WINDOWS  # 160 samples, 10 ms
N_FFT, WINDOW = 512, 400  # 25 ms Hann window in a 32 ms transform
MINUTE = 60 * FPS  # frames that are computed at a time, so that memory does not grow with length
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


def _windows(audio: np.ndarray, size: int, hop: int, count: int):
    """Windows (m, size) `hop` apart, `count` in all, a minute at a time; the first is centred `hop / 2` samples into the sound."""
    padded = _fit(audio, (size - hop) // 2, (count - 1) * hop + size)
    views = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    step = max(1, MINUTE * FRAME // hop // 4)
    return (views[i : i + step] for i in range(0, count, step))


# ---------------------------------------------------------------- level


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
    return _speech_level(loudness(audio))


def _speech_level(level: np.ndarray) -> tuple[float, float]:
    active = level[level > QUIET_DB]
    if not len(active):
        return float(level.max()), 0.0
    mean = 10 * np.log10(np.mean(10 ** (active / 10)))
    low, high = np.percentile(active, (10, 90))
    return float(np.median(active[active > mean - 10])), float(high - low)


def _gain(levels: np.ndarray) -> np.float32:
    """Levels of frames (T,) dB -> the factor that brings their speech to -20 dB; faint or steady sound is not made louder."""
    level, spread = _speech_level(levels)
    gain = TARGET_DB - level
    if gain > 0:
        gain *= np.clip((level - QUIET_DB) / (LOUD_DB - QUIET_DB), 0, 1)
        gain *= np.clip((spread - 2) / 3, 0, 1)  # hiss and hum keep within 1 dB, speech ranges over 10 and more
    return np.float32(10 ** (gain / 20))


def normalise(audio) -> np.ndarray:
    """(n,) -> (n,) with its speech at -20 dB; what is too faint or too steady to be speech is not made louder."""
    return _checked(audio) * _gain(loudness(audio))


# ---------------------------------------------------------------- columns


def _log(power: np.ndarray) -> np.ndarray:
    """Power -> 0 at silence, +1 per 20 dB above the floor."""
    return np.log10(1 + power / 10 ** (FLOOR_DB / 10)) / 2


def _mel(audio: np.ndarray, count: int) -> np.ndarray:
    """(n,) -> (count, 4 * N_MELS) compressed mel power, a minute at a time so that memory does not grow with length."""
    from librosa.feature import melspectrogram

    before = N_FFT // 2 - HOP // 2  # puts the centre of window i at sample 80 + 160 i
    padded = _fit(audio, before, (WINDOWS * count - 1) * HOP + N_FFT)
    rows = np.empty((WINDOWS * count, N_MELS), np.float32)
    for start in range(0, len(rows), WINDOWS * MINUTE):
        stop = min(start + WINDOWS * MINUTE, len(rows))
        power = melspectrogram(
            y=padded[start * HOP : (stop - 1) * HOP + N_FFT], sr=SAMPLE_RATE, n_fft=N_FFT, hop_length=HOP, win_length=WINDOW,
            center=False, n_mels=N_MELS, fmin=50, fmax=7600, norm=None,
        )  # fmt: skip
        rows[start:stop] = _log(power.T / (WINDOW / 4) ** 2)  # a sine of amplitude 1 has power 1
    return rows.reshape(count, WINDOWS * N_MELS)


def _bands(audio: np.ndarray, count: int) -> np.ndarray:
    """(n,) -> (2 * count, 8) dB: power in eight bands, 10 and 30 ms into each frame."""
    window = np.hanning(WINDOW).astype(np.float32)
    hertz = np.fft.rfftfreq(N_FFT, 1 / SAMPLE_RATE)
    band = np.stack([(hertz >= a) & (hertz < b) for a, b in pairwise(BAND_HZ)], 1).astype(np.float32)
    power = [np.abs(np.fft.rfft(w * window, N_FFT)) ** 2 @ band for w in _windows(audio, WINDOW, FRAME // 2, 2 * count)]
    return 10 * np.log10(np.concatenate(power) / (window.sum() / 2) ** 2 + 1e-9)


def _above_noise(bands: np.ndarray, heard: np.ndarray) -> np.ndarray:
    """Bands (2T, 8) dB -> (T, 16): how far each is above its noise (+1 per 30 dB, at most 2), the 5th percentile of all `heard`.

    What is 75 dB below the loud does not count: between digital silence and a breath there would be no end of decibels.
    """
    lowest = np.percentile(heard.max(1), 90) - 75
    floor = np.percentile(np.maximum(heard, lowest), 5, axis=0)
    return np.clip((np.maximum(bands, lowest) - floor) / 30, 0, 2).reshape(len(bands) // 2, -1)


def _pitch(audio: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
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


def _prosody(audio: np.ndarray, count: int) -> np.ndarray:
    """(n,) -> (T, 3): energy, voicing in [0, 1], pitch in octaves from the speaker's median, times voicing."""
    energy = _log(_power(audio, count))
    voicing, f0 = _pitch(audio, count)
    voicing = voicing * np.clip(energy - 0.5, 0, 1)  # 10-30 dB above the floor: a hum in silence is no voice
    voiced = voicing > 0.5
    octaves = np.log2(f0 / (np.median(f0[voiced]) if voiced.any() else 130.0))
    return np.column_stack([energy, voicing, np.clip(octaves, -1, 1) * voicing * voiced])


def feature_dim(kind: str = "phones") -> int:
    """Number of columns that `features` gives for a kind."""
    if kind in WIDTHS:
        return WIDTHS[kind] + PROSODY
    from aa.wav2vec import hidden_size

    return hidden_size(kind) + PROSODY


def features(audio, frames: int | None = None, kind: str = "phones", device="cpu") -> np.ndarray:
    """(n,) float32 sound at 16 kHz -> (T, feature_dim(kind)) float32 at 25 fps, T = round(25 n / 16000) unless `frames` is given.

    Columns of "phones": 2 x 17 posteriors of mouth classes (`aa.phones.MOUTH_CLASSES`), 2 x 30 of them smeared in time, 2 x 8 bands
    above the noise. Of "mel": 4 x N_MELS log-mel (0 is silence, +1 per 20 dB). Then energy (the same scale), voicing in [0, 1],
    pitch in octaves from the speaker's median, times voicing. `device` is where a network runs. Raises ValueError for empty or
    non-finite sound, InputError where the network's weights are missing.
    """
    audio = normalise(_checked(audio))
    count = frames or frame_count(len(audio))
    return np.column_stack([_columns(audio, count, kind, device), _prosody(audio, count)]).astype(np.float32)


def _columns(audio: np.ndarray, count: int, kind: str, device) -> np.ndarray:
    """(n,) -> what is particular to a kind, (T, feature_dim(kind) - 3)."""
    if kind == "mel":
        return _mel(audio, count)
    filled = _fit(audio, 0, count * FRAME)
    if kind == "phones":
        from aa.phones import mouth_features

        bands = _bands(audio, count)
        return np.column_stack([mouth_features(filled, device), _above_noise(bands, bands)])
    from aa.wav2vec import hidden_states

    return hidden_states(filled, kind, device)

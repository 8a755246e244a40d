"""What the motion model hears, 25 times a second: phones as a mouth shows them, what is above the noise, energy, voicing, pitch.

Kinds of sound features. "phones": posteriors of a recogniser trained on real speech (`aa.phones`) and eight bands above the
recording's own noise, in which a breath shows. "mel": log-mel windows, nothing learned. Any other word is the folder or the name of
wav2vec 2.0 or HuBERT weights (`aa.wav2vec`). The last three columns are always energy, voicing and pitch.

Phase. Frame t covers [40 t, 40 (t + 1)) ms; motion is sampled at its centre. Windows lie symmetrically around it (mel: 5, 15, 25
and 35 ms into the frame; bands and hidden states: 10 and 30 ms), only the recogniser's two are centred at 0 and 20 ms.

Whole and live. `features` takes level, noise floor and the speaker's pitch from the whole recording, `Ear` from the last minute.
"""

import numpy as np

from aa import acoustics
from aa.acoustics import FRAME, checked, fit, frame_count, loudness, normalise, speech_level
from aa.augment import augment
from aa.media import FPS, load_audio

__all__ = [
    "PROSODY",
    "Ear",
    "augment",
    "feature_dim",
    "features",
    "frame_count",
    "load_audio",
    "loudness",
    "normalise",
    "speech_level",
]

PROSODY = 3  # the last columns of every kind: energy, voicing, pitch
BANDS = len(acoustics.BAND_HZ) - 1
WIDTHS = {"phones": 2 * 17 + 2 * 30 + 2 * BANDS, "mel": acoustics.WINDOWS * acoustics.N_MELS}  # columns before them
MINUTE = 60 * FPS


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
    audio = checked(audio)
    count = frames or frame_count(len(audio))
    return _rows(acoustics.without_offset(audio)[0], count, count, kind, device, Heard())


class Heard:
    """What the columns are relative to: levels (T,) dB, bands (2T, 8) dB, f0 (m,) Hz of all frames so far or of the last `keep`."""

    def __init__(self, keep: int | None = None):
        self.keep = keep
        self.levels, self.bands, self.f0 = np.zeros(0), np.zeros((0, BANDS)), np.zeros(0)

    def add(self, name: str, rows: np.ndarray, per_frame: int = 1) -> np.ndarray:
        """Append `rows` of new frames; everything that is remembered."""
        known = np.concatenate([getattr(self, name), rows])
        setattr(self, name, known[-per_frame * self.keep :] if self.keep else known)
        return getattr(self, name)

    def gain(self, levels: np.ndarray) -> np.float32:
        """The factor that brings the speech to its level, now that frames of `levels` (n,) dB have come.

        Live, for want of a second of sound the missing part is taken to be as loud as it should be.
        """
        known = self.add("levels", levels)
        missing = FPS - int((known > acoustics.QUIET_DB).sum()) if self.keep else 0
        return acoustics.gain_of(np.concatenate([known, acoustics.TARGET_DB + np.linspace(-8, 8, max(missing, 0))]))


def _rows(audio: np.ndarray, count: int, new: int, kind: str, device, heard: Heard) -> np.ndarray:
    """Sound (n,) -> (count, F), of which the last `new` frames have not been heard before."""
    gain = heard.gain(loudness(audio, count)[count - new :])
    normal = audio * gain
    energy, voicing, f0 = acoustics.prosody(normal, count)
    voiced = voicing > 0.5
    f0_heard = heard.add("f0", f0[count - new :][voiced[count - new :]])
    octaves = np.log2(f0 / (np.median(f0_heard) if len(f0_heard) else 130.0))
    columns = [energy, voicing, np.clip(octaves, -1, 1) * voicing * voiced]
    if kind == "mel":
        columns = [acoustics.mel(normal, count), *columns]
    elif kind == "phones":
        from aa.phones import mouth_features

        decibels = acoustics.bands(audio, count)
        noise = heard.add("bands", decibels[2 * (count - new) :], per_frame=2)
        snr = acoustics.above_noise(decibels, noise, gain)
        columns = [mouth_features(fit(normal, 0, count * FRAME), device), snr, *columns]
    else:
        from aa.wav2vec import hidden_states

        columns = [hidden_states(fit(normal, 0, count * FRAME), kind, device), *columns]
    return np.column_stack(columns).astype(np.float32)


class Ear:
    """Features while the sound comes in: feed `push` with pieces of any length, `finish` gives the last rows. Memory is constant.

    A row sees `past` s of sound before it, `ahead` s behind it (a little more within a hop), and level, noise floor and pitch of
    the last minute; it is given when sound up to `delay` s behind its frame has come. Rows do not depend on how the sound is cut
    into pieces. After `finish` a new recording of the same speaker may follow. Rows are computed `hop` frames at a time: a larger
    hop costs less and waits longer.
    """

    def __init__(self, kind: str = "phones", ahead: float = 0.2, hop: int = 2, past: float = 2.0, device="cpu"):
        self.kind, self.device, self.hop, self.width = kind, device, hop, feature_dim(kind)
        self.ahead, self.past = round(ahead * FPS), round(past * FPS)
        self.heard = Heard(MINUTE)
        self._begin()

    def _begin(self) -> None:
        self.state, self.sound = None, np.zeros(0, np.float32)  # of the offset filter; from frame `first` on
        self.first = self.done = self.known = 0  # frames: first in `sound`, given, heard

    @property
    def delay(self) -> float:
        """s of sound behind a frame that must have come before its row is given, at most."""
        return (self.ahead + self.hop - 1) / FPS

    def push(self, samples) -> np.ndarray:
        """Sound (n,) float32 at 16 kHz that follows what was pushed before -> rows (m, F) of the frames that are now final."""
        if len(samples):
            sound, self.state = acoustics.without_offset(checked(samples), self.state)
            self.sound = np.concatenate([self.sound, sound])
        rows = [np.zeros((0, self.width), np.float32)]
        while self.first + len(self.sound) // FRAME >= self.done + self.hop + self.ahead:
            rows.append(self._step(self.done + self.hop, self.done + self.hop + self.ahead))
        return np.concatenate(rows)

    def finish(self) -> np.ndarray:
        """Rows (m, F) of the frames that waited for what comes behind them: nothing does."""
        end = self.first + round(len(self.sound) / FRAME)
        end = max(end, int(self.state is not None))  # the shortest sound has one frame
        rows = self._step(end, end) if end > self.done else np.zeros((0, self.width), np.float32)
        self._begin()
        return rows

    def _step(self, final: int, end: int) -> np.ndarray:
        """Rows of the frames `done` to `final` from the sound of frames `first` to `end`; forgets what is too long ago."""
        sound = self.sound[: (end - self.first) * FRAME]
        rows = _rows(sound, end - self.first, end - self.known, self.kind, self.device, self.heard)
        rows = rows[self.done - self.first : final - self.first]
        self.done, self.known = final, end
        if (late := final - self.past - self.first) > 0:
            self.first, self.sound = self.first + late, self.sound[late * FRAME :]
        return rows

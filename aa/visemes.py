"""Phonemes to facial curves: a small articulation model with coarticulation.

Each phoneme asks for a few ARKit actions with some strength. The curve of an action is the average of what all phonemes ask,
weighted by dominance functions that decay on both sides of each phoneme (Cohen & Massaro, "Modeling coarticulation in synthetic
visual speech", 1993). What must happen, the lower lip at the teeth in f v, the closed lips of p b m and of a pause, is imposed
afterwards as a constraint, because an average never quite gets there.
"""

import unicodedata
from dataclasses import dataclass

import numpy as np
import torch

SILENCE = {"", " ", "_", "_:", "|", "‖", ".", ",", "#", "sil", "sp"}
BILABIAL = set("pbmɱ")
LABIODENTAL = set("fv")
LIP_UPPER, LIP_LOWER = 520, 540  # vertices of the body: the two lips where they touch on the midline
SKULL_TOP, SKULL_FRONT, UPPER_TEETH = 5352, 1013, 14045  # midline vertices that no facial action moves

# Millimetres between the inner lips per unit of an action on the mean adult (linear: blend shapes). Left and right share a name.
LIPS_APART = {"jaw": 34.7, "funnel": 11.8, "upperUp": 5.0, "lowerDown": 4.0, "stretch": 0.6,
              "rollLower": -1.9, "smile": -2.8, "pucker": -3.1, "shrugLower": -5.2}  # fmt: skip
OPEN = 6.0  # mm: the gap of an ordinary unrounded sound, the unit of the gaps below


def _mouth(strength: float, gap: float, **shape: float) -> tuple[float, dict[str, float]]:
    """(strength, {action: value}) of a mouth with this `gap` and this shape of the lips: the jaw opens as far as that takes."""
    lips = sum(LIPS_APART.get(action, 0) * value for action, value in shape.items())
    return strength, {"jaw": round(max((OPEN * gap - lips) / LIPS_APART["jaw"], 0.02), 3), **shape}


# What a phoneme asks: strength, gap of the inner lips, and how the lips are shaped. The gaps come from two real speakers (8 and 3.5
# s of video; MediaPipe's inner lips in the middle of each sound, timed by forced alignment, over the speaker's median open gap):
# p b m .01, u .10, w .19, f v .5, ʊ .59, ɹ .84, and everything unrounded .9 to 1.1: s t d k as open as vowels, i as ɑ. So rounding
# nearly closes the lips, and the height of a vowel hardly shows in them. Two people are few, and most can be seen to open the
# mouth for ɑ: half of what textbooks tell about height is kept. `dominance` averages neighbours, which draws gaps together, so that
# w and u ask for less, with more strength, to come near their measure.
_BROAD = {"pucker": 0.0, "funnel": 0.0}
_TIP = {"lowerDown": 0.10, "tongue": 0.06}
_TEETH = {"stretch": 0.22, "lowerDown": 0.45, "upperUp": 0.20, "pucker": 0.0}  # the lips part, the teeth stay together
_BITE = _mouth(1.0, 0.45, rollLower=1.0, shrugLower=0.0, upperUp=0.45, lowerDown=0.0, **_BROAD)[1]
_LIP_TEETH = {"rollLower": 0.85, "shrugLower": 0.1, "upperUp": 0.35, "lowerDown": 0.0, **_BROAD}
_BREATH = _mouth(1.0, 2.0, lowerDown=0.12, upperUp=0.10, funnel=0.05)[1]  # a mouth that draws breath: 12 mm
PHONEMES = {
    # open and middle vowels
    "a": _mouth(1.0, 1.65, lowerDown=0.22, upperUp=0.10, pucker=0.0),
    "æ": _mouth(1.0, 1.70, lowerDown=0.28, upperUp=0.14, stretch=0.25, pucker=0.0),
    "ɑ": _mouth(1.0, 1.80, lowerDown=0.15, funnel=0.04, pucker=0.0),
    "ɛ": _mouth(0.95, 1.35, lowerDown=0.24, upperUp=0.08, stretch=0.22, pucker=0.0),
    "ʌ": _mouth(0.9, 1.40, lowerDown=0.15, upperUp=0.06),
    "ɐ": _mouth(0.7, 1.20, lowerDown=0.12, upperUp=0.04),
    "ə": _mouth(0.5, 1.00, lowerDown=0.08),
    # spread vowels
    "e": _mouth(0.95, 1.20, stretch=0.25, smile=0.12, lowerDown=0.22, **_BROAD),
    "i": _mouth(1.0, 0.95, stretch=0.38, smile=0.22, lowerDown=0.30, upperUp=0.08, **_BROAD),
    "ɪ": _mouth(0.8, 1.05, stretch=0.25, smile=0.12, lowerDown=0.18, **_BROAD),
    "ᵻ": _mouth(0.5, 0.95, stretch=0.12),
    # rounded vowels
    "ɒ": _mouth(1.0, 1.20, lowerDown=0.10, funnel=0.15, pucker=0.15),
    "ɔ": _mouth(1.0, 0.65, funnel=0.20, pucker=0.42, stretch=0.0),
    "o": _mouth(1.1, 0.65, funnel=0.20, pucker=0.62, stretch=0.0),
    "ʊ": _mouth(1.0, 0.55, funnel=0.14, pucker=0.55, stretch=0.0),
    "u": _mouth(1.6, 0.06, funnel=0.10, pucker=0.88, stretch=0.0, smile=0.0),
    "ʉ": _mouth(1.3, 0.20, funnel=0.10, pucker=0.80),
    "y": _mouth(1.3, 0.15, funnel=0.10, pucker=0.82),
    "ø": _mouth(1.0, 0.60, funnel=0.18, pucker=0.58),
    "œ": _mouth(1.0, 0.90, funnel=0.20, pucker=0.38),
    "ɜ": _mouth(0.9, 0.80, funnel=0.14, pucker=0.22),
    "ɚ": _mouth(0.7, 0.80, funnel=0.13, pucker=0.24),
    # consonants of the lips; p b m and f v are brought all the way by `seals` and `bites`
    "p": _mouth(1.0, 0.46),
    "b": _mouth(1.0, 0.46),
    "m": _mouth(1.0, 0.46),
    "ɱ": _mouth(1.0, 0.46),
    "f": _mouth(1.6, 0.45, **_LIP_TEETH),
    "v": _mouth(1.5, 0.45, **_LIP_TEETH),
    "w": _mouth(2.2, 0.06, funnel=0.06, pucker=0.95, stretch=0.0, smile=0.0),
    "ʍ": _mouth(2.2, 0.06, funnel=0.06, pucker=0.95, stretch=0.0, smile=0.0),
    "ɹ": _mouth(0.9, 0.80, funnel=0.20, pucker=0.38, stretch=0.0),
    "ʃ": _mouth(1.4, 1.10, funnel=0.30, pucker=0.36, lowerDown=0.25, upperUp=0.2, stretch=0.0),
    "ʒ": _mouth(1.4, 1.10, funnel=0.30, pucker=0.36, lowerDown=0.25, upperUp=0.2, stretch=0.0),
    # consonants of the tongue
    "θ": _mouth(1.0, 1.00, tongue=0.54, lowerDown=0.18, upperUp=0.12),
    "ð": _mouth(0.9, 1.00, tongue=0.52, lowerDown=0.15, upperUp=0.10),
    "t": _mouth(0.8, 0.90, **_TIP),
    "d": _mouth(0.8, 0.90, **_TIP),
    "n": _mouth(0.8, 0.90, **_TIP),
    "ɾ": _mouth(0.5, 1.00, tongue=0.05),
    "l": _mouth(0.8, 1.00, tongue=0.24, lowerDown=0.12),
    "ɫ": _mouth(0.8, 1.00, tongue=0.20, lowerDown=0.12),
    "s": _mouth(1.3, 0.95, **_TEETH),
    "z": _mouth(1.3, 0.95, **_TEETH),
    "r": _mouth(0.8, 0.90, funnel=0.1, pucker=0.1),
    "j": _mouth(0.4, 0.90, stretch=0.28, smile=0.12, pucker=0.0),  # weak: before u it is as closed as u
    "k": _mouth(0.6, 0.95),
    "ɡ": _mouth(0.6, 0.95),
    "ŋ": _mouth(0.6, 0.95),
    "x": _mouth(0.45, 1.00),
    "h": _mouth(0.25, 1.10),
    "ʔ": _mouth(0.25, 0.95),
}
ALIASES = {
    "g": "ɡ",
    "ç": "x",
    "ɬ": "l",
    "ʁ": "x",
    "ɦ": "h",
    "β": "v",
    "ʋ": "v",
    "ɻ": "ɹ",
    "ɝ": "ɜ",
    "ɘ": "ə",
    "ɨ": "ᵻ",
    "ɯ": "ʊ",
    "c": "k",
    "q": "k",
}
VOWELS = set("aæɑɒɔouʊʌɐəɜɚɛeiɪᵻʉyøœ")
ACTIONS = ("jaw", "pucker", "funnel", "stretch", "smile", "lowerDown", "upperUp", "rollLower", "shrugLower", "tongue")
_OPENING = ("jaw", "funnel", "lowerDown", "upperUp")  # what loudness widens
_DECAY, _LEAD_DECAY = 0.042, 0.075  # s: how fast dominance falls, and ahead of the phoneme for rounding, which starts early
_ROUNDING = ("pucker", "funnel")
_SPECIAL = ("rollLower", "shrugLower", "tongue")


@dataclass(frozen=True)
class Segment:
    """One sound of the articulation model."""

    symbol: str  # a key of PHONEMES, "" for silence
    start: float  # s
    end: float  # s
    stressed: bool = False
    pause: bool = False


def segments(phonemes, duration: float) -> list[Segment]:
    """Split IPA phonemes [(symbol, start s, end s)] into single sounds and fill the gaps with silence.

    Stress marks set `stressed`, length marks and other diacritics are dropped (the duration already says it), diphthongs and
    affricates become their two halves, unknown letters a schwa.
    """
    out, now = [], 0.0
    for symbol, start, end in sorted(phonemes, key=lambda p: p[1]):
        start, end = max(float(start), now), min(float(end), duration)
        if end - start < 1e-4:
            continue
        silent = symbol.strip() in SILENCE
        letters = [] if silent else [ALIASES.get(c, c) for c in symbol if unicodedata.category(c) in ("Ll", "Lu", "Lo")] or ["ə"]
        if start - now > 1e-4:
            out.append(Segment("", now, start, pause=True))
        if not letters:
            out.append(Segment("", start, end, pause=True))
        for k, c in enumerate(letters):
            cut = [start + (end - start) * q / len(letters) for q in (k, k + 1)]
            out.append(Segment(c if c in PHONEMES else "ə", cut[0], cut[1], "ˈ" in symbol))
        now = end
    if duration - now > 1e-4:
        out.append(Segment("", now, duration, pause=True))
    return _merge_pauses(out)


def _merge_pauses(parts: list[Segment]) -> list[Segment]:
    out: list[Segment] = []
    for s in parts:
        if out and s.pause and out[-1].pause:
            out[-1] = Segment("", out[-1].start, s.end, pause=True)
        else:
            out.append(s)
    return out


def loudness(audio, times, sample_rate: int = 16000, window: float = 0.05) -> np.ndarray:
    """Loudness (T,) in [0, 1] at `times` s: RMS over `window` s in decibels, 1 at the clip's loud parts (95th percentile of what is
    not silence) and above, 0 at 30 dB below. All zero for silence."""
    audio = np.asarray(audio, np.float64)
    power = np.concatenate([[0.0], np.cumsum(audio**2)])

    def rms(at):
        a, b = (np.clip((at + d) * sample_rate, 0, len(audio)).astype(int) for d in (-window / 2, window / 2))
        return np.sqrt((power[b] - power[a]) / np.maximum(b - a, 1))

    whole = rms(np.arange(0, len(audio) / sample_rate, 0.02))
    if len(whole) == 0 or whole.max() < 1e-4:
        return np.zeros(len(times))
    loud = np.percentile(whole[whole > 0.05 * whole.max()], 95)
    return np.clip(1 + 20 * np.log10(np.maximum(rms(np.asarray(times)) / loud, 1e-6)) / 30, 0, 1)


def window_curve(times, start, end, ramp_in, ramp_out):
    """1 between start and end (s), smooth ramps of the given lengths outside, 0 beyond; C1, shape of `times`."""
    rise = np.clip(1 - (start - times) / ramp_in, 0, 1)
    fall = np.clip(1 - (times - end) / ramp_out, 0, 1)
    x = np.minimum(rise, fall)
    return x * x * (3 - 2 * x)


def dominance(parts: list[Segment], times, gains) -> dict[str, np.ndarray]:
    """Curves (T,) of ACTIONS: dominance-weighted averages of what the segments ask; `gains` (n,) scale the openings."""
    total = {a: np.zeros(len(times)) for a in ACTIONS}
    weight = {a: np.full(len(times), 1e-6) for a in ACTIONS}
    for s, gain in zip(parts, gains):
        strength, asks = (1.0, dict.fromkeys(ACTIONS, 0.0)) if s.pause else PHONEMES[s.symbol]
        edge = min(0.25 * (s.end - s.start), 0.12) if not s.pause else min(0.3 * (s.end - s.start), 0.10)
        before, after = np.maximum(s.start + edge - times, 0), np.maximum(times - s.end + edge, 0)
        for action in ACTIONS:
            lead = _LEAD_DECAY if action in _ROUNDING and asks.get(action, 0) > 0.2 else _DECAY
            # A phoneme that says nothing about an action draws it to rest, weakly unless the action serves a few sounds only.
            d = (strength if action in asks else 0.6 if action in _SPECIAL else 0.12) * np.exp(-before / lead - after / _DECAY)
            total[action] += d * asks.get(action, 0.0) * (gain if action in _OPENING and s.symbol in VOWELS else 1.0)
            weight[action] += d
    return {a: total[a] / weight[a] for a in ACTIONS}


def seals(parts: list[Segment], times) -> tuple[np.ndarray, np.ndarray]:
    """Curves (T,) in [0, 1] of closed lips: by p b m (lips pressed together), and by pauses (lips at rest).

    A closure is held for at least 46 ms, so that a 25 fps frame always falls inside it, and opens faster into a short neighbour, so
    that a short vowel between two closures still shows.
    """
    pressed, resting = np.zeros(len(times)), np.zeros(len(times))
    length = [s.end - s.start for s in parts]
    for k, s in enumerate(parts):
        first, last = k == 0, k + 1 == len(parts)
        if s.symbol in BILABIAL:
            spare = max(0.0, 0.046 - length[k]) / 2
            into, out = (np.clip(0.6 * x, 0.035, 0.07) for x in (0.2 if first else length[k - 1], 0.2 if last else length[k + 1]))
            pressed = np.maximum(pressed, window_curve(times, s.start - spare, s.end - 0.005 + spare, into, out))
        elif s.pause and (length[k] > 0.2 or first or last):
            start = s.start - 1 if first else s.start + 0.10
            end = s.end + 1 if last else s.end - 0.08
            resting = np.maximum(resting, window_curve(times, start, end, 0.14, 0.12))
    return pressed, resting


def bites(parts: list[Segment], times) -> np.ndarray:
    """Curve (T,) in [0, 0.85] of the lower lip at the upper teeth, by f and v, held for 46 ms at least as closures are."""
    out = np.zeros(len(times))
    for s in parts:
        if s.symbol in LABIODENTAL:
            spare = max(0.0, 0.046 - (s.end - s.start)) / 2
            out = np.maximum(out, 0.85 * window_curve(times, s.start + 0.01 - spare, s.end - 0.015 + spare, 0.06, 0.06))
    return out


def inhaling(breaths, parts: list[Segment], times) -> tuple[np.ndarray, np.ndarray]:
    """Curves (T,) in [0, 1] of the mouth held open by `breaths` [(start s, end s, opening)], and of the time in which lips need not
    rest: from a breath the mouth goes on to the first sound if that follows soon."""
    wide, awake = np.zeros(len(times)), np.zeros(len(times))
    for start, end, opening in breaths:
        wide = np.maximum(wide, opening * window_curve(times, start + 0.08, end - 0.06, 0.14, 0.14))
        soon = min((s.start for s in parts if not s.pause and s.start >= end - 0.01), default=end + 1) < end + 0.16
        awake = np.maximum(awake, window_curve(times, start, end + 0.16 if soon else end, 0.10, 0.10))
    return wide, awake


def articulate(phonemes, audio, times, duration: float, amplitude: float = 1.0, breaths=()) -> dict[str, np.ndarray]:
    """Curves (T,) in [0, 1] of the ARKit mouth actions, by their full names.

    Args: phonemes [(IPA symbol, start s, end s)]; audio (n,) 16 kHz mono, whose loudness widens the vowels; times (T,) s;
        amplitude of the openings, 1 is a normal speaker; breaths [(start s, end s, opening)] drawn through the mouth.
    """
    parts = segments(phonemes, duration)
    middle = np.array([(s.start + s.end) / 2 for s in parts])
    level = loudness(audio, middle, window=0.08)
    gains = amplitude * (0.66 + 0.40 * level) * np.array([1.08 if s.stressed else 1.0 for s in parts])
    c = dominance(parts, times, gains)
    bite = bites(parts, times)
    for action, value in _BITE.items():
        c[action] = c[action] + bite * (value - c[action])
    pressed, resting = seals(parts, times)
    wide, awake = inhaling(breaths, parts, times)
    wide, resting = wide * (1 - pressed), resting * (1 - awake)
    seal = np.maximum(pressed, resting)
    for action in ("funnel", "lowerDown", "upperUp", "rollLower", "tongue"):
        c[action] = c[action] * (1 - seal)
    c["jaw"] = c["jaw"] * (1 - 0.55 * pressed) * (1 - resting)
    for action in ("pucker", "stretch", "smile"):
        c[action] = c[action] * (1 - 0.9 * resting)
    for action, value in _BREATH.items():
        c[action] = c[action] + wide * np.maximum(value - c[action], 0)
    out = {
        "jawOpen": c["jaw"],
        "mouthClose": 1.02 * c["jaw"] * seal,  # 34.7 mm of jaw against 34.0 mm of closing
        "mouthFunnel": c["funnel"],
        "mouthPucker": c["pucker"],
        "mouthRollLower": np.maximum(c["rollLower"], 0.12 * pressed),
        "mouthRollUpper": 0.10 * pressed,
        "mouthShrugLower": np.maximum(c["shrugLower"] * (1 - seal), 0.14 * pressed),
        "tongueOut": c["tongue"],
    }
    sided = {"mouthStretch": c["stretch"], "mouthSmile": c["smile"], "mouthLowerDown": c["lowerDown"], "mouthUpperUp": c["upperUp"]}
    sided["mouthPress"] = 0.22 * pressed
    for name, curve in sided.items():
        out[name + "Left"] = out[name + "Right"] = curve
    return {name: np.clip(curve, 0, 1) for name, curve in out.items()}


def lip_aperture(vertices: torch.Tensor) -> torch.Tensor:
    """Gap (...,) in metres between the inner lips of posed body vertices (..., V, 3), 0 when they touch or press.

    It is the distance of vertex LIP_UPPER above LIP_LOWER, the two vertices that touch on the midline, measured along the skull's
    own vertical, so that nods and lip protrusion do not count.
    """
    back = torch.nn.functional.normalize(vertices[..., SKULL_TOP, :] - vertices[..., SKULL_FRONT, :], dim=-1)  # horizontal at rest
    up = vertices[..., SKULL_TOP, :] - vertices[..., UPPER_TEETH, :]
    up = torch.nn.functional.normalize(up - (up * back).sum(-1, keepdim=True) * back, dim=-1)
    return ((vertices[..., LIP_UPPER, :] - vertices[..., LIP_LOWER, :]) * up).sum(-1).clamp_min(0)

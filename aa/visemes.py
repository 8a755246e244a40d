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

# What a phoneme asks: (strength, {action: value}). Left and right actions share a name without its side. Openings of the lips in
# millimetres on the mean adult: jaw 34.7, funnel 11.8, lowerDown 4.0, upperUp 5.0 (both sides) per unit; pucker closes by 3.1.
_SPREAD = {"stretch": 0.25, "smile": 0.12, "lowerDown": 0.15, "pucker": 0.0, "funnel": 0.0}
_TEETH = {"jaw": 0.05, "stretch": 0.22, "lowerDown": 0.32, "upperUp": 0.10, "pucker": 0.0}
_HUSH = {"jaw": 0.08, "funnel": 0.32, "pucker": 0.35, "lowerDown": 0.25, "upperUp": 0.2, "stretch": 0.0}
_LIP_TEETH = {"jaw": 0.075, "rollLower": 0.85, "shrugLower": 0.1, "upperUp": 0.3, "funnel": 0.0, "pucker": 0.0, "lowerDown": 0.0}
_BITE = {"jaw": 0.05, "rollLower": 1.0, "shrugLower": 0.0, "upperUp": 0.40, "funnel": 0.0, "pucker": 0.0, "lowerDown": 0.0}
_TIP = {"jaw": 0.095, "tongue": 0.06}
PHONEMES = {
    "a": (1.0, {"jaw": 0.33, "lowerDown": 0.22, "upperUp": 0.10, "pucker": 0.0}),
    "æ": (1.0, {"jaw": 0.31, "lowerDown": 0.25, "upperUp": 0.12, "stretch": 0.25, "pucker": 0.0}),
    "ɑ": (1.0, {"jaw": 0.36, "lowerDown": 0.15, "funnel": 0.04, "pucker": 0.0}),
    "ɒ": (1.0, {"jaw": 0.34, "lowerDown": 0.10, "funnel": 0.15, "pucker": 0.12}),
    "ɔ": (1.0, {"jaw": 0.28, "funnel": 0.24, "pucker": 0.30, "stretch": 0.0}),
    "o": (1.1, {"jaw": 0.20, "funnel": 0.28, "pucker": 0.55, "stretch": 0.0}),
    "u": (1.2, {"jaw": 0.12, "funnel": 0.22, "pucker": 0.85, "stretch": 0.0, "smile": 0.0}),
    "ʊ": (1.0, {"jaw": 0.15, "funnel": 0.20, "pucker": 0.50, "stretch": 0.0}),
    "ʌ": (0.9, {"jaw": 0.29, "lowerDown": 0.15, "upperUp": 0.06}),
    "ɐ": (0.7, {"jaw": 0.22, "lowerDown": 0.12, "upperUp": 0.04}),
    "ə": (0.5, {"jaw": 0.17, "lowerDown": 0.08}),
    "ɜ": (0.9, {"jaw": 0.20, "funnel": 0.16, "pucker": 0.18}),
    "ɚ": (0.7, {"jaw": 0.17, "funnel": 0.15, "pucker": 0.20}),
    "ɛ": (0.95, {"jaw": 0.27, "lowerDown": 0.22, "upperUp": 0.08, "stretch": 0.22, "pucker": 0.0}),
    "e": (0.95, {"jaw": 0.21, **_SPREAD, "lowerDown": 0.22}),
    "i": (1.0, {"jaw": 0.10, **_SPREAD, "stretch": 0.38, "smile": 0.22, "lowerDown": 0.22}),
    "ɪ": (0.8, {"jaw": 0.15, **_SPREAD}),
    "ᵻ": (0.5, {"jaw": 0.13, "stretch": 0.12}),
    "ʉ": (1.1, {"jaw": 0.11, "funnel": 0.2, "pucker": 0.75}),
    "y": (1.1, {"jaw": 0.10, "funnel": 0.2, "pucker": 0.80}),
    "ø": (1.0, {"jaw": 0.18, "funnel": 0.22, "pucker": 0.55}),
    "œ": (1.0, {"jaw": 0.25, "funnel": 0.22, "pucker": 0.35}),
    "p": (1.0, {"jaw": 0.08}),
    "b": (1.0, {"jaw": 0.08}),
    "m": (1.0, {"jaw": 0.08}),
    "ɱ": (1.0, {"jaw": 0.08}),
    "f": (1.6, _LIP_TEETH),
    "v": (1.5, _LIP_TEETH),
    "w": (1.4, {"jaw": 0.09, "funnel": 0.14, "pucker": 0.95, "stretch": 0.0, "smile": 0.0}),
    "ʍ": (1.4, {"jaw": 0.09, "funnel": 0.14, "pucker": 0.95}),
    "θ": (1.0, {"jaw": 0.13, "tongue": 0.54, "lowerDown": 0.18, "upperUp": 0.12}),
    "ð": (0.9, {"jaw": 0.12, "tongue": 0.52, "lowerDown": 0.15, "upperUp": 0.10}),
    "t": (0.8, _TIP),
    "d": (0.8, _TIP),
    "n": (0.8, _TIP),
    "ɾ": (0.5, {"jaw": 0.14, "tongue": 0.05}),
    "l": (0.8, {"jaw": 0.15, "tongue": 0.24, "lowerDown": 0.12}),
    "ɫ": (0.8, {"jaw": 0.15, "tongue": 0.20, "lowerDown": 0.12}),
    "s": (1.3, _TEETH),
    "z": (1.3, _TEETH),
    "ʃ": (1.4, _HUSH),
    "ʒ": (1.4, _HUSH),
    "ɹ": (0.9, {"jaw": 0.12, "funnel": 0.24, "pucker": 0.36, "stretch": 0.0}),
    "r": (0.8, {"jaw": 0.14, "funnel": 0.1, "pucker": 0.1}),
    "j": (0.7, {"jaw": 0.11, "stretch": 0.28, "smile": 0.12, "pucker": 0.0}),
    "k": (0.6, {"jaw": 0.125}),
    "ɡ": (0.6, {"jaw": 0.125}),
    "ŋ": (0.6, {"jaw": 0.125}),
    "x": (0.45, {"jaw": 0.15}),
    "h": (0.25, {"jaw": 0.20}),
    "ʔ": (0.25, {"jaw": 0.14}),
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
OPENING = {"jaw": 34.7, "funnel": 11.8, "lowerDown": 4.0, "upperUp": 5.0}  # mm per unit, see PHONEMES
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
            total[action] += d * asks.get(action, 0.0) * (gain if action in OPENING and s.symbol in VOWELS else 1.0)
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


def articulate(phonemes, audio, times, duration: float, amplitude: float = 1.0) -> dict[str, np.ndarray]:
    """Curves (T,) in [0, 1] of the ARKit mouth actions, by their full names.

    Args: phonemes [(IPA symbol, start s, end s)]; audio (n,) 16 kHz mono, whose loudness widens the vowels; times (T,) s;
        amplitude of the openings, 1 is a normal speaker.
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
    seal = np.maximum(pressed, resting)
    for action in ("funnel", "lowerDown", "upperUp", "rollLower", "tongue"):
        c[action] = c[action] * (1 - seal)
    c["jaw"] = c["jaw"] * (1 - 0.55 * pressed) * (1 - resting)
    for action in ("pucker", "stretch", "smile"):
        c[action] = c[action] * (1 - 0.9 * resting)
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

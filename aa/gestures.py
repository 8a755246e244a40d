"""Postures and arm gestures of the studio's performer.

A posture is given by the directions of upper arm and forearm, which one can see; `arm_rotations` turns it into joint rotations.
Gestures have the phases of Kendon ("Gesture", 2004): preparation, stroke on the accented vowel, hold, retraction.
"""

from dataclasses import dataclass

import numpy as np
import torch

from aa.body import Body, matrix_to_rotvec, rotvec_to_matrix
from aa.handshapes import FINGER_CURL, JOINT_SHARE
from aa.visemes import VOWELS, Segment, loudness

# --- postures ---------------------------------------------------------------------------------------------------------------------
# A posture of the left arm: direction of the upper arm and of the forearm (x outwards, y backwards, z up) and the roll of the palm
# about the forearm in radians (positive turns the palm down). The right arm mirrors it.
EASE_ARM = ((0.25, 0.05, -1.0), (0.05, -0.56, -0.84), 0.0)
GESTURES = (
    ((0.36, -0.06, -1.0), (0.16, -1.0, 0.06), -0.60),  # palms half up, in front of the waist
    ((0.34, -0.10, -1.0), (-0.06, -1.0, 0.20), 0.10),  # palms facing each other
    ((0.42, -0.16, -1.0), (0.12, -1.0, 0.36), 0.50),  # a little higher, palms down
)


def arm_rotations(body: Body, side: str, upper, fore, roll: float) -> dict[str, np.ndarray]:
    """Rotation vectors that bring an arm's bones into given directions.

    The elbow is a hinge about the rest normal of the arm's plane; the shoulder takes the rotation between rest plane and wanted
    plane, half of its twist being handed to the second upper-arm joint; the forearm's second joint takes the roll.
    Args: side "L" or "R"; upper, fore: directions (3,) for the left arm (mirrored for the right); roll about the forearm, rad.
    Returns: joint name -> rotation vector (3,).
    """
    sign = 1.0 if side == "L" else -1.0
    p = {n: body.joint_template[body.joint(f"{n}.{side}")].double().numpy() for n in ("upperarm01", "lowerarm01", "wrist")}
    u0, f0 = _unit(p["lowerarm01"] - p["upperarm01"]), _unit(p["wrist"] - p["lowerarm01"])
    u1, f1 = (_unit(np.array([sign * d[0], d[1], d[2]])) for d in (upper, fore))
    n0, n1 = _unit(np.cross(u0, f0)), _unit(np.cross(u1, f1))
    total = np.stack([u1, n1, np.cross(u1, n1)], 1) @ np.stack([u0, n0, np.cross(u0, n0)], 1).T
    axis = np.cross(u0, u1)
    swing = _matrix(_unit(axis) * np.arctan2(np.linalg.norm(axis), u0 @ u1))
    twist = _rotvec(swing.T @ total)
    bend = np.arccos(np.clip(u1 @ f1, -1, 1)) - np.arccos(np.clip(u0 @ f0, -1, 1))
    return {
        f"upperarm01.{side}": _rotvec(swing @ _matrix(twist / 2)),
        f"upperarm02.{side}": twist / 2,
        f"lowerarm01.{side}": n0 * bend,
        f"lowerarm02.{side}": f0 * sign * roll,
    }


def finger_rotations(body: Body, side: str, curl: float) -> dict[str, np.ndarray]:
    """Rotation vectors that curl the fingers by `curl` times their resting curl: hinges across the palm."""
    at = lambda name: body.joint_template[body.joint(f"{name}.{side}")].double().numpy()  # noqa: E731
    across = _unit(at("finger5-1") - at("finger2-1")) * (1.0 if side == "L" else -1.0)
    out = {}
    for finger, amount in enumerate(FINGER_CURL, 2):
        for joint, share in enumerate(JOINT_SHARE, 1):
            out[f"finger{finger}-{joint}.{side}"] = across * amount * share * curl
    return out


def _unit(v):
    return v / np.linalg.norm(v)


def _matrix(rotvec):
    return rotvec_to_matrix(torch.as_tensor(rotvec, dtype=torch.float64)).numpy()


def _rotvec(matrix):
    return matrix_to_rotvec(torch.as_tensor(matrix, dtype=torch.float64)).numpy()


def posture(body: Body, arm, curl: float = 1.0) -> np.ndarray:
    """Rotation vectors (J, 3) of a standing body with the given arm posture (upper, fore, roll)."""
    out = np.zeros((len(body.parents), 3))
    for side in ("L", "R"):
        for name, r in {**arm_rotations(body, side, *arm), **finger_rotations(body, side, curl)}.items():
            out[body.joint(name)] = r
    return out


_EASE_LEFT = {  # posture(body, EASE_ARM) on the mean adult
    "upperarm01": (0.147, 0.490, -0.093),
    "upperarm02": (0.102, -0.006, -0.113),
    "lowerarm01": (0.049, 0.003, 0.044),
    **{
        f"finger{f}-{j}": (0.385 * a * share, 0.819 * a * share, -0.427 * a * share)
        for f, a in enumerate(FINGER_CURL, 2)
        for j, share in enumerate(JOINT_SHARE, 1)
    },
}
AT_EASE = {f"{name}.L": r for name, r in _EASE_LEFT.items()} | {f"{n}.R": (x, -y, -z) for n, (x, y, z) in _EASE_LEFT.items()}


def at_ease(body: Body) -> torch.Tensor:
    """Rotation vectors (J, 3) of the relaxed standing posture AT_EASE."""
    out = torch.zeros(len(body.parents), 3, device=body.device)
    for name, rotvec in AT_EASE.items():
        out[body.joint(name)] = torch.tensor(rotvec, device=body.device)
    return out


# --- timing -----------------------------------------------------------------------------------------------------------------------


def keyed(times, keys, values) -> np.ndarray:
    """Minimum-jerk curve (T,) through `values` at `keys` s, still at every key (Flash & Hogan, 1985), constant outside."""
    out = np.full(len(times), float(values[0]))
    for (t0, a), (t1, b) in zip(zip(keys, values), zip(keys[1:], values[1:])):
        x = np.clip((times - t0) / max(t1 - t0, 1e-3), 0, 1)
        out += (b - a) * x**3 * (10 - 15 * x + 6 * x * x)
    return out


@dataclass(frozen=True)
class Beat:
    """An accent of speech."""

    time: float  # s, loudest moment of the vowel
    strength: float  # in [0, 1], loudness, less when unstressed


def vowel_accents(parts: list[Segment], audio) -> list[Beat]:
    """Every vowel as an accent, in order. Strength spans the upper 15 dB of the loudness scale, less when unstressed."""
    vowels = [s for s in parts if s.symbol in VOWELS]
    t = [np.arange(s.start, s.end, 0.01) for s in vowels]
    level = loudness(audio, np.concatenate(t)) if t else np.zeros(0)
    out = []
    for s, own, at in zip(vowels, np.split(level, np.cumsum([len(x) for x in t])[:-1]), t):
        strength = np.clip(1 + (own.mean() - 1) * 30 / 15, 0, 1) * (1.0 if s.stressed else 0.55)
        out.append(Beat(float(at[own.argmax()]), float(strength)))
    return out


def find_beats(parts: list[Segment], audio, spacing: float = 0.5, least: float = 0.2) -> list[Beat]:
    """Accents in order: the strongest vowels at least `spacing` s apart."""
    kept: list[Beat] = []
    for b in sorted(vowel_accents(parts, audio), key=lambda b: -b.strength):
        if b.strength >= least and all(abs(b.time - k.time) >= spacing for k in kept):
            kept.append(b)
    return sorted(kept, key=lambda b: b.time)


def phrases(parts: list[Segment], pause: float = 0.35) -> list[tuple[float, float]]:
    """Start and end (s) of the runs of speech between pauses of at least `pause` s."""
    out: list[tuple[float, float]] = []
    for s in parts:
        if not s.pause and out and s.start - out[-1][1] < pause:
            out[-1] = (out[-1][0], s.end)
        elif not s.pause:
            out.append((s.start, s.end))
    return out


def stroke_curve(times, beats: list[Beat], lag: float = 0.0) -> np.ndarray:
    """Strokes (T,): a small lift ahead of each beat, the stroke down onto it, a short hold, the rebound."""
    out = np.zeros(len(times))
    for b in beats:
        t = b.time + lag
        out += b.strength**1.5 * keyed(times, [t - 0.48, t - 0.22, t, t + 0.06, t + 0.46], [0, -0.40, 1, 1, 0])
    return out

"""The performer of the offline studio: speech to face, head, arms and fingers by rules.

Lips follow the phonemes (`aa.visemes`). Everything else follows prosody: beats of arms, hands, head and brows land on the loud
stressed vowels and grow with their loudness (`aa.gestures`), arms are raised while a phrase lasts and sink in a pause. A seed adds
what speech does not tell: blinks, glances, sway, the shape of the gestures.
"""

from dataclasses import dataclass

import numpy as np
import torch

from aa.body import Body
from aa.errors import InputError
from aa.gestures import (
    AT_EASE,
    GESTURES,
    STROKE,
    at_ease,
    find_beats,
    finger_rotations,
    keyed,
    phrases,
    posture,
    raise_curve,
    stroke_curve,
)
from aa.visemes import articulate, lip_aperture, loudness, segments

__all__ = ["AT_EASE", "Performance", "Style", "at_ease", "lip_aperture", "perform"]

FPS = 25
NECK = {"neck01": 0.15, "neck02": 0.15, "neck03": 0.20, "head": 0.50}  # how the bones share a turn of the head
SPINE = {"spine05": 0.25, "spine04": 0.25, "spine03": 0.25, "spine02": 0.15, "spine01": 0.10}
GAZE = {"LookUp": 0.18, "LookDown": 0.30, "LookIn": 0.37, "LookOut": 0.37}  # rad of eye turn at action 1, measured on the mesh


@dataclass(frozen=True)
class Style:
    """How a person performs; 1 is an average speaker."""

    amplitude: float = 1.0  # size of arm gestures, 0 keeps the arms at rest, at most 1.5
    tempo: float = 1.0  # speed of sway and breathing
    handedness: float = 0.0  # -1 gestures with the right hand alone, 0 with both, 1 with the left alone
    head: float = 1.0  # size of head movements
    expressiveness: float = 1.0  # brows, smile, opening of the mouth

    @staticmethod
    def sample(generator: torch.Generator) -> "Style":
        """A random person."""
        u = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        return Style(0.7 + 0.6 * u[0], 0.85 + 0.3 * u[1], 1.4 * u[2] - 0.7, 0.6 + 0.8 * u[3], 0.85 + 0.3 * u[4])


@dataclass(frozen=True)
class Performance:
    """T frames of body parameters at 25 fps, float32."""

    actions: torch.Tensor  # (T, 52) ARKit actions in [0, 1], in the order of body.action_names
    rotvecs: torch.Tensor  # (T, J, 3) joint rotations as in Body.pose, the resting posture included
    translation: torch.Tensor  # (T, 3) m, zero: the feet stay where they are
    times: torch.Tensor  # (T,) s, centres of the frames
    fps: int = FPS


def perform(body: Body, speech, seed: int = 0, style: Style = Style()) -> Performance:
    """Act out a speech.

    Args: body; speech with fields audio (n,) float32 at 16 kHz, phonemes [(IPA symbol, start s, end s)] and duration s, as
        aa.speech.Speech; seed of what the speech does not determine; style.
    Returns: Performance of T = round(25 * duration) frames. The same arguments give the same performance.
    Raises: InputError when the speech is shorter than one frame.
    """
    duration = float(speech.duration)
    T = round(FPS * duration)
    if T < 1:
        raise InputError(f"the speech lasts {duration:.3f} s; at least one frame of 0.04 s is needed; give a longer one")
    times = (np.arange(T) + 0.5) / FPS
    rng = np.random.default_rng(seed)
    parts = segments(speech.phonemes, duration)
    beats, spoken = find_beats(parts, speech.audio), phrases(parts)
    energy = speech_energy(speech.audio, times)
    head = head_motion(times, beats, spoken, energy, style, rng)
    curves = articulate(speech.phonemes, speech.audio, times, duration, 0.94 + 0.06 * style.expressiveness)
    add_upper_face(curves, times, beats, spoken, head, duration, style, rng)
    pulse = speech_energy(speech.audio, times, 0.16) - energy  # the syllables
    rotvecs = arm_motion(body, times, beats, spoken, energy, pulse, duration, style, rng)
    add_trunk(body, rotvecs, times, head, energy, style, rng)
    actions = np.zeros((T, len(body.action_names)))
    for name, curve in curves.items():
        actions[:, body.action(name)] = curve
    make = lambda a: torch.as_tensor(a, dtype=torch.float32, device=body.device)  # noqa: E731
    return Performance(make(actions.clip(0, 1)), make(rotvecs), torch.zeros(T, 3, device=body.device), make(times))


def speech_energy(audio, times, reach: float = 0.3) -> np.ndarray:
    """Loudness (T,) in [0, 1] averaged over `reach` s to both sides: how much is being said."""
    offsets = np.linspace(-reach, reach, 13)
    taps = np.cos(offsets / reach * np.pi / 2) ** 2
    return sum(w * loudness(audio, times + o) for w, o in zip(taps / taps.sum(), offsets))


def wander(times, rng, slow: float, fast: float) -> np.ndarray:
    """Smooth noise (T,) of unit variance: four sinusoids between two frequencies in Hz."""
    f, phase = np.geomspace(slow, fast, 4) * rng.uniform(0.85, 1.15, 4), rng.uniform(0, 2 * np.pi, 4)
    return np.sin(2 * np.pi * f * times[:, None] + phase).sum(1) / np.sqrt(2)


def head_motion(times, beats, spoken, energy, style: Style, rng) -> np.ndarray:
    """Turn of the head against the trunk (T, 3) rad: x nods down, y tilts, z turns to the person's left."""
    nod = 0.065 * sum(
        (
            b.strength**2 * keyed(times, [b.time - 0.40, b.time - 0.16, b.time + 0.06, b.time + 0.50], [0, -0.3, 1, 0])
            for b in beats
        ),
        np.zeros(len(times)),
    )
    keys, turns = [0.0], [0.0]
    for start, _ in spoken:  # each phrase is told to a slightly different side
        keys += [max(start - 0.1, keys[-1] + 0.01), max(start + 0.7, keys[-1] + 0.8)]
        turns += [turns[-1], 0.06 * rng.uniform(-1, 1)]
    alive = 0.45 + 0.55 * energy
    x = nod - 0.030 * energy + 0.016 * alive * wander(times, rng, 0.12 * style.tempo, 0.5 * style.tempo)
    y = 0.022 * alive * wander(times, rng, 0.10 * style.tempo, 0.4 * style.tempo)
    z = keyed(times, keys, turns) + 0.022 * alive * wander(times, rng, 0.10 * style.tempo, 0.45 * style.tempo)
    return style.head * np.stack([x, y, z], 1)


def add_trunk(body: Body, rotvecs, times, head, energy, style: Style, rng) -> None:
    """Add head, sway and breathing to `rotvecs` (T, J, 3) in place; hips and legs stay still."""
    for name, share in NECK.items():
        rotvecs[:, body.joint(name)] += share * head
    sway = [a * wander(times, rng, 0.07 * style.tempo, 0.25 * style.tempo) for a in (0.007, 0.009, 0.011)]
    lean = np.stack(sway, 1) + np.stack([0.025 * energy, 0 * energy, 0.25 * head[:, 2]], 1)
    for name, share in SPINE.items():
        rotvecs[:, body.joint(name)] += share * lean
    breath = np.sin(2 * np.pi * (0.25 * style.tempo * times + rng.uniform()))
    rotvecs[:, body.joint("spine02"), 0] -= 0.008 * breath
    rotvecs[:, body.joint("neck01"), 0] += 0.008 * breath
    for side, sign in (("L", 1), ("R", -1)):
        rotvecs[:, body.joint(f"clavicle.{side}"), 1] -= 0.012 * sign * breath


def arm_motion(body: Body, times, beats, spoken, energy, pulse, duration, style: Style, rng) -> np.ndarray:
    """Arms and fingers as (T, J, 3) rotation vectors around AT_EASE; other joints zero. Syllables (`pulse`) add to the strokes."""
    ease = at_ease(body).double().cpu().numpy()
    homes = [posture(body, g) for g in GESTURES]
    strokes = [posture(body, tuple(np.add(a, d) for a, d in zip(g, STROKE))) - h for g, h in zip(GESTURES, homes)]
    raised = raise_curve(times, spoken, beats, duration, rng.uniform(0.75, 1.0, len(spoken)))
    # Which gesture: three weights that sum to 1 and drift slowly.
    drift = np.stack([wander(times, rng, 0.08, 0.2) for _ in GESTURES], 1)
    mix = np.exp(1.2 * drift) / np.exp(1.2 * drift).sum(1, keepdims=True)
    out = np.tile(ease, (len(times), 1, 1))
    for side, sign in (("L", 1.0), ("R", -1.0)):
        joints = [k for k, n in enumerate(body.joint_names) if n.endswith(f".{side}") and ("arm" in n)]
        share = np.clip(style.amplitude, 0, 1.5) * np.clip(1 + sign * style.handedness, 0, 1)
        lift = np.tanh(1.2 * raised * share) / np.tanh(1.2)  # large amplitudes saturate: the postures are known to be safe
        stroke = lift * (stroke_curve(times, beats, 0.03 * rng.uniform(-1, 1)) * rng.uniform(0.9, 1.1) + 0.7 * pulse)
        for w, home, delta in zip(mix.T, homes, strokes):
            out[:, joints] += (w * lift)[:, None, None] * (home - ease)[joints] + (w * stroke)[:, None, None] * delta[joints]
        out += hand_motion(body, side, times, lift, stroke_curve(times, beats, 0.06) * lift, energy, style, rng)
    return out


def hand_motion(body: Body, side: str, times, lift, stroke, energy, style: Style, rng) -> np.ndarray:
    """What wrist and fingers add (T, J, 3): living fingers that open as the hand is raised, and a flick after each stroke."""
    out = np.zeros((len(times), len(body.parents), 3))
    for name, r in finger_rotations(body, side, 1.0).items():
        finger = int(name[6])
        if name[7:9] == "-1":  # one curve per finger, shared by its joints
            alive = (0.10 + 0.20 * lift) * wander(times, rng, 0.15 + 0.02 * finger, 0.6)
            curl = alive - 0.9 * lift * (0.5 + 0.5 * energy) + 0.5 * stroke
        out[:, body.joint(name)] = curl[:, None] * r
    hinge = r / np.linalg.norm(r)
    out[:, body.joint(f"wrist.{side}")] = (0.16 * stroke - 0.10 * lift)[:, None] * hinge
    return out


def add_upper_face(curves, times, beats, spoken, head, duration, style: Style, rng) -> None:
    """Add blinks, gaze, brows and a faint smile to the curves (name -> (T,)) in place."""
    T = len(times)
    blink = blinks(times, spoken, duration, rng)
    gaze_x, gaze_z = glances(times, duration, rng)
    gaze_x, gaze_z = gaze_x - 0.8 * head[:, 0], gaze_z - 0.8 * head[:, 2]  # the eyes stay on the listener while the head moves
    for side, out in (("Left", 1), ("Right", -1)):
        curves[f"eyeBlink{side}"] = blink
        curves[f"eyeLookOut{side}"] = np.maximum(out * gaze_z, 0) / GAZE["LookOut"]
        curves[f"eyeLookIn{side}"] = np.maximum(-out * gaze_z, 0) / GAZE["LookIn"]
        curves[f"eyeLookDown{side}"] = np.maximum(gaze_x, 0) / GAZE["LookDown"]
        curves[f"eyeLookUp{side}"] = np.maximum(-gaze_x, 0) / GAZE["LookUp"]
    brow = np.zeros(T)
    for b in beats:
        t = b.time
        brow += max(b.strength - 0.55, 0) * keyed(times, [t - 0.28, t - 0.02, t + 0.12, t + 0.55], [0, 1, 1, 0])
    brow = style.expressiveness * (np.tanh(brow) + 0.03 + 0.03 * wander(times, rng, 0.1, 0.3))
    smile = style.expressiveness * (0.07 + 0.02 * wander(times, rng, 0.05, 0.15)) + rng.uniform(0, 0.04)
    curves["browInnerUp"] = 0.55 * brow
    for side in ("Left", "Right"):
        curves[f"browOuterUp{side}"] = 0.75 * brow
        curves[f"eyeWide{side}"] = 0.25 * np.maximum(brow, 0) * (1 - blink)
        curves[f"mouthSmile{side}"] = curves[f"mouthSmile{side}"] + smile
        curves[f"cheekSquint{side}"] = 0.6 * smile
        curves[f"eyeSquint{side}"] = 0.10 * blink


def blinks(times, spoken, duration: float, rng) -> np.ndarray:
    """Eyelid curve (T,): 15-20 blinks a minute, likelier where a phrase ends; lids fall in 90 ms, stay 50 ms, rise in 160 ms."""
    wanted = [end + rng.uniform(-0.05, 0.15) for _, end in spoken if rng.uniform() < 0.4]
    t = rng.uniform(0.4, 3.5)
    while t < duration:
        wanted.append(t)
        t += 1.2 + rng.gamma(3.0, 1.15)
    out, last = np.zeros(len(times)), -9.0
    for t in sorted(wanted):
        if t - last > 1.0 and t + 0.1 < duration:
            out = np.maximum(out, keyed(times, [t - 0.09, t, t + 0.05, t + 0.21], [0, 1, 1, 0]))
            last = t
    return out


def glances(times, duration: float, rng) -> tuple[np.ndarray, np.ndarray]:
    """Gaze (T,), (T,) rad, down and to the person's left: fixations of 0.4-2 s, joined by saccades of 50 ms."""
    keys, down, left = [0.0], [0.0], [0.0]
    t = rng.uniform(0.2, 1.2)
    while t < duration:
        size = 0.05 if rng.uniform() < 0.12 else 0.014  # mostly micro-saccades on the listener's face
        keys += [t, t + 0.05]
        down += [down[-1], size * rng.normal() * 0.6]
        left += [left[-1], size * rng.normal()]
        t += 0.35 + rng.exponential(0.9)
    return keyed(times, keys, down), keyed(times, keys, left)

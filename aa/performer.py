"""The performer of the offline studio: speech to face, head, arms and fingers by rules.

Lips follow the phonemes (`aa.visemes`). Everything else follows prosody and words: beats of hands, head and brows land on the loud
stressed vowels and grow with their loudness (`aa.gestures`), words choose what the hands do (`aa.cospeech`, `aa.arms`), the trunk
shifts between phrases. A seed adds what speech does not tell: blinks, glances, sway.
"""

from dataclasses import dataclass

import numpy as np
import torch

from aa.arms import Postures, arm_track, glide
from aa.body import Body
from aa.cospeech import Gesture, plan_gestures
from aa.errors import InputError
from aa.gestures import AT_EASE, at_ease, find_beats, finger_rotations, keyed, phrases, stroke_curve
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
    tempo: float = 1.0  # speed of preparations, strokes, sway and breathing
    handedness: float = 0.0  # -1 gestures with the right hand alone, 0 with both, 1 with the left alone
    head: float = 1.0  # size of head movements
    expressiveness: float = 1.0  # brows, smile, opening of the mouth
    rate: float = 1.0  # how many of the accents get a gesture: 0.5 few, 1.5 all
    space: float = 0.0  # where the hands are: -0.5 close to the body, 1 wide and high

    @staticmethod
    def sample(generator: torch.Generator) -> "Style":
        """A random person; nine in ten prefer the right hand."""
        u = torch.rand(7, generator=generator, dtype=torch.float64).tolist()
        side = -0.1 - 0.65 * u[2] / 0.9 if u[2] < 0.9 else 0.1 + 6.5 * (u[2] - 0.9)
        return Style(
            0.6 + 0.8 * u[0], 0.8 + 0.45 * u[1], side, 0.6 + 0.8 * u[3], 0.85 + 0.3 * u[4], 0.55 + 0.75 * u[5], 1.3 * u[6] - 0.4
        )  # fmt: skip


@dataclass(frozen=True)
class Performance:
    """T frames of body parameters at 25 fps, float32."""

    actions: torch.Tensor  # (T, 52) ARKit actions in [0, 1], in the order of body.action_names
    rotvecs: torch.Tensor  # (T, J, 3) joint rotations as in Body.pose, the resting posture included
    translation: torch.Tensor  # (T, 3) m, zero: the feet stay where they are
    times: torch.Tensor  # (T,) s, centres of the frames
    fps: int = FPS
    gestures: tuple[Gesture, ...] = ()  # what the arms do, in order, with the times of its phases


def perform(body: Body, speech, seed: int = 0, style: Style = Style()) -> Performance:
    """Act out a speech.

    Args: body; speech with fields audio (n,) float32 at 16 kHz, phonemes [(IPA symbol, start s, end s)] and duration s, as
        aa.speech.Speech, and, where known, text and words [(word, start s, end s)], without which all gestures are beats, and
        breaths [(start s, end s, opening)] through the mouth; seed of what the speech does not determine; style.
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
    planned = plan_gestures(speech, parts, style.tempo, style.handedness, style.rate, np.random.default_rng([seed, 1]))
    planned = planned if style.amplitude > 0 else []
    head = head_motion(times, beats, spoken, energy, style, rng) + style.head * shakes(times, planned)
    breaths = getattr(speech, "breaths", ())
    curves = articulate(speech.phonemes, speech.audio, times, duration, 0.94 + 0.06 * style.expressiveness, breaths)
    add_upper_face(curves, times, beats, planned, spoken, head, duration, style, rng)
    pulse = speech_energy(speech.audio, times, 0.16) - energy  # the syllables
    rotvecs = arm_motion(body, times, planned, beats, energy, pulse, style, rng)
    add_trunk(body, rotvecs, times, head, spoken, energy, style, rng, breaths)
    actions = np.zeros((T, len(body.action_names)))
    for name, curve in curves.items():
        actions[:, body.action(name)] = curve
    make = lambda a: torch.as_tensor(a, dtype=torch.float32, device=body.device)  # noqa: E731
    return Performance(
        make(actions.clip(0, 1)), make(rotvecs), torch.zeros(T, 3, device=body.device), make(times), FPS, tuple(planned)
    )


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


def shakes(times, gestures) -> np.ndarray:
    """Turn of the head (T, 3) rad with what the hands say: a small shake with negations, a tilt with questions."""
    out = np.zeros((len(times), 3))
    for g in gestures:
        near = keyed(times, [g.stroke - 0.15, g.apex - 0.05, g.apex + 0.25, g.apex + 0.7], [0, 1, 1, 0])
        if g.pose == "apart":
            out[:, 2] += 0.055 * near * np.sin(2 * np.pi * 1.7 * (times - g.stroke))
        elif g.pose == "offer":
            out[:, 1] += 0.05 * near * (-1 if g.hand == "R" else 1)
            out[:, 0] -= 0.03 * near
    return out


def shifts(times, spoken, rng) -> np.ndarray:
    """Lean of the trunk (T, 3) rad: the weight goes to another side where a phrase begins, as in a slow shift from leg to leg."""
    keys, rows = [0.0], [np.zeros(3)]
    for start, _ in spoken:
        keys += [max(start - 0.35, keys[-1] + 0.01), max(start + 0.65, keys[-1] + 0.9)]
        rows += [rows[-1], np.array([0.015, 0.045, 0.045]) * rng.uniform(-1, 1, 3)]
    return glide(times, keys, np.stack(rows))


def add_trunk(body: Body, rotvecs, times, head, spoken, energy, style: Style, rng, breaths=()) -> None:
    """Add head, sway and breathing to `rotvecs` (T, J, 3) in place; hips and legs stay still."""
    for name, share in NECK.items():
        rotvecs[:, body.joint(name)] += share * head
    sway = [a * wander(times, rng, 0.07 * style.tempo, 0.25 * style.tempo) for a in (0.007, 0.009, 0.011)]
    lean = np.stack(sway, 1) + np.stack([0.025 * energy, 0 * energy, 0.25 * head[:, 2]], 1)
    shift = shifts(times, spoken, rng)
    for name, share in SPINE.items():
        rotvecs[:, body.joint(name)] += share * (lean + shift)
    rotvecs[:, body.joint("spine05"), 1] += 0.6 * shift[:, 1]  # the hips go one way, the chest comes back over them
    rotvecs[:, body.joint("spine02"), 1] -= 0.9 * shift[:, 1]
    rotvecs[:, body.joint("neck01"), 1] -= 0.5 * shift[:, 1]
    breath = np.sin(2 * np.pi * (0.25 * style.tempo * times + rng.uniform()))
    for start, end, opening in breaths:  # the chest fills, and empties while speaking
        breath = breath + 1.5 * opening * keyed(times, [start - 0.05, end, end + 0.3, end + 2.5], [0, 1, 1, 0])
    rotvecs[:, body.joint("spine02"), 0] -= 0.008 * breath
    rotvecs[:, body.joint("neck01"), 0] += 0.008 * breath
    for side, sign in (("L", 1), ("R", -1)):
        rotvecs[:, body.joint(f"clavicle.{side}"), 1] -= 0.012 * sign * breath


def arm_motion(body: Body, times, gestures, beats, energy, pulse, style: Style, rng) -> np.ndarray:
    """Arms and fingers as (T, J, 3) rotation vectors around AT_EASE; other joints zero. Beats that got no gesture of their own, and
    syllables (`pulse`), still show in a raised hand."""
    ease = at_ease(body).double().cpu().numpy()
    out = np.tile(ease, (len(times), 1, 1))
    for side, sign in (("L", 1.0), ("R", -1.0)):
        own = Postures(body, side, float(np.clip(style.space, -0.5, 1)))
        share = np.clip(style.amplitude, 0, 1.5) * np.clip(1 + sign * style.handedness, 0, 1)
        track, lift = arm_track(own, ease[own.joints], times, gestures, side, share)
        small = [b for b in beats if all(abs(b.time - g.apex) > 0.2 for g in gestures)]
        accents = small + [b for b in beats if b not in small]
        late = stroke_curve(times, accents, 0.06 + 0.02 * rng.uniform(-1, 1)) * lift  # the wrist follows
        follow = lift * min(share, 1) * (0.6 * stroke_curve(times, small) + 0.7 * pulse)
        drift = np.stack([wander(times, rng, 0.15, 0.5) for _ in range(3)], 1) * (0.012 * lift)[:, None]
        out[:, own.joints] = track + follow[:, None, None] * own.strokes["middle"]
        out[:, body.joint(f"upperarm01.{side}")] += drift
        out[:, body.joint(f"lowerarm01.{side}")] += 1.5 * drift[:, ::-1]
        out += hand_motion(body, side, times, lift, late, energy, rng)
    return out


def hand_motion(body: Body, side: str, times, lift, stroke, energy, rng) -> np.ndarray:
    """What wrist and fingers add (T, J, 3): living fingers that open a little with the voice, and a flick after each stroke."""
    out = np.zeros((len(times), len(body.parents), 3))
    for name, r in finger_rotations(body, side, 1.0).items():
        finger = int(name[6])
        if name[7:9] == "-1":  # one curve per finger, shared by its joints
            alive = (0.10 + 0.16 * lift) * wander(times, rng, 0.15 + 0.02 * finger, 0.6)
            curl = alive - 0.25 * lift * energy + 0.35 * stroke
        out[:, body.joint(name)] = curl[:, None] * r
    hinge = r / np.linalg.norm(r)
    out[:, body.joint(f"wrist.{side}")] = (0.14 * stroke)[:, None] * hinge
    return out


def add_upper_face(curves, times, beats, gestures, spoken, head, duration, style: Style, rng) -> None:
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
    for g in gestures:
        if g.pose == "offer":  # a question
            brow += 0.5 * keyed(times, [g.stroke - 0.1, g.apex, g.apex + 0.4, g.apex + 0.9], [0, 1, 1, 0])
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
    ends = [end + rng.uniform(-0.05, 0.15) for _, end in spoken if rng.uniform() < 0.35]
    out, t, last = np.zeros(len(times)), rng.uniform(0.3, 4.2), -9.0
    while True:
        t = min([t, *(e for e in ends if e > last + 0.8)])  # a phrase end takes the place of the blink that was due
        if t + 0.1 >= duration:
            return out
        out = np.maximum(out, keyed(times, [t - 0.09, t, t + 0.05, t + 0.21], [0, 1, 1, 0]))
        t, last = t + 1.0 + rng.gamma(3.0, 0.87), t


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

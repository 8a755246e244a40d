"""Arms and hands of the performer: postures of each kind of gesture, and the track that leads through their phases.

A gesture leads an arm from where it is to the posture of its preparation, along the stroke to its target, holds it and lets it go;
every piece is a minimum-jerk movement between rotation vectors. Postures are scaled towards rest by the size of a person's
gestures, so that every one lies between postures that are known to be free of the body.
"""

import numpy as np

from aa.body import Body
from aa.cospeech import BRIDGE, Gesture
from aa.gestures import arm_rotations
from aa.handshapes import SHAPES, hand_axes, shape_rotations

# Posture of the left arm as in aa.gestures: upper arm, forearm, roll; then wrist: flexion (towards the palm) and deviation (towards
# the little finger), rad. `ready` stands before the stroke, `target` at its apex.
POSES = {
    "low": (((0.30, -0.14, -1.0), (-0.12, -1.0, 0.14), -0.62), (-0.05, 0.0)),  # beats: palms half up
    "middle": (((0.27, -0.14, -1.0), (-0.26, -1.0, 0.20), 0.05), (0.0, 0.0)),  # palms facing each other
    "high": (((0.34, -0.20, -1.0), (-0.12, -1.0, 0.36), 0.50), (0.0, 0.05)),  # a little higher, palms down
    "self": (((0.40, -0.42, -1.0), (-0.72, -0.56, 0.58), 0.05), (0.25, -0.05)),  # flat hand before the breastbone
    "self ready": (((0.34, -0.28, -1.0), (-0.36, -0.95, 0.30), 0.0), (0.0, 0.0)),
    "you": (((0.26, -0.40, -1.0), (-0.16, -1.0, 0.16), -1.20), (-0.15, 0.10)),  # open hand, palm up, to the listener
    "you ready": (((0.28, -0.10, -1.0), (-0.26, -0.90, 0.34), -0.35), (0.10, 0.0)),
    "here": (((0.26, -0.22, -1.0), (-0.26, -1.0, -0.06), 0.85), (0.10, 0.0)),  # index at the ground before the speaker
    "here ready": (((0.28, -0.16, -1.0), (-0.20, -0.95, 0.32), 0.60), (-0.05, 0.0)),
    "there": (((0.42, -0.30, -1.0), (0.16, -1.0, 0.28), 0.65), (0.0, 0.0)),  # index to the side
    "there ready": (((0.30, -0.18, -1.0), (-0.24, -0.95, 0.36), 0.35), (0.0, 0.0)),
    "offer": (((0.34, -0.22, -1.0), (0.06, -1.0, 0.14), -1.25), (-0.15, 0.10)),  # both palms up
    "offer ready": (((0.28, -0.14, -1.0), (-0.24, -1.0, 0.22), -0.35), (0.05, 0.0)),
    "apart": (((0.38, -0.20, -1.0), (0.16, -1.0, 0.04), 0.70), (-0.10, 0.0)),  # hands sweep apart, palms down
    "apart ready": (((0.28, -0.20, -1.0), (-0.26, -1.0, 0.16), 0.65), (0.0, 0.0)),
    "count": (((0.28, -0.30, -1.0), (-0.14, -0.68, 0.74), 0.60), (-0.10, 0.0)),  # fingers shown
    "count ready": (((0.26, -0.26, -1.0), (-0.26, -0.85, 0.48), 0.45), (0.15, 0.0)),
    "list": (((0.26, -0.26, -1.0), (-0.48, -1.0, 0.12), -0.30), (0.0, 0.05)),  # edge of the hand; items step outwards
    "list out": (((0.36, -0.22, -1.0), (0.10, -1.0, 0.12), -0.40), (0.0, 0.05)),
}
STROKE = ((0.02, 0.06, 0.0), (0.05, -0.03, -0.30), 0.12)  # what a beat adds to the directions and the roll at its lowest point
WIDE = ((0.05, -0.02, 0.0), (0.14, 0.0, 0.12), 0.0)  # what people with a large gesture space add
ARM = ("upperarm01", "upperarm02", "lowerarm01", "lowerarm02", "wrist")
FASTEST = 40.0  # rad / s^2, limit of a joint's acceleration: a brisk beat
STEPS = 4  # items from the first place of a list to the last
HANDS = {s: tuple(f"finger{f}-{j}" for f in range(1, 6) for j in (1, 2, 3)) for s in "LR"}


class Postures:
    """Rotation vectors of the postures for one arm: rows of `joints`, arm first, then fingers."""

    def __init__(self, body: Body, side: str, space: float = 0.0):
        self.names = [f"{n}.{side}" for n in (*ARM, *HANDS[side])]
        self.joints = [body.joint(n) for n in self.names]
        self.axes = hand_axes(body, side)
        add = lambda arm, delta, w: tuple(np.add(a, np.multiply(w, d)) for a, d in zip(arm, delta))  # noqa: E731
        arms = {n: add(arm, WIDE, 0.0 if n.startswith("self") else space) for n, (arm, _) in POSES.items()}
        down = {n: add(arms[n], STROKE, 1.0) for n in ("low", "middle", "high")}
        self.arms = {n: self.rows(arm_rotations(body, side, *arm)) for n, arm in arms.items()}
        self.strokes = {n: self.rows(arm_rotations(body, side, *arm)) - self.arms[n] for n, arm in down.items()}
        for n, (_, (flexion, deviation)) in POSES.items():
            self.arms[n][ARM.index("wrist")] = self.bend(flexion, deviation)
        self.shapes = {n: self.rows(shape_rotations(body, side, s)) for n, s in SHAPES.items()}

    def rows(self, rotations: dict) -> np.ndarray:
        """(n, 3) in the order of `joints`, zero where nothing is given."""
        return np.stack([rotations.get(n, np.zeros(3)) for n in self.names])

    def bend(self, flexion: float, deviation: float) -> np.ndarray:
        """Rotation vector (3,) of the wrist."""
        return self.axes.across * flexion + self.axes.normal * deviation

    def beat(self, strength: float) -> tuple[np.ndarray, np.ndarray]:
        """Posture and stroke of a beat, (n, 3) each: weak ones low with palms half up, strong ones higher with palms down."""
        x = np.clip(2 * strength, 0, 2)
        w = {"low": max(1 - x, 0), "middle": 1 - abs(x - 1), "high": max(x - 1, 0)}
        return tuple(sum(w[n] * rows[n] for n in w) for rows in (self.arms, self.strokes))

    def stages(self, g: Gesture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows (n, 3) before the stroke, at its apex and when the hold ends."""
        if g.kind == "beat":
            home, stroke = self.beat(g.strength)
            home, size = home + self.shapes[g.shape], 0.35 + 0.65 * g.strength**1.5
            return home - 0.4 * size * stroke, home + size * stroke, home + size * stroke
        if g.pose == "list":
            out = min(g.step, STEPS) / STEPS
            target = (1 - out) * self.arms["list"] + out * self.arms["list out"] + self.shapes[g.shape]
            return target - 0.7 * self.strokes["middle"], target + 0.35 * self.strokes["middle"], target
        ready, target = self.arms[f"{g.pose} ready"], self.arms[g.pose]
        half = 0.5 * (self.shapes["relaxed"] + self.shapes[g.shape])
        if g.pose == "count":
            half = self.shapes["one"] if g.shape == "one" else 0.7 * self.shapes[g.shape] + 0.3 * self.shapes["one"]
        return ready + half, target + self.shapes[g.shape], target + self.shapes[g.shape]


def arm_track(own: Postures, ease: np.ndarray, times, gestures: list[Gesture], side: str, share: float):
    """Rows (T, n, 3) of one arm through its gestures, and how far it is from rest (T,) in [0, 1].

    ease (n, 3) the resting rows; share in [0, 1.5] the size of this arm's gestures, large ones saturate.
    """
    keys, rows, far = [-1.0], [ease], [0.0]

    def go(t, row, raised):
        keys.append(max(t, keys[-1] + 0.02))
        rows.append(reachable(rows[-1], row, keys[-1] - keys[-2]))
        far.append(raised)

    mine = [g for g in gestures if g.hand in (side, "both")] if share > 0 else []
    for g, following in zip(mine, [*mine[1:], None]):
        size = np.tanh(1.2 * share * (0.6 + 0.4 * g.strength)) / np.tanh(1.2)
        size = size if g.kind == "beat" else 0.62 + 0.38 * size  # a small gesture must still say what it says
        size = min(size, 1.0)
        sizes = np.full((len(ease), 1), size)
        sizes[len(ARM) :] = max(size, 0.5 if g.kind == "beat" else 0.95)  # fingers make their shape in small gestures too
        ready, target, late = (ease + sizes * (r - ease) for r in own.stages(g))
        go(g.start, rows[-1], far[-1])
        go(g.stroke, ready, size)
        go(g.apex, target, size)
        go(g.hold, late, size)
        near = following is not None and not g.rests and following.start - g.hold < BRIDGE
        if g.kind == "beat" and near and following.start - g.hold > 0.2:  # the rebound
            go(following.start, ease + sizes * (own.beat(g.strength)[0] + own.shapes[g.shape] - ease), size)
        elif not near:
            go(g.end if g.rests else g.hold + 0.7, ease, 0.0)
    return glide(times, keys, np.stack(rows)), glide(times, keys, np.array(far))


def reachable(start, goal, seconds: float) -> np.ndarray:
    """As far from `start` (n, 3) towards `goal` as a joint comes within FASTEST; a minimum-jerk movement peaks at 5.77 D / t^2."""
    distance = np.linalg.norm(goal - start, axis=1, keepdims=True)
    return start + np.minimum(1, FASTEST * seconds**2 / np.maximum(5.77 * distance, 1e-9)) * (goal - start)


def glide(times, keys, rows) -> np.ndarray:
    """Minimum-jerk track (T, ...) through `rows` (K, ...) at `keys` s, still at every key, constant outside."""
    keys = np.asarray(keys)
    if len(keys) == 1:
        return np.repeat(rows[:1], len(times), 0)
    k = np.clip(np.searchsorted(keys, times, side="right") - 1, 0, len(keys) - 2)
    x = np.clip((times - keys[k]) / (keys[k + 1] - keys[k]), 0, 1)
    w = (10 * x**3 - 15 * x**4 + 6 * x**5).reshape(-1, *[1] * (rows.ndim - 1))
    return rows[k] + w * (rows[k + 1] - rows[k])

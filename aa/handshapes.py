"""Hand shapes of the performer: how far each finger bends, spreads and how the thumb stands.

A shape is a row of angles in radians about anatomical axes that are measured on the body, so that both hands, and any body with the
same skeleton, make the same shape. Zero is the hand of the rest pose, which is slightly curled already.
"""

from dataclasses import dataclass

import numpy as np

from aa.body import Body

FINGER_CURL = (0.15, 0.18, 0.22, 0.26)  # rad per joint at rest: index, middle, ring, little
JOINT_SHARE = (0.8, 1.0, 0.6)  # how knuckle, middle and end joint share a curl
_EASE = tuple(tuple(c * s for s in JOINT_SHARE) for c in FINGER_CURL)


@dataclass(frozen=True)
class HandShape:
    """Angles in radians added to the rest pose."""

    fingers: tuple = _EASE  # (4, 3) bend of index, middle, ring, little at knuckle, middle and end joint
    spread: float = 0.0  # of the knuckles, positive spreads the fingers
    thumb: tuple = (0.0, 0.0, 0.0)  # opposition across the palm, towards the fingers, bend of the two end joints


def _all(*bends) -> tuple:
    return (bends,) * 4


STRAIGHT = (-0.05, -0.16, -0.06)
FOLDED = (0.85, 1.15, 0.55)
SHAPES = {
    "relaxed": HandShape(),
    "open": HandShape(
        ((-0.08, -0.10, -0.04), (-0.05, -0.11, -0.04), (-0.03, -0.09, -0.04), (0.0, -0.05, -0.02)), 0.0, (0.05, 0.05, 0.0)
    ),
    "flat": HandShape((STRAIGHT, STRAIGHT, STRAIGHT, (0.0, -0.12, -0.04)), -0.10, (0.20, 0.25, 0.10)),
    "point": HandShape((STRAIGHT, (0.75, 1.0, 0.5), (0.8, 1.05, 0.5), (0.8, 1.05, 0.5)), 0.0, (0.45, 0.25, 0.35)),
    "precision": HandShape(
        ((0.62, 0.75, 0.30), (0.42, 0.50, 0.25), (0.28, 0.36, 0.20), (0.14, 0.24, 0.16)), -0.02, (0.46, -0.06, 0.19)
    ),
    "one": HandShape((STRAIGHT, FOLDED, FOLDED, FOLDED), 0.0, (0.55, 0.35, 0.45)),
    "two": HandShape((STRAIGHT, STRAIGHT, FOLDED, FOLDED), 0.08, (0.55, 0.35, 0.45)),
    "three": HandShape((STRAIGHT, STRAIGHT, STRAIGHT, FOLDED), 0.05, (0.55, 0.35, 0.40)),
    "four": HandShape(_all(*STRAIGHT), 0.05, (0.55, 0.35, 0.35)),
    "five": HandShape(_all(*STRAIGHT), 0.08, (-0.05, -0.10, -0.05)),
}  # fmt: skip


@dataclass(frozen=True)
class HandAxes:
    """Unit axes of rotation of one hand in the rest pose: the same angle does the same thing on both sides."""

    across: np.ndarray  # (3,) bends the fingers towards the palm
    normal: np.ndarray  # (3,) out of the palm; turns a finger towards the little finger
    along: np.ndarray  # (3,) along the fingers; turns the palm (and the thumb before it) towards the other fingers
    thumb: np.ndarray  # (3,) bends the thumb's end joints


def hand_axes(body: Body, side: str) -> HandAxes:
    """Axes of the hand of `side` ("L" or "R") from the rest positions of the left hand's joints, mirrored for the right."""
    at = lambda name: body.joint_template[body.joint(f"{name}.L")].double().cpu().numpy()  # noqa: E731
    across = _unit(at("finger5-1") - at("finger2-1"))
    along = at("finger3-1") - at("wrist")
    along = _unit(along - (along @ across) * across)
    thumb = _unit(np.cross(at("finger1-2") - at("finger1-1"), at("finger1-3") - at("finger1-2")))
    turn = np.array([1.0, 1.0, 1.0] if side == "L" else [1.0, -1.0, -1.0])  # axes of rotation are mirrored like this
    return HandAxes(turn * across, turn * np.cross(along, across), turn * along, turn * thumb)


def shape_rotations(body: Body, side: str, shape: HandShape) -> dict[str, np.ndarray]:
    """Rotation vectors of the fingers of one hand: joint name -> (3,)."""
    axes = hand_axes(body, side)
    out = {}
    for finger, bends in enumerate(shape.fingers, 2):
        for joint, bend in enumerate(bends, 1):
            out[f"finger{finger}-{joint}.{side}"] = axes.across * bend
        out[f"finger{finger}-1.{side}"] = out[f"finger{finger}-1.{side}"] + axes.normal * shape.spread * (finger - 3.3)
    opposition, inward, bend = shape.thumb
    out[f"finger1-1.{side}"] = axes.along * opposition + axes.normal * inward
    out[f"finger1-2.{side}"] = axes.thumb * bend
    out[f"finger1-3.{side}"] = axes.thumb * bend
    return out


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v)

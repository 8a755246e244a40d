"""How far joints turn, about which axes; and the posture that 3D landmarks suggest before any fit."""

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from aa.body import Body, matrix_to_quat, matrix_to_rotvec, rotvec_to_matrix
from aa.gestures import arm_rotations, at_ease
from aa.landmarks import HAND_JOINTS, Landmarks
from aa.parts import rigid_fit
from aa.posing import SIDES

# Standard deviation in radians of a joint's rotation around the posture at ease: one number where it turns alike about all axes,
# else (bend, twist about the bone, sideways). Joints that are not named stay fixed.
FREEDOM = {
    "spine05": 0.04, "spine04": 0.04, "spine03": 0.05, "spine02": 0.05, "spine01": 0.05, "neck01": 0.07, "neck02": 0.07,
    "neck03": 0.07, "head": 0.15, "clavicle": 0.1, "shoulder01": 0.1, "upperarm01": 0.9, "upperarm02": (0.05, 0.5, 0.05),
    "lowerarm01": (0.9, 0.1, 0.1), "lowerarm02": (0.03, 0.8, 0.03), "wrist": (0.5, 0.1, 0.25),
    "finger1-1": 0.35, "finger1-2": 0.3, "finger1-3": 0.35,
    **{f"finger{f}-1": (0.5, 0.1, 0.15) for f in (2, 3, 4, 5)},
    **{f"finger{f}-{k}": (0.5, 0.05, 0.05) for f in (2, 3, 4, 5) for k in (2, 3)},
    "upperleg01": 0.5, "lowerleg01": 0.5, "foot": 0.2,
}  # fmt: skip
# Least and greatest bend in radians from the rest pose, flexion positive
LIMITS = {"lowerarm01": (-0.35, 2.3), "finger-1": (-0.5, 1.5), "finger-2": (-0.3, 1.8), "finger-3": (-0.3, 1.2)}
PALM = (0, 1, 5, 9, 13, 17)  # hand landmarks that keep their places to each other
MOST_TWIST, MOST_WRIST = 1.7, 1.3  # rad; a hand model's guess beyond this is not believed


@dataclass(frozen=True)
class Freedom:
    """Priors of the joints."""

    axes: torch.Tensor  # (J, 3, 3) columns: bend, bone, sideways; identity for ball joints
    sigma: torch.Tensor  # (J, 3) rad about these axes, 0 where the joint is fixed
    low: torch.Tensor  # (J,) rad, limits of the bend
    high: torch.Tensor  # (J,)


def freedom(body: Body) -> Freedom:
    """Axes and priors of all joints, from their places on the mean body."""
    J = len(body.joint_names)
    sigma, axes = torch.zeros(J, 3), torch.eye(3).repeat(J, 1, 1)
    low, high = torch.full((J,), -4.0), torch.full((J,), 4.0)
    for j, name in enumerate(body.joint_names):
        stem = name.split(".")[0]
        sigma[j] = torch.tensor(FREEDOM.get(stem, 0.0))
        kind = f"finger-{stem[-1]}" if stem.startswith("finger") and stem[6] != "1" else stem
        low[j], high[j] = LIMITS.get(kind, (-4.0, 4.0))
    for side in SIDES.values():
        for name, frame in _frames(body, side).items():
            axes[body.joint(name)] = frame
    return Freedom(axes, sigma, low, high)


def _frames(body: Body, side: str) -> dict[str, torch.Tensor]:
    """Columns (bend, bone, sideways) of the joints of one arm; bending about the first flexes."""
    at = lambda name: body.joint_template[body.joint(name + side)]  # noqa: E731
    frame = lambda bend, bone: _frame(bend - (bend @ bone) / (bone @ bone) * bone, bone)  # noqa: E731
    upper, fore = at("lowerarm01") - at("upperarm01"), at("wrist") - at("lowerarm01")
    elbow = torch.linalg.cross(upper, fore)
    across = (at("finger5-1") - at("finger2-1")) * (1 if side == ".L" else -1)
    out = {"upperarm02": frame(elbow, upper), "lowerarm01": frame(elbow, fore), "lowerarm02": frame(elbow, fore)}
    out["wrist"] = frame(across, at("finger3-1") - at("wrist"))
    for finger in (2, 3, 4, 5):
        for k in (1, 2, 3):
            low = min(k, 2)  # the end joint bends like the bone before it
            out[f"finger{finger}-{k}"] = frame(across, at(f"finger{finger}-{low + 1}") - at(f"finger{finger}-{low}"))
    return {name + side: value for name, value in out.items()}


def _frame(bend, bone) -> torch.Tensor:
    bend, bone = normalize(bend, dim=0), normalize(bone, dim=0)
    return torch.stack([bend, bone, torch.linalg.cross(bend, bone)], 1)


def first_posture(body: Body, marks: Landmarks, person) -> torch.Tensor:
    """Rotation vectors (J, 3) with the arms in the directions of the pose model's 3D landmarks and the hands turned and bent as the
    hand model's: gradient descent alone would not turn a palm that it takes for the back of a hand."""
    out, pose = at_ease(body), torch.as_tensor(person.pose3d, dtype=torch.float64)
    for (name, side), (shoulder, elbow, wrist) in zip(SIDES.items(), ((11, 13, 15), (12, 14, 16))):
        if person.pose_visibility[[elbow, wrist]].min() < 0.5:
            continue
        mirror = torch.tensor([1.0 if side == ".L" else -1.0, 1, 1])
        upper, fore = ((pose[b] - pose[a]) * mirror for a, b in ((shoulder, elbow), (elbow, wrist)))
        for joint, rotvec in arm_rotations(body, side[1], upper.numpy(), fore.numpy(), 0.0).items():
            out[body.joint(joint)] = torch.as_tensor(rotvec, dtype=torch.float32)
        if person.hands[name] is not None:
            world = torch.as_tensor(person.hands[name][1], dtype=torch.float32)
            _turn_hand(body, marks, side, name, world, out)
            _bend_fingers(body, side, world, out)
    return out


def _turn_hand(body: Body, marks: Landmarks, side: str, name: str, world, out) -> None:
    """Split the turn from the rest hand to landmarks `world` (21, 3) between forearm (twist) and wrist, in place."""
    rest = marks.hand(body.v_template, body.joint_template, name)
    turn = rigid_fit(rest[list(PALM)], world[list(PALM)])[0]
    fore = torch.eye(3)
    for joint in ("upperarm01", "upperarm02", "lowerarm01"):
        fore = fore @ rotvec_to_matrix(out[body.joint(joint + side)])
    bone = normalize(body.joint_template[body.joint("wrist" + side)] - body.joint_template[body.joint("lowerarm01" + side)], dim=0)
    local = fore.mT @ turn
    q = matrix_to_quat(local)
    q = q if q[0] >= 0 else -q
    angle = (2 * torch.atan2(q[1:] @ bone, q[0])).clamp(-MOST_TWIST, MOST_TWIST)
    swing = matrix_to_rotvec(rotvec_to_matrix(-angle * bone) @ local)
    out[body.joint("lowerarm02" + side)] = angle * bone
    out[body.joint("wrist" + side)] = swing * (MOST_WRIST / swing.norm().clamp_min(MOST_WRIST))


def _bend_fingers(body: Body, side: str, world, out) -> None:
    """Bend the two outer joints of each finger by the angle between its bones in `world` (21, 3), in place."""
    frames, rest = _frames(body, side), body.joint_template
    for finger in (2, 3, 4, 5):
        first = 4 * finger - 3  # the knuckle
        own = [rest[body.joint(HAND_JOINTS[first + k] + side)] for k in range(3)]
        own.append(2 * own[2] - own[1])  # the tip, in line
        for k in (2, 3):
            straight = _angle(own[k - 1] - own[k - 2], own[k] - own[k - 1])
            seen = _angle(world[first + k - 1] - world[first + k - 2], world[first + k] - world[first + k - 1])
            joint = f"finger{finger}-{k}{side}"
            out[body.joint(joint)] = frames[joint][:, 0] * (seen - straight).clamp(*LIMITS[f"finger-{k}"])


def _angle(a, b) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(a, b, 0).clamp(-1, 1).acos()

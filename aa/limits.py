"""Checks on performances: joints within their range of motion, hands outside the body and apart from each other."""

import numpy as np
import torch

from aa.body import Body, vertex_normals
from aa.handshapes import hand_axes

# Degrees. Ranges of motion of healthy adults: American Academy of Orthopaedic Surgeons, "Joint Motion: Method of Measuring and
# Recording" (1965); the spread of the knuckles and the thumb's opposition, which it does not give as angles, by eye on the body.
# Fingers count from the body's rest pose, in which they are bent by 5 to 25 degrees already.
LIMITS = {
    "shoulder": (0, 150),  # upper arm against hanging down
    "elbow": (0, 150),  # 0 straight
    "pronation": (-80, 80),  # palm up .. palm down, 0 with the thumb up
    "wrist flexion": (-70, 80),
    "wrist deviation": (-20, 30),  # towards the thumb .. towards the little finger
    "knuckle": (-45, 90),
    "middle joint": (-25, 100),
    "end joint": (-25, 80),
    "spread": (-20, 20),
    "thumb base": (-30, 50),
    "thumb bend": (-20, 80),
    "head nod": (-45, 45),
    "head tilt": (-45, 45),
    "head turn": (-60, 60),
    "trunk bend": (-30, 80),
    "trunk tilt": (-35, 35),
    "trunk turn": (-45, 45),
}


def joint_angles(body: Body, rotvecs: torch.Tensor) -> dict[str, np.ndarray]:
    """Angles in degrees of rotvecs (T, J, 3): a name of LIMITS, or one with ".L" or ".R" after it -> (T,) or (T, joints)."""
    rotations, offsets = body.joint_transforms(None, rotvecs)
    places = ((rotations @ body.joint_template[..., None])[..., 0] + offsets).double().cpu().numpy()
    r = rotvecs.double().cpu().numpy()
    at = lambda name: places[:, body.joint(name)]  # noqa: E731
    of = lambda *names: sum(r[:, body.joint(n)] for n in names)  # noqa: E731
    out = {}
    for side in "LR":
        upper = at(f"lowerarm01.{side}") - at(f"upperarm01.{side}")
        fore = at(f"wrist.{side}") - at(f"lowerarm01.{side}")
        rest = body.joint_template[[body.joint(f"{n}.{side}") for n in ("lowerarm01", "wrist")]].double().cpu().numpy()
        axes = hand_axes(body, side)
        sign = 1.0 if side == "L" else -1.0
        along = sign * (rest[1] - rest[0]) / np.linalg.norm(rest[1] - rest[0])
        fingers = lambda k, side=side: np.stack([r[:, body.joint(f"finger{f}-{k}.{side}")] for f in (2, 3, 4, 5)], 1)  # noqa: E731
        wrist, thumb = of(f"wrist.{side}"), of(f"finger1-1.{side}")
        angles = {
            "shoulder": _between(upper, np.array([0.0, 0, -1])), "elbow": _between(upper, fore),
            "pronation": of(f"lowerarm02.{side}") @ along,
            "wrist flexion": wrist @ axes.across, "wrist deviation": wrist @ axes.normal,
            "knuckle": fingers(1) @ axes.across, "middle joint": fingers(2) @ axes.across, "end joint": fingers(3) @ axes.across,
            "spread": fingers(1) @ axes.normal,
            "thumb base": np.stack([thumb @ axes.along, thumb @ axes.normal], 1),
            "thumb bend": np.stack([of(f"finger1-{k}.{side}") @ axes.thumb for k in (2, 3)], 1),
        }  # fmt: skip
        out |= {f"{name}.{side}": np.degrees(a) for name, a in angles.items()}
    for name, bones in (("head", ("neck01", "neck02", "neck03", "head")), ("trunk", [f"spine0{k}" for k in range(1, 6)])):
        for k, axis in enumerate(("nod", "tilt", "turn") if name == "head" else ("bend", "tilt", "turn")):
            out[f"{name} {axis}"] = np.degrees(of(*bones)[:, k])
    return out


def beyond_limits(body: Body, rotvecs: torch.Tensor) -> dict[str, float]:
    """Joints of rotvecs (T, J, 3) that leave LIMITS -> by how many degrees; empty where all is well."""
    over = {}
    for name, a in joint_angles(body, rotvecs).items():
        low, high = LIMITS[name.split(".")[0]]
        over[name] = float(max(low - a.min(), a.max() - high))
    return {name: x for name, x in over.items() if x > 0}


def _between(a, b) -> np.ndarray:
    """Angle (T,) rad between vectors (T, 3) and (3,) or (T, 3)."""
    cos = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return np.arccos(np.clip(cos, -1, 1))


class Clearance:
    """Distances of the hands from the rest of a body, on one vertex in `every`, without building the whole mesh.

    Inside or outside is told by the normal at the nearest point of the surface, which is exact for depths below the thickness of
    what is entered.
    """

    def __init__(self, body: Body, every: int = 8):
        hand = body.region_vertices("hand")
        rest = body.region_vertices("torso", "neck", "leg", "face", "scalp", "ear")
        rest = rest[~torch.isin(rest, hand)][::2]
        left = body.v_template[hand, 0] > 0
        chosen = [hand[left][::every], hand[~left][::every], rest]
        self.counts = [len(c) for c in chosen]
        self.body = body.select(torch.cat(chosen))
        self.normals = vertex_normals(body.v_template, body.faces)[rest]

    def __call__(self, rotvecs: torch.Tensor, betas=None, actions=None) -> tuple[torch.Tensor, torch.Tensor]:
        """For rotvecs (T, J, 3): distance (T,) m of the nearer hand from trunk, legs and head, negative inside; and (T,) m between
        the hands."""
        vertices, turns = self.body.pose(betas, rotvecs, actions)
        left, right, rest = vertices.split(self.counts, 1)
        normals = (turns[:, -self.counts[2] :] @ self.normals[..., None])[..., 0]
        body = []
        for p in (left, right):
            gap, near = torch.cdist(p, rest).min(2)
            offset = p - rest.gather(1, near[..., None].expand(-1, -1, 3))
            side = (offset * normals.gather(1, near[..., None].expand(-1, -1, 3))).sum(2)
            body.append(torch.where(side < 0, -gap, gap).amin(1))
        return torch.minimum(*body), torch.cdist(left, right).flatten(1).amin(1)

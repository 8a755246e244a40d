"""Where MediaPipe's landmarks lie on the body: face (478), pose (33) and hand (21 a side) points of a posed mesh, differentiable.

The face correspondence is measured (assets/make_landmarks.py); body and hand landmarks are joints, fingertips, heels and toes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from aa.body import ASSETS, Body

# Face landmarks along the outline of the face (MediaPipe's FACEMESH_FACE_OVAL): they slide over the surface as the head turns.
BOUNDARY = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
# Pose landmarks that are face landmarks: nose, eyes (inner, middle, outer; left then right), mouth corners
POSE_FACE = {0: 1, 1: 362, 2: 473, 3: 263, 4: 133, 5: 468, 6: 33, 9: 291, 10: 61}
# Pose landmarks that are joints, left side; the right side has the next index. 7 ear, 29 heel and 31 toes are surface points.
POSE_JOINTS = {
    11: "upperarm01", 13: "lowerarm01", 15: "wrist", 17: "finger5-1", 19: "finger2-1", 21: "finger1-2",
    23: "upperleg01", 25: "lowerleg01", 27: "foot",
}  # fmt: skip
# Hand landmarks that are joints; each finger's fourth landmark (4, 8, 12, 16, 20) is its tip.
HAND_JOINTS = ("wrist", *(f"finger{f}-{k}" for f in range(1, 6) for k in (1, 2, 3, "tip")))


@dataclass(frozen=True)
class Points:
    """n points, each a weighted sum of K rows of a stacked source (vertices, then joints)."""

    index: torch.Tensor  # (n, K) int64
    weight: torch.Tensor  # (n, K)

    def of(self, vertices: torch.Tensor, joints: torch.Tensor | None = None) -> torch.Tensor:
        """Positions (..., n, 3) on vertices (..., V, 3) and joints (..., J, 3)."""
        source = vertices if joints is None else torch.cat([vertices, joints.expand(*vertices.shape[:-2], -1, 3)], -2)
        return (source[..., self.index, :] * self.weight.to(source)[..., None]).sum(-2)


@dataclass(frozen=True)
class Landmarks:
    """Correspondence of MediaPipe's landmarks with one body (or a part of it, see `select`)."""

    face_points: Points  # 478
    pose_points: Points  # 33, over vertices then joints
    hand_points: dict[str, Points]  # "left", "right": 21 each, over vertices then joints
    spread: torch.Tensor  # (478,) mm, how well the face landmark's place was agreed upon; -1 where unreliable
    vertex_count: int

    @property
    def reliable(self) -> torch.Tensor:
        """(478,) bool: face landmarks with a known place; the others come out as zeros and should have no weight."""
        return self.spread >= 0

    def face(self, vertices: torch.Tensor) -> torch.Tensor:
        """Face landmarks (..., 478, 3) on vertices (..., V, 3)."""
        self._check(vertices)
        return self.face_points.of(vertices)

    def pose(self, vertices: torch.Tensor, joints: torch.Tensor) -> torch.Tensor:
        """Pose landmarks (..., 33, 3) on vertices (..., V, 3) and posed joints (..., J, 3)."""
        self._check(vertices)
        return self.pose_points.of(vertices, joints)

    def hand(self, vertices: torch.Tensor, joints: torch.Tensor, side: str) -> torch.Tensor:
        """Hand landmarks (..., 21, 3) of side "left" or "right"."""
        self._check(vertices)
        return self.hand_points[side].of(vertices, joints)

    def vertices(self) -> torch.Tensor:
        """Sorted indices (n,) of all vertices that some landmark needs."""
        every = [self.face_points, self.pose_points, *self.hand_points.values()]
        used = torch.cat([p.index[p.weight != 0] for p in every])
        return torch.unique(used[used < self.vertex_count])

    def select(self, kept: torch.Tensor) -> "Landmarks":
        """The same landmarks for `body.select(kept)`; kept (n,) must contain `vertices()`."""
        index = torch.full((self.vertex_count,), -1, device=kept.device)
        index[kept] = torch.arange(len(kept), device=kept.device)
        if (index[self.vertices()] < 0).any():
            raise ValueError("kept must contain every vertex of Landmarks.vertices()")

        def moved(points: Points) -> Points:
            joint = points.index - self.vertex_count
            low = index[points.index.clamp(max=self.vertex_count - 1)].clamp(min=0)  # entries of weight 0 may point anywhere
            return Points(torch.where(joint >= 0, joint + len(kept), low), points.weight)

        hands = {side: moved(points) for side, points in self.hand_points.items()}
        return Landmarks(moved(self.face_points), moved(self.pose_points), hands, self.spread, len(kept))

    def _check(self, vertices):
        if vertices.shape[-2:] != (self.vertex_count, 3):
            raise ValueError(f"vertices must be (..., {self.vertex_count}, 3), got {tuple(vertices.shape)}")


def load_landmarks(body: Body, path: Path | None = None) -> Landmarks:
    """The correspondence for the whole body, on its device, from assets/landmarks.json."""
    data = json.loads((path or ASSETS / "landmarks.json").read_text())
    index = torch.tensor(data["vertices"], device=body.device)
    known = (index >= 0).all(1)
    weight = torch.tensor(data["weights"], device=body.device) * known[:, None]
    face = Points(index.clamp(min=0), weight)
    hands = {"left": _stack(body, _hand(body, "L")), "right": _stack(body, _hand(body, "R"))}
    spread = torch.tensor(data["spread_mm"], device=body.device)
    return Landmarks(face, _stack(body, _pose(body, face)), hands, spread, len(body.v_template))


def posed_joints(body: Body, betas=None, rotvecs=None, translation=None) -> torch.Tensor:
    """Positions (..., J, 3) of the joints in a pose; arguments as in `Body.pose`."""
    if rotvecs is None:
        rotvecs = torch.zeros(len(body.parents), 3, device=body.device)
    rotations, offsets = body.joint_transforms(betas, rotvecs)
    place = (rotations @ body.joints(betas)[..., None])[..., 0] + offsets
    return place if translation is None else place + translation[..., None, :]


def _stack(body: Body, rows) -> Points:
    """Points from a list of (row indices, weights), padded with weight 0."""
    width = max(len(i) for i, _ in rows)
    index = torch.zeros(len(rows), width, dtype=torch.long)
    weight = torch.zeros(len(rows), width)
    for r, (i, w) in enumerate(rows):
        index[r, : len(i)], weight[r, : len(i)] = torch.as_tensor(i), torch.as_tensor(w, dtype=torch.float32)
    return Points(index.to(body.device), weight.to(body.device))


def _joint(body: Body, name: str):
    return [len(body.v_template) + body.joint(name)], [1.0]


def _mean(ids: torch.Tensor):
    return ids.tolist(), [1 / len(ids)] * len(ids)


def _hand(body: Body, side: str) -> list:
    rows = []
    for name in HAND_JOINTS:
        rows.append(_tip(body, f"{name[:7]}-3.{side}") if name.endswith("tip") else _joint(body, f"{name}.{side}"))
    return rows


def _tip(body: Body, last: str):
    """The end of a finger: the mean of the vertices in the last 5 mm beyond its last joint."""
    j = body.joint(last)
    ids = (body.weights[:, j] > 0.5).nonzero()[:, 0]
    along = (body.v_template[ids] - body.joint_template[j]) @ torch.nn.functional.normalize(
        body.joint_template[j] - body.joint_template[body.parents[j]], dim=0
    )
    return _mean(ids[along > along.max() - 0.005])


def _pose(body: Body, face: Points) -> list:
    rows = [None] * 33
    for landmark, point in POSE_FACE.items():
        rows[landmark] = face.index[point].tolist(), face.weight[point].tolist()
    for offset, side in enumerate("LR"):
        for landmark, name in POSE_JOINTS.items():
            rows[landmark + offset] = _joint(body, f"{name}.{side}")
        sign = 1 if side == "L" else -1
        ears, feet = body.region_vertices("ear"), body.region_vertices("foot")
        rows[7 + offset] = _mean(ears[body.v_template[ears, 0] * sign > 0])
        feet = feet[body.v_template[feet, 0] * sign > 0]
        y = body.v_template[feet, 1]
        rows[29 + offset] = _mean(feet[(y > y.max() - 0.02) & (body.v_template[feet, 2] < body.v_template[feet, 2].min() + 0.04)])
        rows[31 + offset] = _mean(feet[y < y.min() + 0.03])
    return rows

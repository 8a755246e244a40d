"""A fitted avatar as a puppet: its own rest posture, joints and facial actions, posed frame by frame.

An avatar comes from a photo in the photo's posture. For a video of the same person the body's joints and facial actions are carried
over to that rest: every joint goes with the skin around it (a similarity, Umeyama 1991), actions turn and grow with the face. All
numbers at zero give the avatar's rest. Joints that are not free ride with the nearest free one above them.
"""

from dataclasses import dataclass

import torch

from aa.body import Body, matrix_to_rotvec, rotvec_to_matrix
from aa.transfer import Deformation

CORE = 0.05  # share of the largest weight below which skin says nothing about where a joint is
LEAST_SKIN = 8  # vertices


@dataclass(frozen=True)
class Pose:
    """T postures: turn (T, 3) rad and shift (T, 3) m of the whole about the chest, rotvecs (T, F, 3) rad of the free joints in
    world axes, actions (T, A) in [0, 1]."""

    turn: torch.Tensor
    shift: torch.Tensor
    rotvecs: torch.Tensor
    actions: torch.Tensor

    def __len__(self) -> int:
        return len(self.turn)

    def __getitem__(self, frames) -> "Pose":
        return Pose(*(x[frames] for x in vars(self).values()))


class Puppet:
    """V vertices, F free joints, A actions on an avatar's rest (V, 3), whose rotation relative to the body's posture at ease is
    turn (V, 3, 3)."""

    def __init__(self, body: Body, rest: torch.Tensor, turn: torch.Tensor, free: tuple[str, ...]):
        self.body, self.rest, self.free = body, rest, free
        self.joints, grown = carry_joints(body, rest)
        head = body.joint("head")
        self.dirs = (turn @ body.action_dirs[..., None])[..., 0] * grown[head]  # (A, V, 3)
        index = {body.joint(n): k for k, n in enumerate(free)}
        self.parent, lead = [], []
        for j in range(len(body.parents)):
            at = j
            while at >= 0 and at not in index:
                at = body.parents[at]
            lead.append(index.get(at, -1))
        for n in free:
            above = body.parents[body.joint(n)]
            self.parent.append(lead[above] if above >= 0 else -1)
        self.fold = torch.zeros(len(lead), len(free) + 1, device=rest.device)  # the last column is the whole
        self.fold[torch.arange(len(lead)), lead] = 1
        self.weights = body.weights @ self.fold
        self.pivot = self.joints[body.joint("spine01")]
        self.order = sorted(range(len(free)), key=lambda k: body.joint(free[k]))

    def zero(self, frames: int) -> Pose:
        """The rest, `frames` times."""
        z = lambda *shape: torch.zeros(frames, *shape, device=self.rest.device)  # noqa: E731
        return Pose(z(3), z(3), z(len(self.free), 3), z(len(self.dirs)))

    def select(self, vertices: torch.Tensor) -> "Puppet":
        """The same puppet with some vertices (n,) only, for cheap fitting."""
        out = object.__new__(Puppet)
        vars(out).update(vars(self), rest=self.rest[vertices], dirs=self.dirs[:, vertices], weights=self.weights[vertices])
        return out

    def pose(self, p: Pose) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Vertices (T, V, 3), blended rotations (T, V, 3, 3) and all joints (T, J, 3)."""
        whole = rotvec_to_matrix(p.turn)
        base = self.pivot + p.shift - (whole @ self.pivot[:, None])[..., 0]  # x -> whole x + base
        local = rotvec_to_matrix(p.rotvecs)
        turns, offsets = [None] * len(self.free), [None] * len(self.free)
        for k in self.order:
            above, move = (whole, base) if self.parent[k] < 0 else (turns[self.parent[k]], offsets[self.parent[k]])
            joint = self.joints[self.body.joint(self.free[k])][:, None]
            turns[k] = above @ local[:, k]
            offsets[k] = move + ((above - turns[k]) @ joint)[..., 0]
        turns, offsets = torch.stack([*turns, whole], 1), torch.stack([*offsets, base], 1)  # (T, F + 1, 3, 3)
        table = torch.cat([turns.flatten(-2), offsets], -1)
        shaped = self.rest + (p.actions @ self.dirs.flatten(1)).unflatten(-1, (-1, 3))
        vertices, rotations = _move(self.weights @ table, shaped)
        return vertices, rotations, _move(self.fold @ table, self.joints)[0]

    @torch.no_grad()
    def motion(self, p: Pose, chunk: int = 25) -> Deformation:
        """dG on the vertices (T, V, 3)."""
        means, turns = [], []
        for k in range(0, len(p), chunk):
            vertices, rotations, _ = self.pose(p[k : k + chunk])
            means.append(vertices - self.rest)
            turns.append(matrix_to_rotvec(rotations))
        return Deformation(torch.cat(means), torch.cat(turns))


def carry_joints(body: Body, vertices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Joints (J, 3) of a body given by its vertices (V, 3) alone, and how much larger (J,) it is there than the mean body."""
    joints, grown = [], []
    for j in range(len(body.parents)):
        w = _skin_around(body, j)
        keep = w > CORE * w.max()
        scale, R, shift = similarity(body.v_template[keep], vertices[keep], w[keep])
        joints.append(scale * R @ body.joint_template[j] + shift)
        grown.append(scale)
    return torch.stack(joints), torch.stack(grown)


def _skin_around(body: Body, j: int) -> torch.Tensor:
    """Weights (V,) of the skin that bends at joint j, else of what goes with it or with the nearest joint above."""
    above = body.parents[j]
    bends = body.weights[:, j] * body.weights[:, above] if above >= 0 else body.weights[:, j]
    while (bends > CORE * bends.max()).sum() < LEAST_SKIN or bends.max() < 1e-3:
        bends = body.weights[:, j]
        j = body.parents[j]
    return bends


def similarity(a: torch.Tensor, b: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scale, rotation (3, 3) and shift (3,) that take points a (n, 3) to b (n, 3) best, weighted by w (n,) (Umeyama 1991)."""
    w = (w / w.sum())[:, None]
    middle_a, middle_b = (w * a).sum(0), (w * b).sum(0)
    x, y = a - middle_a, b - middle_b
    U, S, Vt = torch.linalg.svd((w * y).T @ x)
    flip = torch.ones_like(S)
    flip[2] = torch.det(U @ Vt).sign()
    R = (U * flip) @ Vt
    scale = (S * flip).sum() / (w * x * x).sum().clamp_min(1e-12)
    return scale, R, middle_b - scale * R @ middle_a


def _move(rows: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (..., n, 3) under blended transforms (T, n, 12), and their rotations (T, n, 3, 3)."""
    R = rows[..., :9].unflatten(-1, (3, 3))
    return (R @ points[..., None])[..., 0] + rows[..., 9:], R

"""The particles of an avatar in the geometry of its photo, what they hang on, and how they move with the mesh."""

from dataclasses import dataclass, fields, replace

import torch

from aa.body import Body, matrix_to_quat, quat_multiply
from aa.gaussians import Gaussians
from aa.view import View


@dataclass(frozen=True)
class Particles:
    """N particles and what they hang on, see aa.canonical.Avatar."""

    corners: torch.Tensor  # (N, 3)
    bary: torch.Tensor  # (N, 3)
    loose: torch.Tensor  # (N,) bool
    means: torch.Tensor  # (N, 3) m
    quats: torch.Tensor  # (N, 4)
    scales: torch.Tensor  # (N, 3) m
    opacities: torch.Tensor  # (N,)
    colors: torch.Tensor  # (N, 3)
    seen: torch.Tensor  # (N,) bool, shown by the photo
    firm: torch.Tensor | None = None  # (N,) 0 to 1, keeps its first looks: lids and lips, folded in the photo, and edges
    aslant: torch.Tensor | None = None  # (N,) 0 to 1, how far its colour is not the photo's, see aa.sides

    def __post_init__(self):
        for name in ("firm", "aslant"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, torch.zeros_like(self.opacities))

    def __len__(self) -> int:
        return len(self.means)


def join(parts: list[Particles]) -> Particles:
    """All of them in one, in order."""
    return Particles(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Particles)))


def metres_per_pixel(view: View, points) -> torch.Tensor:
    """Size (n,) of a pixel at the depth of points (n, 3)."""
    z = points @ view.viewmat[2, :3] + view.viewmat[2, 3]
    return z / view.K[0, 0]


def triangle_frames(corners, vertices) -> torch.Tensor:
    """Frames (n, 3, 3), columns (along an edge, across, normal)."""
    a, b, c = vertices[corners].unbind(1)
    t = torch.nn.functional.normalize(b - a, dim=-1)
    n = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1)
    return torch.stack([t, torch.linalg.cross(n, t), n], -1)


def stretched(body: Body, corners, vertices) -> torch.Tensor:
    """Square root of the area (n,) of triangles over that on the mean body, within bounds."""
    area = lambda v: torch.linalg.cross(v[:, 1] - v[:, 0], v[:, 2] - v[:, 0]).norm(dim=1)  # noqa: E731
    return (area(vertices[corners]) / area(body.v_template[corners]).clamp_min(1e-12)).sqrt().clamp(0.6, 2.0)


def carry(means, quats, where, before, after):
    """Means (N, 3), quats (N, 4) and turns (N, 3, 3) of particles on a mesh (V, 3) in another shape of it.

    where: (corners (N, 3), bary (N, 3), loose (N,)); with their triangle, or shifted if loose.
    """
    corners, bary, loose = where
    read = lambda v: (v[corners] * bary[..., None]).sum(1)  # noqa: E731
    turn = triangle_frames(corners, after) @ triangle_frames(corners, before).mT
    turn[loose] = torch.eye(3, device=turn.device)
    arm = (turn @ (means - read(before))[..., None])[..., 0]
    return read(after) + arm, quat_multiply(matrix_to_quat(turn), quats), turn


def moved(cloud: Particles, before, after) -> Particles:
    """Particles on a mesh (V, 3) carried to another shape of it."""
    means, quats, _ = carry(cloud.means, cloud.quats, (cloud.corners, cloud.bary, cloud.loose), before, after)
    return replace(cloud, means=means, quats=quats)


def to_vertices(g: Gaussians, corners, bary, loose, before, after) -> Gaussians:
    """Gaussians on a mesh (V, 3) carried to another shape of it."""
    means, quats, _ = carry(g.means, g.quats, (corners, bary, loose), before, after)
    return replace(g, means=means, quats=quats)

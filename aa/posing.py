"""Posing a fitted body and taking the pose back, by dual quaternions (Kavan et al., "Skinning with Dual Quaternions", 2007).

Linear blending averages matrices, so that skin collapses where bones twist or bend far, and the way back is unstable there. A
blended dual quaternion is a rigid motion at every vertex: nothing collapses, and un-posing is its exact inverse.
"""

from functools import lru_cache

import torch

from aa.body import Body, quat_multiply, rotvec_to_quat
from aa.transfer import Deformation

HAND = ("finger", "metacarpal")  # names of the joints that a hand's size moves
SIDES = {"left": ".L", "right": ".R"}


def shaped(body: Body, betas, actions, hands) -> tuple[torch.Tensor, torch.Tensor]:
    """Rest vertices (V, 3) and joints (J, 3) of shape betas (S,) and actions (A,), the hands scaled about their wrists by
    exp(hands) (): hands vary more than the shape directions say, and small errors of depth show as their size."""
    vertices, joints = body.rest(betas, actions), body.joints(betas)
    for side in SIDES.values():
        ids = [j for j, n in enumerate(body.joint_names) if n.startswith(HAND) and n.endswith(side)]
        wrist = body.joint("wrist" + side)
        share = body.weights[:, [wrist, *ids]].sum(1)[:, None] * hands.expm1()
        vertices = vertices + share * (vertices - joints[wrist])
        moved = torch.zeros(len(joints), 1, device=joints.device).index_fill(0, torch.tensor(ids, device=joints.device), 1.0)
        joints = joints + moved * hands.expm1() * (joints - joints[wrist])
    return vertices, joints


def skin(body: Body, betas, rotvecs, actions, stretch, hands):
    """Posed joints (J, 3), vertices (V, 3) and rotations (V, 4) wxyz of a shape; stretch (J, 3) m lengthens bones at rest."""
    rest, joints = shaped(body, betas, actions, hands)
    quats, shifts, place = rigid_motions(body, joints, stretch, rotvecs)
    return place, rotate(quats, rest) + shifts, quats


def rigid_motions(body: Body, joints, stretch, rotvecs):
    """How each vertex moves from the rest pose to a posture: x goes to rotate(quats, x) + shifts.

    Args: joints (J, 3) m at rest; stretch (J, 3) m, added to each bone at rest; rotvecs (..., J, 3), see `Body.pose`.
    Returns: quats (..., V, 4) wxyz, shifts (..., V, 3) m, and the posed joints (..., J, 3) m.
    """
    world, place = _walk(body.parents, joints, rotvec_to_quat(rotvecs), stretch)
    shift = place - rotate(world, joints)
    dual = 0.5 * quat_multiply(_pure(shift), world)
    real, dual = (body.weights @ torch.cat([world, dual], -1)).split(4, -1)
    norm = real.norm(dim=-1, keepdim=True)
    real, dual = real / norm, dual / norm
    return real, 2 * quat_multiply(dual, inverse(real))[..., 1:], place


def inverse(q: torch.Tensor) -> torch.Tensor:
    """Unit quaternions (..., 4) of the opposite rotations."""
    return q * q.new_tensor([1, -1, -1, -1])


def rotate(q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Vectors v (..., 3) turned by unit quaternions q (..., 4)."""
    v = v.expand(*q.shape[:-1], 3)
    t = 2 * torch.linalg.cross(q[..., 1:], v)
    return v + q[..., :1] * t + torch.linalg.cross(q[..., 1:], t)


def _pure(v):
    return torch.cat([torch.zeros_like(v[..., :1]), v], -1)


def _walk(parents, joints, local, stretch):
    """World rotations (..., J, 4) and places (..., J, 3) of the joints, one level of the tree at a time (a fifth of the joint-wise
    cost). Composed down the tree, the signs of neighbours' quaternions agree, as blending needs."""
    order, back = _levels(parents)
    above_of = torch.tensor(parents, device=joints.device)
    first = order[0]
    world, place = local[..., first, :], joints[first].expand(*local.shape[:-2], len(first), 3)
    row = {j: k for k, j in enumerate(first)}
    for level in order[1:]:
        above = [row[parents[j]] for j in level]
        row |= {j: len(row) + k for k, j in enumerate(level)}
        turned = world[..., above, :]
        step = joints[level] - joints[above_of[level]] + stretch[level]
        place = torch.cat([place, place[..., above, :] + rotate(turned, step)], -2)
        world = torch.cat([world, quat_multiply(turned, local[..., level, :])], -2)
    return world[..., back, :], place[..., back, :]


@lru_cache
def _levels(parents: tuple[int, ...]) -> tuple[list[list[int]], torch.Tensor]:
    """Joints by their depth in the tree, and where each joint stands in that order."""
    depth = []
    for p in parents:
        depth.append(0 if p < 0 else depth[p] + 1)
    order = [[j for j, d in enumerate(depth) if d == k] for k in range(max(depth) + 1)]
    return order, torch.argsort(torch.tensor([j for level in order for j in level]))


def unpose(avatar, body: Body) -> torch.Tensor:
    """The avatar's vertices (V, 3) in the rest pose of the body (arms 45 degrees down): what all its postures have in common."""
    quats, shifts, _ = rigid_motions(body, avatar.joints, avatar.stretch, avatar.posture)
    return rotate(inverse(quats), avatar.vertices - shifts)


def repose(avatar, body: Body, rotvecs) -> Deformation:
    """Motion (T, V, 3) that takes an avatar from the posture of its photo to others, for `aa.canonical.animate`.

    Args: avatar; body, on its device; rotvecs (T, J, 3) or (J, 3), as in `Body.pose`. To `avatar.posture` nothing moves.
    """
    rotvecs = rotvecs if rotvecs.dim() == 3 else rotvecs[None]
    before, _, _ = rigid_motions(body, avatar.joints, avatar.stretch, avatar.posture)
    quats, shifts, _ = rigid_motions(body, avatar.joints, avatar.stretch, rotvecs)
    turned = quat_multiply(quats, inverse(before))
    return Deformation(rotate(quats, unpose(avatar, body)) + shifts - avatar.vertices, _rotvec(turned))


def _rotvec(q) -> torch.Tensor:
    """Rotation vectors (..., 3) with angle in [0, 2 pi): unlike those up to pi they do not jump between neighbours that turn by
    about half a turn, so that a triangle may average them."""
    s = q[..., 1:].norm(dim=-1, keepdim=True)
    return q[..., 1:] * torch.where(s < 1e-6, 2.0, 2 * torch.atan2(s, q[..., :1]) / s.clamp_min(1e-12))

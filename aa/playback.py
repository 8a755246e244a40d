"""An avatar frame by frame, fast: the same poses and pictures as `aa.canonical.animate` and `render`, made for streaming.

Posing is limited by memory, not by arithmetic: written as tensor operations over all Gaussians and a chunk of frames it reads and
writes hundreds of megabytes. Here only vertices that carry something are transferred, and on the CPU one kernel takes each Gaussian
from its three corners to its final place in one go.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch

from aa.canonical import Avatar, animate
from aa.raster import rasterize
from aa.raster_cpu import CHUNK
from aa.raster_simd import jit
from aa.threads import run_parallel
from aa.transfer import Deformation, Transfer

ROWS = 32  # lines of the picture per task
HALF, ONE, TWO = np.float32(0.5), np.float32(1), np.float32(2)  # a Python number would make the kernels calculate in float64


@jit
def _quat(r, q):
    """Unit quaternion (4,) wxyz of a rotation vector (3,) in radians, into q."""
    angle = math.sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2])
    s = HALF if angle < np.float32(1e-6) else math.sin(HALF * angle) / angle
    q[0], q[1], q[2], q[3] = math.cos(HALF * angle), s * r[0], s * r[1], s * r[2]


@jit
def _swing(q, x, y, z, weight, out):
    """out += weight (q v q^-1 - v) for v = (x, y, z): how far a turned arm's end goes."""
    a, b, c = TWO * (q[2] * z - q[3] * y), TWO * (q[3] * x - q[1] * z), TWO * (q[1] * y - q[2] * x)
    out[0] += weight * (q[0] * a + q[2] * c - q[3] * b)
    out[1] += weight * (q[0] * b + q[3] * a - q[1] * c)
    out[2] += weight * (q[0] * c + q[1] * b - q[2] * a)


@jit
def _pose(start, stop, moves, turns, rest, corners, bary, loose, home, quats, means_out, quats_out):
    """Gaussians start..stop-1 of one frame: moves, turns (V, 3) of the vertices `rest` (V, 3); see `aa.canonical.animate`."""
    r, q, own = np.empty(3, np.float32), np.empty(4, np.float32), np.empty(4, np.float32)
    arm = np.empty(3, np.float32)
    for n in range(start, stop):
        i, j, k = corners[n]
        a, b, c = bary[n]
        out = means_out[n]
        for d in range(3):
            r[d] = a * turns[i, d] + b * turns[j, d] + c * turns[k, d]
            out[d] = home[n, d] + a * moves[i, d] + b * moves[j, d] + c * moves[k, d]
            arm[d] = home[n, d] - (a * rest[i, d] + b * rest[j, d] + c * rest[k, d])
        _quat(r, q)
        if loose[n]:
            for m in range(3):
                v = corners[n, m]
                _quat(turns[v], own)
                _swing(own, home[n, 0] - rest[v, 0], home[n, 1] - rest[v, 1], home[n, 2] - rest[v, 2], bary[n, m], out)
        else:
            _swing(q, arm[0], arm[1], arm[2], ONE, out)
        w, x, y, z = quats[n]
        o = quats_out[n]
        o[0] = q[0] * w - q[1] * x - q[2] * y - q[3] * z
        o[1] = q[0] * x + q[1] * w + q[2] * z - q[3] * y
        o[2] = q[0] * y - q[1] * z + q[2] * w + q[3] * x
        o[3] = q[0] * z + q[1] * y - q[2] * x + q[3] * w


@jit
def _compose(start, stop, image, alpha, behind, out):
    """Lines start..stop-1 of image + (1 - alpha) behind as bytes, in one pass."""
    for y in range(start, stop):
        for x in range(image.shape[1]):
            through = ONE - alpha[y, x, 0]
            for c in range(3):
                value = image[y, x, c] + through * behind[y, x, c]
                out[y, x, c] = np.uint8(min(max(value, np.float32(0)), ONE) * np.float32(255) + HALF)


class Player:
    """Poses and renders an avatar.

    Args: avatar; transfer, from the template body (V, 3) to the avatar; behind (H, W, 3) in [0, 1], what is seen beyond the person.
    """

    def __init__(self, avatar: Avatar, transfer: Transfer, behind: torch.Tensor):
        self.avatar, self.behind = avatar, behind.float().contiguous()
        self.cpu = avatar.vertices.device.type == "cpu"
        used = torch.cat([avatar.corners.flatten(), transfer.nodes]).unique()
        self.used, self.transfer = used, transfer.select(used)
        place = torch.empty(len(avatar.vertices), dtype=torch.long, device=used.device)
        place[used] = torch.arange(len(used), device=used.device)
        self.corners, self.rest = place[avatar.corners], avatar.vertices[used]
        self.scales, self.opacities = avatar.gaussians.scales, avatar.gaussians.opacities

    @torch.no_grad()
    def poses(self, motion: Deformation) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Means (N, 3) m and quats (N, 4) for each frame of motion (T, V, 3) of the template body."""
        motion = self.transfer(Deformation(motion.means[:, self.used], motion.rotvecs[:, self.used]))
        for moves, turns in zip(motion.means, motion.rotvecs):
            yield self._pose(moves, turns) if self.cpu else self._pose_torch(moves, turns)

    def _pose_torch(self, moves, turns):
        wide = torch.zeros(2, len(self.avatar.vertices), 3, device=moves.device)
        wide[0, self.used], wide[1, self.used] = moves, turns
        means, quats = animate(self.avatar, Deformation(wide[:1], wide[1:]))
        return means[0], quats[0]

    def _pose(self, moves, turns):
        g, (n, threads) = self.avatar.gaussians, (len(self.corners), torch.get_num_threads())
        means, quats = np.empty((n, 3), np.float32), np.empty((n, 4), np.float32)
        given = (moves, turns, self.rest, self.corners, self.avatar.bary, self.avatar.loose, g.means, g.quats)
        arrays = [x.contiguous().numpy() for x in given]
        run_parallel(
            lambda k: _pose(k * CHUNK, min(k * CHUNK + CHUNK, n), *arrays, means, quats), -(-n // CHUNK), threads
        )  # fmt: skip
        return torch.from_numpy(means), torch.from_numpy(quats)

    @torch.no_grad()
    def picture(self, means, quats, viewmat=None, K=None, behind=None) -> np.ndarray:
        """One frame (H, W, 3) uint8, by default from the photo's camera and over `self.behind`; viewmat (4, 4), K (3, 3)."""
        a, g = self.avatar, self.avatar.gaussians
        viewmat, K = a.viewmat if viewmat is None else viewmat, a.K if K is None else K
        behind = self.behind if behind is None else behind
        height, width = behind.shape[:2]
        image, alpha, _ = rasterize(
            means, quats, self.scales, self.opacities, g.colors, viewmat[None], K[None], width, height
        )  # fmt: skip
        if not self.cpu:
            picture = image[0] + (1 - alpha[0]) * behind
            return (picture.clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu().numpy()
        out = np.empty((height, width, 3), np.uint8)
        arrays = [x.contiguous().numpy() for x in (image[0], alpha[0], behind)]
        tasks = -(-height // ROWS)
        run_parallel(
            lambda k: _compose(k * ROWS, min(k * ROWS + ROWS, height), *arrays, out), tasks, torch.get_num_threads()
        )  # fmt: skip
        return out

    def frames(self, chunks: Iterator[Deformation]) -> Iterator[np.ndarray]:
        """Pictures (H, W, 3) uint8 of motion that arrives in chunks (T, V, 3), one after the other: memory stays constant."""
        for chunk in chunks:
            for means, quats in self.poses(chunk):
                yield self.picture(means, quats)

"""A person seen close: from coordinates of motion to small pictures of a crop, differentiable and cheap enough for every step.

A crop is only another K. Only particles inside it are posed, each by the one vertex nearest to it (a tenth of a pixel at this size
is a millimetre), and only those vertices are decoded and transferred: nine pictures of a face cost some tens of milliseconds, and
gradients go back to decoder, refiner and diffusion Transformer.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aa.body import Body, quat_multiply, rotvec_to_matrix, rotvec_to_quat
from aa.errors import InputError
from aa.fit_losses import neighbour_pairs
from aa.gaussians import Gaussians, Layout, project
from aa.parts import Basis
from aa.posing import rotate
from aa.raster import rasterize
from aa.transfer import Transfer

MARGIN = 0.15  # of the crop's side: so far outside particles are kept, since they may move in
FRAME_VERTICES = 60  # of each rigid frame (head, neck, palms): a rigid fit needs no more
SOFT = ("lips", "mouth", "tongue", "teeth", "eyelid", "eye_cavity", "eye")  # where neighbours may part: mouth and lids open
LOOKS = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.35), (0.0, 0.0, -0.35), (0.2, 0.0, 0.0), (-0.2, 0.0, 0.0))  # rad, how heads turn in talk
SEEN = 0.02  # px, summed over these
SOFTNESS = 0.1  # weight of distances there
NEIGHBOURS = 6
EPS2D = 0.1  # px^2: at this size the usual 0.3 blurs eyes and mouth away


@dataclass(frozen=True)
class Person:
    """N Gaussians and which vertices of a body at rest (V, 3) they follow."""

    gaussians: Gaussians
    corners: Tensor  # (N, 3) vertices that carry each Gaussian
    bary: Tensor  # (N, 3) their weights
    vertices: Tensor  # (V, 3) m

    @classmethod
    def of_avatar(cls, avatar) -> "Person":
        """A fitted avatar (`aa.canonical.Avatar`)."""
        return cls(avatar.gaussians, avatar.corners, avatar.bary, avatar.vertices)

    @classmethod
    def of_layout(cls, layout: Layout, vertices: Tensor, colors: Tensor) -> "Person":
        """The shared layout on a body at rest (V, 3), with colours (N, 3): particle i is row i of the layout."""
        return cls(layout.gaussians(vertices, colors), layout.corners, layout.bary, vertices)


class CloseUp:
    """A person in a crop of `size` x `size` px.

    Args: body; basis of the motion model; person; transfer from the template body at ease to the person, None: the person is the
        template itself; viewmat (4, 4), K (3, 3) of the crop (`aa.fit_footage.crop_camera`); behind (size, size, 3) in [0, 1] or
        one colour (3,); most: at most so many particles, the others thinned out and what is left made larger.
    `rows` (n,) says which particles of the person are in the crop. Tensors lie where the person's do.
    Raises: InputError when no particle is in the crop.
    """

    def __init__(
        self, body: Body, basis: Basis, person: Person, transfer: Transfer | None, viewmat, K, size: int = 64, behind=None,
        most: int = 2500,
    ):  # fmt: skip
        self.size, self.viewmat, self.K = size, viewmat, K
        device = person.vertices.device
        grey = torch.full((3,), 0.5, device=device)
        self.behind = (grey if behind is None else behind).expand(size, size, 3)
        soft = torch.isin(person.corners, body.region_vertices(*SOFT).to(device)).any(1)
        self.rows, growth = _in_crop(person, viewmat, K, size, most, soft)
        self.gaussians = Gaussians(*(x[self.rows] for x in vars(person.gaussians).values()))
        corners, bary = person.corners[self.rows], person.bary[self.rows]
        hold = corners.gather(1, bary.argmax(1, keepdim=True))[:, 0]
        needed = [*basis.parts.frames.values(), basis.parts.hand]  # without hands in sight their coordinates must still be read
        frames = [v[:: 1 + len(v) // FRAME_VERTICES] for v in needed]
        used = torch.cat([hold, *frames, *([] if transfer is None else [transfer.nodes])]).unique()
        self.hold = torch.searchsorted(used, hold)  # (n,) rows of `used`, which is sorted
        self.basis = basis.select(used)
        self.transfer = None if transfer is None else transfer.select(used)
        g = self.gaussians
        self.arm = g.means - person.vertices[hold]
        self.look = (g.scales * growth, g.opacities, g.colors)
        self.pairs, weight = neighbour_pairs(g.means, min(NEIGHBOURS, len(g) - 1))
        self.pair_weight = weight * torch.where(soft[self.rows][self.pairs].any(1), SOFTNESS, 1.0)
        self.spacing = float((g.means[self.pairs[:, 0]] - g.means[self.pairs[:, 1]]).norm(dim=1).mean())

    def pose(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates (T, K) of the motion basis -> means (T, n, 3) m and quats (T, n, 4) of the particles in the crop."""
        motion = self.basis.decode(coordinates)
        motion = motion if self.transfer is None else self.transfer(motion)
        quats = rotvec_to_quat(motion.rotvecs.index_select(1, self.hold))
        means = self.gaussians.means + motion.means.index_select(1, self.hold) + rotate(quats, self.arm) - self.arm
        return means, quat_multiply(quats, self.gaussians.quats.expand_as(quats))

    def picture(self, means: Tensor, quats: Tensor) -> Tensor:
        """Pictures (T, size, size, 3), about [0, 1], of means (T, n, 3) and quats (T, n, 4)."""
        T = len(means)
        views, Ks = self.viewmat.expand(T, 4, 4).contiguous(), self.K.expand(T, 3, 3).contiguous()
        image, alpha, _ = rasterize(means, quats, *self.look, views, Ks, self.size, self.size, eps2d=EPS2D)
        return image + (1 - alpha) * self.behind

    @torch.enable_grad()
    def polish(self, frames: Tensor, coordinates: Tensor, steps: int = 40) -> float:
        """Fit colours and radii to pictures (T, size, size, 3) whose motion (T, K) is known: few large particles look like many
        small ones. Each step sees nine frames evenly spread. Returns the mean absolute difference that is left."""
        with torch.no_grad():
            means, quats = self.pose(coordinates)
        scales, opacities, colors = self.look
        free = [scales.log().clone().requires_grad_(), colors.clone().requires_grad_()]
        adam = torch.optim.Adam([{"params": free[:1], "lr": 0.02}, {"params": free[1:], "lr": 0.01}])
        for n in range(steps):
            at = torch.linspace(0, len(frames) - 1, min(9, len(frames))).long()
            at = ((at + n) % len(frames)).sort().values
            self.look = (free[0].exp(), opacities, free[1])
            error = (self.picture(means[at], quats[at]) - frames[at]).abs().mean()
            adam.zero_grad()
            error.backward()
            adam.step()
        self.look = (free[0].detach().exp(), opacities, free[1].detach().clamp(0, 1))
        return error.item()

    def pixels(self, means: Tensor) -> Tensor:
        """Where the particles are seen, (T, n, 2) px of the crop."""
        return project(means, self.viewmat, self.K)[0]

    def strain(self, means: Tensor) -> Tensor:
        """Isometry (the paper's ARAP prior) between frames that follow each other: mean change of the distances of neighbours,
        softened at mouth and lids, in units of their mean distance."""
        a, b = self.pairs.T
        length = (means[:, a] - means[:, b]).square().sum(-1).add(1e-12).sqrt()  # (T, M)
        return (self.pair_weight * length.diff(dim=0).abs()).mean() / self.spacing

    def track(self, particle: Tensor) -> tuple[Tensor, Tensor]:
        """Tracks of particles (P,) of the person -> which of them (p,) are in the crop, and as which of its particles (p,)."""
        place = torch.full((int(max(self.rows.max(), particle.max())) + 1,), -1, device=self.rows.device)
        place[self.rows] = torch.arange(len(self.rows), device=self.rows.device)
        mine = place[particle]
        kept = (mine >= 0).nonzero()[:, 0]
        return kept, mine[kept]


def _in_crop(person: Person, viewmat: Tensor, K: Tensor, size: int, most: int, inner: Tensor) -> tuple[Tensor, Tensor]:
    """Particles (n,) that can be seen in the crop or near it, and the factors (n, 1) by which thinned out ones must grow.

    inner (N,) bool: mouth and eyes, which are kept though they may be hidden now, and are thinned out last.
    """
    pixels, depth = project(person.gaussians.means, viewmat, K)
    near = ((pixels > -MARGIN * size) & (pixels < (1 + MARGIN) * size)).all(1) & (depth > 0.01)
    rows = (near & (person.gaussians.opacities > 0.02)).nonzero()[:, 0]
    if len(rows) < 2:
        raise InputError("none of the person's particles is in the crop: give a K and viewmat that show the face.")
    some = Gaussians(*(x[rows] for x in vars(person.gaussians).values()))
    rows = rows[inner[rows] | (_weight(some, viewmat, K, size) > SEEN)]
    within, around = rows[inner[rows]], rows[~inner[rows]]
    room = min(len(within), max(most // 2, most - len(around)))
    parts = [_thinned(within, room), _thinned(around, most - room)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _thinned(rows: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """At most so many of rows (n,), and the factor (m, 1) by which each must grow to cover as much."""
    n = min(len(rows), most)
    at = torch.linspace(0, max(len(rows) - 1, 0), n, device=rows.device).long()  # in the list, neighbours lie far from each other
    return rows[at], torch.full((n, 1), math.sqrt(len(rows) / max(n, 1)), device=rows.device)


@torch.enable_grad()
def _weight(gaussians: Gaussians, viewmat: Tensor, K: Tensor, size: int) -> Tensor:
    """How many pixels each particle (n,) fills, summed over the camera and others from which a turned head looks the same: the
    derivative of the picture by its colour."""
    turns = rotvec_to_matrix(torch.tensor(LOOKS, device=viewmat.device))  # (L, 3, 3)
    centre = gaussians.means.mean(0)
    around = torch.eye(4, device=viewmat.device).repeat(len(turns), 1, 1)
    around[:, :3, :3], around[:, :3, 3] = turns, centre - turns @ centre
    views, Ks = viewmat @ around, K.expand(len(turns), 3, 3).contiguous()
    white = torch.ones(len(gaussians), 1, device=viewmat.device, requires_grad=True)
    image, _, _ = rasterize(
        gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, white, views, Ks, size, size
    )  # fmt: skip
    return torch.autograd.grad(image.sum(), white)[0][:, 0]

"""Photometric refinement: colours, sizes and opacities of the particles that the photo shows, held close to their first guess."""

import cv2
import numpy as np
import torch

from aa.gaussians import Gaussians
from aa.particles import Particles
from aa.raster import rasterize
from aa.view import View, project

LARGER = 0.2  # greatest change of a log size
SLIDE = 0.7  # radii by which a particle may move along the surface


def refine(cloud: Particles, view: View, background: np.ndarray, iterations: int, seed: int = 0) -> Gaussians:
    """Gaussians whose picture over the background meets the photo; particles with `seen` false are not touched."""
    g = Gaussians(cloud.means.clone(), cloud.quats.clone(), cloud.scales.log(), torch.logit(cloud.opacities), cloud.colors.clone())
    seen = cloud.seen.nonzero()[:, 0]
    if iterations < 1 or len(seen) == 0:
        return g
    w, h = view.size
    behind = torch.from_numpy(background).float() / 255
    mask = torch.from_numpy(view.mask)[..., None]
    target = mask * torch.from_numpy(view.front) + (1 - mask) * behind
    weight = torch.from_numpy(cv2.dilate(view.mask, np.ones((9, 9), np.uint8)))[..., None] * 1.0
    color = g.colors[seen].clone().requires_grad_(True)
    log_size = torch.zeros(len(seen), 3, requires_grad=True)
    logit = torch.zeros(len(seen), requires_grad=True)
    slide = torch.zeros(len(seen), 2, requires_grad=True)  # along the disc's own axes, in its radii
    axes = quat_to_matrix(g.quats[seen])[:, :, :2] * g.scales[seen][:, None, :2]
    rates = ((color, 0.02), (log_size, 0.02), (logit, 0.05), (slide, 0.03))
    optimiser = torch.optim.Adam([{"params": [x], "lr": lr} for x, lr in rates], betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations, 0.002)
    first, bounds = g.colors[seen], _bounds(cloud, view, seen)
    put = lambda whole, part: whole.index_put((seen,), part)  # noqa: E731
    for _ in range(iterations):
        scales = put(g.log_scales, g.log_scales[seen] + log_size).exp()
        opacities = put(g.opacity_logits, g.opacity_logits[seen] + logit).sigmoid()
        means = put(g.means, g.means[seen] + (axes @ slide[..., None])[..., 0])
        cameras = view.viewmat[None], view.K[None]
        image, alpha, _ = rasterize(means, g.quats, scales, opacities, put(g.colors, color), *cameras, w, h)
        composed = image[0] + (1 - alpha[0]) * behind
        loss = (weight * ((composed - target).abs() + 0.3 * (alpha[0] - mask).abs())).sum()
        prior = (
            (bounds[2][:, None] * (color - first).square()).sum()
            + log_size.square().sum()
            + 0.5 * slide.square().sum()
            + 0.1 * logit.square().sum()
        )
        optimiser.zero_grad()
        (loss + prior).backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            color.copy_(color.clamp(0, 1).maximum(first - bounds[3][:, None]).minimum(first + bounds[3][:, None]))
            slide.clamp_(-SLIDE, SLIDE)
            log_size.copy_(log_size.maximum(bounds[0][:, None]).clamp(max=LARGER))
            logit.copy_(logit.maximum(bounds[1]).clamp(max=2))
    with torch.no_grad():
        sizes, logits = g.log_scales[seen] + log_size, g.opacity_logits[seen] + logit
        means = put(g.means, g.means[seen] + (axes @ slide[..., None])[..., 0])
        return Gaussians(means, g.quats, put(g.log_scales, sizes), put(g.opacity_logits, logits), put(g.colors, color))


def quat_to_matrix(q) -> torch.Tensor:
    """Rotation matrices (n, 3, 3) of quaternions (n, 4) wxyz."""
    w, x, y, z = torch.nn.functional.normalize(q, dim=-1).unbind(-1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y), 2 * (x * y + w * z), 1 - 2 * (x * x + z * z)]
    rows += [2 * (y * z - w * x), 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def _bounds(cloud: Particles, view: View, seen):
    """Least change of log size and of opacity logit, strength of the colour prior, greatest change of colour; (n,) each.

    Only at the outline may a particle shrink or fade, and there the photo says little about its colour.

    Holes that open inside show nothing at the fit's own view and let hidden layers through at every other.
    """
    pixels, _ = project(cloud.means[seen], view.viewmat, view.K)
    w, h = view.size
    x, y = (pixels[:, i].astype(int).clip(0, n - 1) for i, n in ((0, w), (1, h)))
    edge = torch.from_numpy(cv2.GaussianBlur((view.mask > 0.5).astype(np.float32), (0, 0), 1.5)[y, x] < 0.97)
    return torch.where(edge, -0.6, -0.25), torch.where(edge, -4.0, -0.3), torch.where(edge, 5.0, 0.1), torch.where(edge, 0.06, 0.25)

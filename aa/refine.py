"""Photometric refinement: colours, sizes and opacities of the particles that the photo shows, held close to their first guess.

The photo alone would be met best by particles that look right from its camera only: see aa.pseudo for the cure.
"""

import cv2
import numpy as np
import torch

from aa.body import quat_to_matrix
from aa.gaussians import Gaussians
from aa.particles import Particles
from aa.pseudo import Shot
from aa.raster import rasterize
from aa.view import View, project

LARGER = 0.4  # greatest change of a log size
SLIDE = 0.7  # radii by which a particle may move along the surface


def refine(cloud: Particles, view: View, background: np.ndarray, iterations: int, seed: int = 0, others=()) -> Gaussians:
    """Gaussians whose picture over the background meets the photo; particles with `seen` false are not touched.

    others: pictures of the same particles (aa.pseudo.Shot), of which each step adds one drawn at random.
    """
    g = Gaussians(cloud.means.clone(), cloud.quats.clone(), cloud.scales.log(), torch.logit(cloud.opacities), cloud.colors.clone())
    seen = cloud.seen.nonzero()[:, 0]
    if iterations < 1 or len(seen) == 0:
        return g
    photo, rng = the_photo(cloud, view, background), np.random.default_rng(seed)
    color = g.colors[seen].clone().requires_grad_(True)
    log_size = torch.zeros(len(seen), 3, requires_grad=True)
    logit = torch.zeros(len(seen), requires_grad=True)
    slide = torch.zeros(len(seen), 2, requires_grad=True)  # along the disc's own axes, in its radii
    rates = ((color, 0.02), (log_size, 0.02), (logit, 0.05), (slide, 0.03))
    optimiser = torch.optim.Adam([{"params": [x], "lr": lr} for x, lr in rates], betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations, 0.002)
    bounds = _bounds(cloud, view, seen)
    for _ in range(iterations):
        loss = _prior(color - g.colors[seen], log_size, logit, slide, bounds)
        changed = _changed(g, seen, color, log_size, logit, slide)
        for shot in (photo, *([others[rng.integers(len(others))]] if len(others) else [])):
            loss = loss + _miss(shot, changed, seen, g)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            _clamp(g.colors[seen], color, log_size, logit, slide, bounds)
    with torch.no_grad():
        return _changed(g, seen, color, log_size, logit, slide)


def the_photo(cloud: Particles, view: View, background) -> Shot:
    """The photo, and beside the person the background, to be met; less so where skin aslant has other colours: others would make up
    for it."""
    behind, mask = torch.from_numpy(background).float() / 255, torch.from_numpy(view.mask)[..., None]
    target = torch.where(mask > 0.5, torch.from_numpy(view.image), mask * torch.from_numpy(view.front) + (1 - mask) * behind)
    weight = torch.from_numpy(cv2.dilate(view.mask, np.ones((9, 9), np.uint8)))[..., None]
    other = cloud.aslant[:, None].expand(-1, 3).contiguous()
    place = (view.viewmat[None], view.K[None], *view.size)
    aslant, _, _ = rasterize(cloud.means, cloud.quats, cloud.scales, cloud.opacities, other, *place)
    weight = weight * (1 - aslant[0, ..., :1].detach()).clamp(0, 1)
    return Shot(cloud.means, cloud.quats, None, view.viewmat, view.K, target, weight, mask, behind)


def _changed(g: Gaussians, seen, color, log_size, logit, slide) -> Gaussians:
    """The Gaussians with changes to those at the indices `seen`."""
    axes = quat_to_matrix(g.quats[seen])[:, :, :2] * g.scales[seen][:, None, :2]
    put = lambda whole, part: whole.index_put((seen,), part)  # noqa: E731
    means = put(g.means, g.means[seen] + (axes @ slide[..., None])[..., 0])
    sizes, logits = g.log_scales[seen] + log_size, g.opacity_logits[seen] + logit
    return Gaussians(means, g.quats, put(g.log_scales, sizes), put(g.opacity_logits, logits), put(g.colors, color))


def _miss(shot: Shot, now: Gaussians, seen, first: Gaussians) -> torch.Tensor:
    """How far the picture of the Gaussians is from the one to be met."""
    means = now.means
    if shot.turn is not None:
        moved = (shot.turn[seen] @ (now.means[seen] - first.means[seen])[..., None])[..., 0]
        means = shot.means.index_put((seen,), shot.means[seen] + moved)
    h, w = shot.target.shape[:2]
    image, alpha, _ = rasterize(
        means, shot.quats, now.scales, now.opacities, now.colors, shot.viewmat[None], shot.K[None], w, h
    )  # fmt: skip
    composed = image[0] + (1 - alpha[0]) * shot.behind
    return (shot.weight * ((composed - shot.target).abs() + 0.3 * (alpha[0] - shot.cover).abs())).sum()


def _prior(change, log_size, logit, slide, bounds) -> torch.Tensor:
    """Price of leaving the first guess."""
    return (
        (bounds[2][:, None] * change.square()).sum()
        + log_size.square().sum()
        + 0.5 * slide.square().sum()
        + 0.1 * logit.square().sum()
    )


def _clamp(first, color, log_size, logit, slide, bounds) -> None:
    """Keep all changes within their bounds. In place."""
    color.copy_(color.clamp(0, 1).maximum(first - bounds[3][:, None]).minimum(first + bounds[3][:, None]))
    slide.copy_(slide.maximum(-bounds[4][:, None]).minimum(bounds[4][:, None]))
    log_size.copy_(log_size.maximum(bounds[0][:, None]).clamp(max=LARGER))
    logit.copy_(logit.maximum(bounds[1]).clamp(max=2))


def _bounds(cloud: Particles, view: View, seen):
    """Least change of log size and of opacity logit, strength of the colour prior, greatest change of colour and slide; (n,) each.

    Only at the outline may a particle shrink or fade, and there the photo says little about its colour. Holes that open inside
    show nothing at the fit's own view and let hidden layers through at every other. Firm particles hardly change at all.
    """
    pixels, _ = project(cloud.means[seen], view.viewmat, view.K)
    w, h = view.size
    x, y = (pixels[:, i].astype(int).clip(0, n - 1) for i, n in ((0, w), (1, h)))
    edge = torch.from_numpy(cv2.GaussianBlur((view.mask > 0.5).astype(np.float32), (0, 0), 1.5)[y, x] < 0.97)
    firm = cloud.firm[seen]
    blend = lambda free, held: free + firm * (held - free)  # noqa: E731
    choose = lambda at_edge, inside: torch.where(edge, at_edge, inside)  # noqa: E731
    return (
        blend(choose(-0.6, -0.25), -0.05), blend(choose(-4.0, -0.3), -0.1), blend(choose(5.0, 0.1), 2.0),
        blend(choose(0.06, 0.25), 0.1), SLIDE * (1 - firm),
    )  # fmt: skip

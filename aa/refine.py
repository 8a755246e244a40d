"""Photometric refinement: colours, sizes and opacities of the particles that the photo shows, held close to their first guess."""

import math

import cv2
import numpy as np
import torch

from aa.gaussians import Gaussians
from aa.paint import View
from aa.particles import Particles
from aa.raster import rasterize


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
    optimiser = torch.optim.Adam(
        [{"params": [color], "lr": 0.02}, {"params": [log_size], "lr": 0.02}, {"params": [logit], "lr": 0.05}], betas=(0.9, 0.95)
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations, 0.002)
    first = g.colors[seen]
    put = lambda whole, part: whole.index_put((seen,), part)  # noqa: E731
    for _ in range(iterations):
        scales = put(g.log_scales, g.log_scales[seen] + log_size).exp()
        opacities = put(g.opacity_logits, g.opacity_logits[seen] + logit).sigmoid()
        image, alpha, _ = rasterize(
            g.means, g.quats, scales, opacities, put(g.colors, color), view.viewmat[None], view.K[None], w, h
        )
        composed = image[0] + (1 - alpha[0]) * behind
        loss = (weight * ((composed - target).abs() + 0.3 * (alpha[0] - mask).abs())).mean() * 3
        prior = 2e-3 * (color - first).square().mean() + 1e-3 * log_size.square().mean() + 1e-4 * logit.square().mean()
        optimiser.zero_grad()
        (loss + prior).backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            color.copy_(color.clamp(0, 1).clamp(first - 0.25, first + 0.25))
            log_size.clamp_(-math.log(2.0), math.log(1.4))
            logit.clamp_(-3, 2)
    with torch.no_grad():
        return Gaussians(
            g.means, g.quats, put(g.log_scales, g.log_scales[seen] + log_size), put(g.opacity_logits, g.opacity_logits[seen] + logit),
            put(g.colors, color),
        )  # fmt: skip

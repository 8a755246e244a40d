"""Colours over time: what is left between a fitted motion's pictures and the video, taken back to the particles.

A picture is linear in the colours, I = A c with the splatting weights A, so the residual r goes back by one step of simultaneous
iterative reconstruction (SIRT, Gilbert 1972): dc = A^T r / A^T 1. Sums over neighbouring frames make it smooth in time and fill in
frames in which a particle is hidden or that were held out. Highlights that wander over skin, creases, teeth and strands of hair are
such colours; they are part of dG_t, but motion must not hide in them: their size is bounded.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from aa.raster import rasterize

FRAMES = 0.8  # standard deviation in frames of the smoothing over time
RIDGE = 0.2  # pixels of weight that count for no change
MOST = 0.7  # greatest change of a colour in [0, 1]
RELAX = 1.7  # of a step; SIRT converges below 2


def back_project(look, viewmat, K, frame, behind) -> tuple[torch.Tensor, torch.Tensor]:
    """A^T r (N, 3) and A^T 1 (N,) of Gaussians (means, quats, scales, opacities, colours) against a frame (H, W, 3) in [0, 1]."""
    *shape, colors = look
    table = torch.cat([colors, torch.ones_like(colors[:, :1])], 1).detach().requires_grad_()
    height, width = frame.shape[:2]
    with torch.enable_grad():
        image, alpha, _ = rasterize(*shape, table, viewmat[None], K[None], width, height)
    residual = frame - (image[0, ..., :3] + (1 - alpha[0]) * behind).detach()
    weight = torch.cat([residual, torch.ones_like(residual[..., :1])], -1)
    (grad,) = torch.autograd.grad(image, table, weight[None])
    return grad[:, :3], grad[:, 3]


@dataclass(frozen=True)
class Shots:
    """What `recolour` compares: the Gaussians of each frame and the frames, all of one camera.

    at(t) -> means (N, 3), quats, scales, colours; target(t) and behind(t) -> (H, W, 3) in [0, 1]; used (n,): frames to learn from.
    """

    at: Callable
    opacities: torch.Tensor
    target: Callable
    behind: Callable
    viewmat: torch.Tensor
    K: torch.Tensor
    used: np.ndarray
    count: int  # frames in all, T

    @classmethod
    def of(cls, fit, footage) -> "Shots":
        """A `Fit` against the `Footage` it was fitted to (aa.deformation, aa.fit_footage)."""
        behind = footage.background.expand(*footage.frames.shape[1:])
        T = len(footage.frames)
        return cls(
            fit.at,
            fit.gaussians.opacities,
            footage.frames.__getitem__,
            lambda t: behind,
            footage.viewmat,
            footage.K,
            np.arange(T),
            T,
        )


def recolour(shots: Shots, rounds: int = 2, most: float = MOST, progress: bool = True) -> torch.Tensor:
    """Colours (T, N, 3) to add to those of the shots, each at most `most` off."""
    from scipy.ndimage import gaussian_filter1d

    T, N = shots.count, len(shots.opacities)
    tint = torch.zeros(T, N, 3)
    smooth = lambda x: torch.from_numpy(gaussian_filter1d(x, FRAMES, axis=0, mode="constant"))  # noqa: E731
    with tqdm(total=rounds * len(shots.used), desc="colours", disable=not progress) as bar:
        for k in range(rounds):
            sums, weights = np.zeros((T, N, 3), np.float32), np.zeros((T, N, 1), np.float32)
            for t in (int(t) for t in shots.used):
                means, quats, scales, colors = shots.at(t)
                look = (means, quats, scales, shots.opacities, colors + tint[t])
                back, weight = back_project(look, shots.viewmat, shots.K, shots.target(t), shots.behind(t))
                sums[t], weights[t] = back.numpy(), weight[:, None].numpy()
                bar.update()
            if k == 0:  # first what is wrong in all frames
                tint += torch.from_numpy(sums.sum(0) / (weights.sum(0) + RIDGE))
                sums -= weights * tint.numpy()
            tint += RELAX * smooth(sums) / (smooth(weights) + RIDGE / 4)
            tint.clamp_(-most, most)
    return tint

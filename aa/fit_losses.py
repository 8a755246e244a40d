"""The terms of the 4DGS fit: trajectories (Eq. 3), isometry (the paper's ARAP prior, Sec. 3.3) and D-SSIM."""

import numpy as np
import torch

ROBUST = 0.02  # weight of the robust trajectory loss relative to the squared one: they pull alike at 1% of the picture's side


def trajectory_loss(pixels, tracks, visible, larger_side: int, robust: bool = False) -> torch.Tensor:
    """Eq. 3, masked and divided by the larger image side so that its weight does not depend on resolution.

    Args: pixels, tracks (..., P, 2); visible (..., P) bool; robust: L1 instead of squares (as in Shape of Motion).
    """
    error = (pixels - tracks) / larger_side
    error = error.abs().sum(-1) if robust else error.square().sum(-1)
    return (error * visible).sum() / visible.sum().clamp_min(1)


def edge_lengths(points, pairs) -> torch.Tensor:
    """Distances (..., M) between pairs (M, 2) of points (..., N, 3)."""
    return (points[..., pairs[:, 0], :] - points[..., pairs[:, 1], :]).square().sum(-1).add(1e-12).sqrt()


def isometry_loss(now, then, pairs, weight) -> torch.Tensor:
    """Distance-preserving prior between neighbours at two moments: mean of w | ||x_i - x_j||_t - ||x_i - x_j||_t' |.

    Args: now, then (..., N, 3) m; pairs (M, 2); weight (M,). Source: Dynamic 3D Gaussians (`iso`), the paper's ARAP prior.
    """
    return (weight * (edge_lengths(now, pairs) - edge_lengths(then, pairs)).abs()).mean()


def neighbour_pairs(points: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs (M, 2) of k nearest neighbours, each once, and weights (M,) that fall with the distance relative to its mean."""
    from scipy.spatial import cKDTree

    x = points.detach().cpu().numpy()
    index = cKDTree(x).query(x, k=k + 1)[1]
    pairs = np.stack([np.repeat(np.arange(len(index)), k), index[:, 1:].ravel()], 1)
    pairs = np.unique(np.sort(pairs, 1), axis=0)
    distance = np.linalg.norm(x[pairs[:, 0]] - x[pairs[:, 1]], axis=1)
    weight = np.exp(-((distance / distance.mean()) ** 2) / 4)
    return torch.as_tensor(pairs, device=points.device), torch.as_tensor(weight, dtype=points.dtype, device=points.device)


def dssim(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(1 - SSIM) / 2 of pictures (B, H, W, 3) in [0, 1], with Gaussian windows of 11 px (Wang et al. 2004)."""
    at = torch.arange(11, dtype=image.dtype, device=image.device) - 5
    g = torch.exp(-(at**2) / (2 * 1.5**2))
    window = torch.outer(g, g)[None, None] / g.sum() ** 2
    blur = lambda x: torch.nn.functional.conv2d(x.permute(0, 3, 1, 2).flatten(0, 1)[:, None], window)  # noqa: E731
    a, b = blur(image), blur(target)
    va, vb, ab = blur(image**2) - a**2, blur(target**2) - b**2, blur(image * target) - a * b
    ssim = ((2 * a * b + 0.01**2) * (2 * ab + 0.03**2)) / ((a**2 + b**2 + 0.01**2) * (va + vb + 0.03**2))
    return (1 - ssim.mean()) / 2

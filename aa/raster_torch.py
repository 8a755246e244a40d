"""The rasteriser in plain PyTorch, on any device: slow, short, and the reference that the fast kernels are tested against.

Splatting: Zwicker et al. 2002; compositing: Kerbl et al. 2023, eq. 2-3; constants and clamps of gsplat 1.5.3.
"""

import torch
from torch.utils.checkpoint import checkpoint

from aa.raster_project import ALPHA_MAX, ALPHA_MIN, BORDER, EXTENT, T_STOP


def project_torch(means, quats, scales, opacities, viewmats, Ks, frame):
    """EWA splats of Gaussians (1 or C, N, ...): means2d (C, N, 2), depths (C, N), conics (C, N, 3), radii (C, N, 2) int32."""
    width, height, near, far, eps2d = frame
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    R = torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
                     2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
                     2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1)  # fmt: skip
    W, t = viewmats[:, None, :3, :3], viewmats[:, None, :3, 3]
    M = W @ (R.unflatten(-1, (3, 3)) * scales[..., None, :])  # (C, N, 3, 3), M M^T is the covariance in camera axes
    points = (W @ means[..., None])[..., 0] + t  # (C, N, 3)
    in_range = (points[..., 2] >= near) & (points[..., 2] <= far) & (quats != 0).any(-1)
    points = torch.where(in_range[..., None], points, points.new_tensor([0.0, 0.0, 1.0]))
    focal, centre, depths = Ks[:, None, [0, 1], [0, 1]], Ks[:, None, :2, 2], points[..., 2]
    size = means.new_tensor([width, height])
    slopes = points[..., :2] / depths[..., None]
    means2d = focal * slopes + centre
    border = BORDER * size / focal
    slopes = slopes.clamp(-centre / focal - border, (size - centre) / focal + border)
    # rows of the Jacobian: (f / z) (1, 0, -x/z) and (f / z) (0, 1, -y/z)
    U = (focal / depths[..., None])[..., None] * (M[..., :2, :] - slopes[..., None] * M[..., 2:, :])  # (C, N, 2, 3)
    cov = U @ U.mT + eps2d * torch.eye(2, dtype=U.dtype, device=U.device)
    xx, xy, yy = cov[..., 0, 0], cov[..., 0, 1], cov[..., 1, 1]
    det = xx * yy - xy * xy
    conics = torch.stack([yy, -xy, xx], -1) / det[..., None]
    extent = (2 * (opacities * 255).clamp(min=1).log()).sqrt().clamp(max=EXTENT)
    radii = (extent[..., None] * torch.stack([xx, yy], -1).sqrt()).ceil().detach()
    inside = ((means2d + radii > 0) & (means2d - radii < size)).all(-1)
    visible = in_range & inside & (det > 0) & (opacities >= ALPHA_MIN)
    radii = torch.where(visible[..., None], radii, 0).int()
    seen = visible[..., None]
    return torch.where(seen, means2d, 0), torch.where(visible, depths, 0), torch.where(seen, conics, 0), radii


def composite_torch(means2d, conics, opacities, colors, backgrounds, depths, radii, width, height, block=32):
    """Images (C, H, W, D) and alphas (C, H, W), front to back, in blocks of pixels with the Gaussians that they can see."""
    C, N = depths.shape
    opacities, colors = opacities.expand(C, N), colors.expand(C, N, -1)
    images = []
    for c in range(C):
        order = torch.argsort(torch.where(radii[c, :, 0] > 0, depths[c], torch.inf), stable=True)
        order = order[: int((radii[c, :, 0] > 0).sum())]
        splats = torch.cat([means2d[c], conics[c], opacities[c, :, None], colors[c]], -1)[order]  # (n, 6 + D)
        low, high = splats[:, :2] - radii[c, order], splats[:, :2] + radii[c, order]
        bands = []
        for y in range(0, height, block):
            for x in range(0, width, block):
                corner = means2d.new_tensor([x, y])
                near = ((high > corner) & (low < corner + block)).all(-1)
                shape = (min(block, height - y), min(block, width - x))
                bands.append(checkpoint(composite_block, splats[near], x, y, shape, use_reentrant=False))
        rows = [torch.cat(bands[i : i + -(-width // block)], 1) for i in range(0, len(bands), -(-width // block))]
        images.append(torch.cat(rows))
    images = torch.stack(images)  # (C, H, W, D + 1), the last channel is the transmittance
    rest = images[..., -1:]
    return images[..., :-1] + rest * backgrounds[:, None, None], 1 - rest[..., 0]


def composite_block(splats, x, y, shape):
    """Colours and final transmittance (h, w, D + 1) of the pixels from (x, y) on; splats (n, 6 + D) sorted by depth."""
    ys, xs = (torch.arange(s, dtype=splats.dtype, device=splats.device) + 0.5 for s in shape)
    dx, dy = (xs + x)[None, None] - splats[:, 0, None, None], (ys + y)[None, :, None] - splats[:, 1, None, None]
    a, b, c, opacity = splats[:, 2:6, None, None].unbind(1)
    alpha = (opacity * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)).clamp(max=ALPHA_MAX)
    alpha = torch.where(alpha >= ALPHA_MIN, alpha, 0)  # (n, h, w)
    alpha = torch.where(torch.cumprod(1 - alpha, 0) > T_STOP, alpha, 0)  # a pixel stops before it becomes opaque
    after = torch.cat([alpha.new_ones(1, *shape), torch.cumprod(1 - alpha, 0)])  # light left before each, and at the end
    return torch.cat([torch.einsum("nhw,nd->hwd", after[:-1] * alpha, splats[:, 6:]), after[-1, ..., None]], -1)

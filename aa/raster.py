"""Differentiable Gaussian rasteriser with the semantics of gsplat 1.5.3 `rasterization` (classic EWA splatting).

`rasterize` picks the back-end by the device of `means`: numba kernels with analytic gradients on the CPU
(`raster_cpu.py`), gsplat on CUDA where it is usable, else the readable PyTorch version below, which is also the
reference of the tests. Splatting: Zwicker et al. 2002; compositing: Kerbl et al. 2023, eq. 2-3.
"""

import sys
from functools import lru_cache

import torch
from torch.utils.checkpoint import checkpoint

from aa.errors import InputError
from aa.raster_cpu import CompileNotice, Composite, Project
from aa.raster_numba import ALPHA_MAX, T_STOP
from aa.raster_project import ALPHA_MIN, BORDER, EXTENT

MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")


def rasterize(
    means, quats, scales, opacities, colors, viewmats, Ks, width, height,
    near_plane=0.01, far_plane=1e10, eps2d=0.3, render_mode="RGB", backgrounds=None,
):  # fmt: skip
    """Render N Gaussians from C cameras; differentiable in every tensor but Ks.

    Args:
        means: (N, 3) centres, or (C, N, 3): one set per camera (frames of an animation in one call). The same choice
            is open for quats, scales and opacities, independently.
        quats: (N, 4) wxyz, need not be normalised. scales: (N, 3) > 0, standard deviations. opacities: (N,) in [0, 1].
        colors: (N, D) or (C, N, D), any D >= 1. viewmats: (C, 4, 4) world to camera, OpenCV axes.
        Ks: (C, 3, 3) in pixels, pixel centres at +0.5. near_plane, far_plane: bounds on camera z.
        eps2d: pixels^2 added to the diagonal of the 2D covariance.
        render_mode: "RGB" colours; "D" accumulated depth; "ED" expected depth; "RGB+D", "RGB+ED" both.
        backgrounds: (C, D) or None for black; depth channels have background 0.
    Returns:
        renders (C, H, W, D'), alphas (C, H, W, 1), and meta: means2d (C, N, 2) pixels, depths (C, N), conics (C, N, 3)
        (inverse 2D covariance xx, xy, yy), all differentiable and 0 where culled (gsplat leaves such entries undefined),
        radii (C, N, 2) int32, 0 where culled.
    Raises:
        InputError: shapes, dtypes or devices that do not fit, or an unknown render_mode.
    """
    arguments = (means, quats, scales, opacities, colors, viewmats, Ks)
    _check(*arguments, width, height, render_mode, backgrounds)
    settings = (int(width), int(height), near_plane, far_plane, eps2d, render_mode, backgrounds)
    if means.device.type == "cpu":
        _warm_up(means.dtype)
        return _render(Project.apply, Composite.apply, *arguments, *settings)
    if means.device.type == "cuda" and means.dtype == torch.float32:
        gsplat_rasterization = _gsplat()
        if gsplat_rasterization is not None:
            return _render_gsplat(gsplat_rasterization, *arguments, *settings)
    return _render(project_torch, composite_torch, *arguments, *settings)


def rasterize_torch(
    means, quats, scales, opacities, colors, viewmats, Ks, width, height,
    near_plane=0.01, far_plane=1e10, eps2d=0.3, render_mode="RGB", backgrounds=None,
):  # fmt: skip
    """The same as `rasterize` in plain PyTorch on any device: slow, short, the reference."""
    _check(means, quats, scales, opacities, colors, viewmats, Ks, width, height, render_mode, backgrounds)
    return _render(
        project_torch, composite_torch, means, quats, scales, opacities, colors, viewmats, Ks,
        int(width), int(height), near_plane, far_plane, eps2d, render_mode, backgrounds,
    )  # fmt: skip


def _check(means, quats, scales, opacities, colors, viewmats, Ks, width, height, render_mode, backgrounds):
    """Raise InputError unless shapes, dtypes and devices fit together."""
    if render_mode not in MODES:
        raise InputError(f"render_mode is {render_mode!r}; choose one of {', '.join(MODES)}.")
    if int(width) < 1 or int(height) < 1:
        raise InputError(f"The image size is {width} x {height}; width and height must be at least 1.")
    if means.dtype not in (torch.float32, torch.float64):
        raise InputError(f"means has dtype {means.dtype}; convert the inputs to float32 (or float64).")
    if viewmats.ndim != 3 or means.ndim not in (2, 3):
        raise InputError(
            f"means has shape {tuple(means.shape)} and viewmats {tuple(viewmats.shape)}; give means as (N, 3) or "
            "(C, N, 3) and viewmats as (C, 4, 4)."
        )
    C, N, D = len(viewmats), means.shape[-2], colors.shape[-1]
    per_gaussian = {"means": (means, (3,)), "quats": (quats, (4,)), "scales": (scales, (3,)), "opacities": (opacities, ())}
    wanted = {name: (x, ((N, *last), (C, N, *last))) for name, (x, last) in per_gaussian.items()}
    wanted |= {"colors": (colors, ((N, D), (C, N, D)))}
    wanted |= {"viewmats": (viewmats, ((C, 4, 4),)), "Ks": (Ks, ((C, 3, 3),))}
    if backgrounds is not None:
        wanted["backgrounds"] = (backgrounds, ((C, D),))
    for name, (x, shapes) in wanted.items():
        if tuple(x.shape) not in shapes:
            expected = " or ".join(map(str, shapes))
            raise InputError(f"{name} has shape {tuple(x.shape)}; expected {expected} for {N} Gaussians, {C} cameras.")
        if x.dtype != means.dtype or x.device != means.device:
            raise InputError(f"{name} is {x.dtype} on {x.device} but means is {means.dtype} on {means.device}; make them the same.")


def _render(
    project, composite, means, quats, scales, opacities, colors, viewmats, Ks,
    width, height, near_plane, far_plane, eps2d, render_mode, backgrounds,
):  # fmt: skip
    """Project, add the depth channel that render_mode asks for, composite."""
    C = len(viewmats)
    means, quats, scales, colors = (x if x.ndim == 3 else x[None] for x in (means, quats, scales, colors))
    opacities = opacities if opacities.ndim == 2 else opacities[None]  # a leading axis of 1 or C everywhere
    frame = (width, height, near_plane, far_plane, eps2d)
    means2d, depths, conics, radii = project(means, quats, scales, opacities.detach(), viewmats, Ks, frame)
    meta = {"means2d": means2d, "depths": depths, "conics": conics, "radii": radii, "width": width, "height": height}
    if backgrounds is None:
        backgrounds = colors.new_zeros(1, colors.shape[-1])
    if "D" in render_mode:
        depth, zero = depths[..., None], backgrounds.new_zeros(len(backgrounds), 1)
        rgb = render_mode.startswith("RGB")
        colors = torch.cat([colors.expand(C, -1, -1), depth], -1) if rgb else depth
        backgrounds = torch.cat([backgrounds, zero], -1) if rgb else zero
    renders, alphas = composite(means2d, conics, opacities, colors, backgrounds, depths.detach(), radii, width, height)
    alphas = alphas[..., None]
    if "ED" in render_mode:
        renders = torch.cat([renders[..., :-1], renders[..., -1:] / alphas.clamp(min=1e-10)], -1)
    return renders, alphas, meta


# ------------------------------------------------------------------------------------------------ PyTorch reference


def project_torch(means, quats, scales, opacities, viewmats, Ks, frame):
    """EWA  Returns means2d (C, N, 2), depths (C, N), conics (C, N, 3), radii (C, N, 2) int32."""
    width, height, near, far, eps2d = frame
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    R = torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
                     2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
                     2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1)  # fmt: skip
    W, t = viewmats[:, None, :3, :3], viewmats[:, None, :3, 3]
    M = W @ (R.unflatten(-1, (3, 3)) * scales[..., None, :])  # (C, N, 3, 3), M M^T is the covariance in camera axes
    points = (W @ means[..., None])[..., 0] + t  # (C, N, 3)
    in_range = (points[..., 2] >= near) & (points[..., 2] <= far)
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
    visible_ = visible[..., None].to(means2d.dtype)
    return means2d * visible_, depths * visible, conics * visible_, radii


def composite_torch(means2d, conics, opacities, colors, backgrounds, depths, radii, width, height, block=32):
    """Composite front to back, in blocks of pixels that keep the Gaussians they can see. Returns image, alpha."""
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
                bands.append(checkpoint(_block_torch, splats[near], x, y, shape, use_reentrant=False))
        rows = [torch.cat(bands[i : i + -(-width // block)], 1) for i in range(0, len(bands), -(-width // block))]
        images.append(torch.cat(rows))
    images = torch.stack(images)  # (C, H, W, D + 1), the last channel is the transmittance
    rest = images[..., -1:]
    return images[..., :-1] + rest * backgrounds[:, None, None], 1 - rest[..., 0]


def _block_torch(splats, x, y, shape):
    """Colours and final transmittance (h, w, D + 1) of the pixels from (x, y) on; splats (n, 6 + D) sorted by depth."""
    ys, xs = (torch.arange(s, dtype=splats.dtype, device=splats.device) + 0.5 for s in shape)
    dx, dy = (xs + x)[None, None] - splats[:, 0, None, None], (ys + y)[None, :, None] - splats[:, 1, None, None]
    a, b, c, opacity = splats[:, 2:6, None, None].unbind(1)
    alpha = (opacity * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)).clamp(max=ALPHA_MAX)
    alpha = torch.where(alpha >= ALPHA_MIN, alpha, 0)  # (n, h, w)
    after = torch.cumprod(1 - alpha, 0)  # transmittance behind each Gaussian
    alpha = torch.where(after > T_STOP, alpha, 0)  # a pixel stops before it becomes opaque
    after = torch.cumprod(1 - alpha, 0)
    before = torch.cat([torch.ones_like(alpha[:1]), after[:-1]]) if len(splats) else alpha
    rest = after[-1:] if len(splats) else splats.new_ones(1, *shape)
    return torch.cat([torch.einsum("nhw,nd->hwd", before * alpha, splats[:, 6:]), rest.permute(1, 2, 0)], -1)


# ------------------------------------------------------------------------------------------------------ CPU kernels


@lru_cache(maxsize=2)
def _warm_up(dtype):
    """Compile all kernels (or load them from the cache) on a tiny picture, with a notice to the user if it takes long."""
    with CompileNotice(), torch.enable_grad():
        means = torch.tensor([[[0.0, 0.0, 1.0]]], dtype=dtype, requires_grad=True)
        ones, eye = torch.ones(1, 1, 4, dtype=dtype), torch.eye(4, dtype=dtype)[None]
        images, _, _ = _render(
            Project.apply, Composite.apply, means, ones, ones[..., :3], ones[..., 0], ones[..., :3], eye,
            eye[:, :3, :3], 8, 8, 0.01, 1e10, 0.3, "RGB", None,
        )  # fmt: skip
        images.sum().backward()


# ---------------------------------------------------------------------------------------------------- gsplat on CUDA


@lru_cache(maxsize=1)
def _gsplat():
    """gsplat's `rasterization`, or None with one printed line that says why it cannot be used."""
    try:
        from gsplat import rasterization
        from gsplat.cuda._backend import _C  # builds the CUDA kernels at first use, which can take minutes
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
    else:
        if _C is not None:
            return rasterization
        reason = "its CUDA kernels could not be built (is the CUDA toolkit with nvcc installed?)"
    print(f"aa: gsplat is not usable here, rendering with the slower PyTorch version: {reason}", file=sys.stderr)
    return None


def _render_gsplat(
    rasterization, means, quats, scales, opacities, colors, viewmats, Ks,
    width, height, near_plane, far_plane, eps2d, render_mode, backgrounds,
):  # fmt: skip
    """Call gsplat once for shared Gaussians, once per camera where a tensor has a camera axis of its own."""
    options = {"near_plane": near_plane, "far_plane": far_plane, "eps2d": eps2d, "render_mode": render_mode}
    options |= {"width": width, "height": height, "packed": False}
    shared = means.ndim == 2 and quats.ndim == 2 and scales.ndim == 2 and opacities.ndim == 1
    if shared:
        renders, alphas, meta = rasterization(
            means, quats, scales, opacities, colors, viewmats, Ks, backgrounds=backgrounds, **options
        )
        keep = {name: meta[name] for name in ("means2d", "depths", "conics", "radii")}
        return renders, alphas, {**keep, "width": width, "height": height}

    def of_camera(x, c, ndim):
        return x if x.ndim == ndim else x[c]

    results = [
        rasterization(
            of_camera(means, c, 2), of_camera(quats, c, 2), of_camera(scales, c, 2), of_camera(opacities, c, 1),
            of_camera(colors, c, 2), viewmats[c : c + 1], Ks[c : c + 1],
            backgrounds=None if backgrounds is None else backgrounds[c : c + 1], **options,
        )
        for c in range(len(viewmats))
    ]  # fmt: skip
    keep = {name: torch.cat([r[2][name] for r in results]) for name in ("means2d", "depths", "conics", "radii")}
    keep |= {"width": width, "height": height}
    return torch.cat([r[0] for r in results]), torch.cat([r[1] for r in results]), keep

"""Differentiable Gaussian rasteriser with the semantics of gsplat 1.5.3 `rasterization` (classic EWA splatting).

`rasterize` picks the back-end by the device of `means`: numba kernels with analytic gradients on the CPU
(`raster_numba.py`), gsplat on CUDA where it is usable, else the readable PyTorch version below, which is also the
reference of the tests. Splatting: Zwicker et al. 2002; compositing: Kerbl et al. 2023, eq. 2-3.
"""

import sys
from functools import lru_cache

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from aa import raster_numba as kernels
from aa.errors import InputError

MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
CHUNK = 2048  # Gaussians per task of the projection; fixed, so that sums over Gaussians keep their order


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
        return _render(_Project.apply, _Composite.apply, *arguments, *settings)
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
    """EWA projection. Returns means2d (C, N, 2), depths (C, N), conics (C, N, 3), radii (C, N, 2) int32."""
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
    slopes = slopes.clamp(-centre / focal - 0.15 * size / focal, (size - centre) / focal + 0.15 * size / focal)
    # rows of the Jacobian: (f / z) (1, 0, -x/z) and (f / z) (0, 1, -y/z)
    U = (focal / depths[..., None])[..., None] * (M[..., :2, :] - slopes[..., None] * M[..., 2:, :])  # (C, N, 2, 3)
    cov = U @ U.mT + eps2d * torch.eye(2, dtype=U.dtype, device=U.device)
    xx, xy, yy = cov[..., 0, 0], cov[..., 0, 1], cov[..., 1, 1]
    det = xx * yy - xy * xy
    conics = torch.stack([yy, -xy, xx], -1) / det[..., None]
    extent = (2 * (opacities * 255).clamp(min=1).log()).sqrt().clamp(max=kernels.EXTENT)
    radii = (extent[..., None] * torch.stack([xx, yy], -1).sqrt()).ceil().detach()
    inside = ((means2d + radii > 0) & (means2d - radii < size)).all(-1)
    visible = in_range & inside & (det > 0) & (opacities >= kernels.ALPHA_MIN)
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
    alpha = (opacity * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)).clamp(max=kernels.ALPHA_MAX)
    alpha = torch.where(alpha >= kernels.ALPHA_MIN, alpha, 0)  # (n, h, w)
    after = torch.cumprod(1 - alpha, 0)  # transmittance behind each Gaussian
    alpha = torch.where(after > kernels.T_STOP, alpha, 0)  # a pixel stops before it becomes opaque
    after = torch.cumprod(1 - alpha, 0)
    before = torch.cat([torch.ones_like(alpha[:1]), after[:-1]]) if len(splats) else alpha
    rest = after[-1:] if len(splats) else splats.new_ones(1, *shape)
    return torch.cat([torch.einsum("nhw,nd->hwd", before * alpha, splats[:, 6:]), rest.permute(1, 2, 0)], -1)


# ------------------------------------------------------------------------------------------------------ CPU kernels


def _array(tensor):
    """Contiguous numpy view of a CPU tensor (a copy only if it was not contiguous)."""
    return tensor.detach().contiguous().numpy()


class _Project(torch.autograd.Function):
    """`project_torch` by numba kernels."""

    @staticmethod
    def forward(ctx, means, quats, scales, opacities, viewmats, Ks, frame):
        C, N = len(viewmats), means.shape[1]
        arrays = [_array(x) for x in (means, quats, scales, opacities, viewmats, Ks)]
        out = [means.new_zeros(C, N, 2), means.new_zeros(C, N), means.new_zeros(C, N, 3)]
        radii = torch.zeros(C, N, 2, dtype=torch.int32)
        results = [x.numpy() for x in (*out, radii)]
        frame = np.array(frame, np.float64)
        kernels.run_parallel(
            lambda k: kernels.project(k * CHUNK, min(k * CHUNK + CHUNK, N), *arrays, frame, *results),
            -(-N // CHUNK), torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(means, quats, scales, viewmats, Ks, out[2], radii)
        ctx.frame = frame
        ctx.mark_non_differentiable(radii)
        return (*out, radii)

    @staticmethod
    def backward(ctx, v_means2d, v_depths, v_conics, _):
        means, quats, scales, viewmats, Ks, conics, radii = ctx.saved_tensors
        N, chunks = means.shape[1], -(-means.shape[1] // CHUNK)
        inputs = [_array(x) for x in (means, quats, scales, viewmats, Ks)]
        saved = [_array(x) for x in (conics, radii, v_means2d, v_depths, v_conics)]
        grads = [torch.zeros(x.shape, dtype=x.dtype) for x in (means, quats, scales)]
        v_views = torch.zeros(chunks, *viewmats.shape, dtype=torch.float64)
        outputs, views = [g.numpy() for g in grads], v_views.numpy()

        def task(k):
            n0, n1 = k * CHUNK, min(k * CHUNK + CHUNK, N)
            kernels.project_grad(n0, n1, *inputs, ctx.frame, *saved, *outputs, views[k])

        kernels.run_parallel(task, chunks, torch.get_num_threads())
        return (*grads, None, v_views.sum(0).to(viewmats.dtype), None, None)


class _Composite(torch.autograd.Function):
    """`composite_torch` by numba kernels."""

    @staticmethod
    def forward(ctx, means2d, conics, opacities, colors, backgrounds, depths, radii, width, height):
        (C, N), D, threads = depths.shape, colors.shape[2], torch.get_num_threads()
        size, floats = (width, height), depths.detach().contiguous().numpy().dtype
        keys = _array(depths).view(np.uint32 if floats.itemsize == 4 else np.uint64)  # bits of floats >= 0 sort as ints
        arrays = [_array(x) for x in (means2d, conics, radii, opacities, colors)]
        padded = -(-D // 4) * 4  # the kernels take four channels at a time
        packed, order = np.empty((C, N, 8 + padded), floats), np.empty((C, N), np.int64)
        lines, slots, row_lists = np.empty((C, N, 2), np.int64), np.zeros((C, N + 1), np.int64), [None] * C

        def pack(c):
            row_lists[c] = kernels.pack(c, size, keys, *arrays, packed, order, lines, slots)

        kernels.run_parallel(pack, C, threads)
        counts = [count for count, _, _ in row_lists]
        bases = np.cumsum([0, *(len(items) for _, _, items in row_lists)])
        row_starts = np.concatenate([starts[:-1] + base for (_, starts, _), base in zip(row_lists, bases)] + [bases[-1:]])
        row_items = np.concatenate([items for _, _, items in row_lists])
        image, alpha = colors.new_empty(C, height, width, D), colors.new_empty(C, height, width)
        results = image.numpy(), alpha.numpy()
        rows = C * -(-height // kernels.TILE_H)
        tasks = min(rows, 8 * threads) if threads > 1 else 1
        bounds = [rows * k // tasks for k in range(tasks + 1)]
        bins, background = [None] * tasks, _array(backgrounds)

        def render(k):
            bins[k] = kernels.bin_rows(bounds[k], bounds[k + 1], size, packed, lines, row_starts, row_items)
            kernels.composite(bounds[k], bounds[k + 1], size, packed, *bins[k], background, *results)

        kernels.run_parallel(render, tasks, threads)
        ctx.save_for_backward(conics, opacities, colors, backgrounds, image, alpha)
        ctx.bins = size, packed, order, lines, slots, counts, bases, bounds, bins
        return image, alpha

    @staticmethod
    def backward(ctx, v_image, v_alpha):
        conics, opacities, colors, backgrounds, image, alpha = ctx.saved_tensors
        size, packed, order, lines, slots, counts, bases, bounds, bins = ctx.bins
        (C, N), D, threads = order.shape, image.shape[3], torch.get_num_threads()
        sums = np.zeros(bases[-1] * 8 * (1 + -(-D // 8)), packed.dtype)
        inputs = [_array(x) for x in (image, alpha, v_image, v_alpha)]

        def render(k):
            first, last = bounds[k], bounds[k + 1]
            kernels.composite_grad(first, last, size, packed, *bins[k], lines, slots, bases, *inputs, sums)

        kernels.run_parallel(render, len(bins), threads)
        grads = [conics.new_zeros(C, N, d) for d in (2, 3)] + [conics.new_zeros(C, N), conics.new_zeros(C, N, D)]
        saved, outputs = [_array(conics), _array(opacities)], [g.numpy() for g in grads]

        parts = [(c, i, min(i + CHUNK, counts[c])) for c in range(C) for i in range(0, counts[c], CHUNK)]

        def collect(k):
            c, i0, i1 = parts[k]
            kernels.gather(c, i0, i1, order, slots, bases[c], sums, *saved, *outputs)

        kernels.run_parallel(collect, len(parts), threads)
        v_means2d, v_conics, v_opacities, v_colors = grads
        v_opacities = v_opacities.sum(0, keepdim=True) if len(opacities) < C else v_opacities
        v_colors = v_colors.sum(0, keepdim=True) if len(colors) < C else v_colors
        v_backgrounds = None
        if ctx.needs_input_grad[4]:
            v_backgrounds = torch.einsum("chw,chwd->cd", 1 - alpha, v_image)
            v_backgrounds = v_backgrounds.sum(0, keepdim=True) if len(backgrounds) < C else v_backgrounds
        return v_means2d, v_conics, v_opacities, v_colors, v_backgrounds, None, None, None, None


@lru_cache(maxsize=2)
def _warm_up(dtype):
    """Compile all kernels (or load them from the cache) on a tiny picture, with a notice to the user if it takes long."""
    with kernels.CompileNotice(), torch.enable_grad():
        means = torch.tensor([[[0.0, 0.0, 1.0]]], dtype=dtype, requires_grad=True)
        ones, eye = torch.ones(1, 1, 4, dtype=dtype), torch.eye(4, dtype=dtype)[None]
        images, _, _ = _render(
            _Project.apply, _Composite.apply, means, ones, ones[..., :3], ones[..., 0], ones[..., :3], eye,
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

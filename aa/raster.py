"""Differentiable Gaussian rasteriser with the semantics of gsplat 1.5.3 `rasterization` (classic EWA splatting).

`rasterize` picks the back-end by the device of `means`: numba kernels with analytic gradients on the CPU
(`raster_cpu.py`), gsplat on CUDA where it is usable, else the readable PyTorch version of `raster_torch.py`, which is
also the reference of the tests. Splatting: Zwicker et al. 2002; compositing: Kerbl et al. 2023, eq. 2-3.
"""

import sys
from functools import lru_cache

import torch

from aa.errors import InputError
from aa.raster_cpu import MOST, CompileNotice, Composite, Project
from aa.raster_torch import composite_torch, project_torch

MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
SH_DEGREES = (0, 1, 2, 3)


def rasterize(
    means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane=0.01, far_plane=1e10,
    *, eps2d=0.3, sh_degree=None, backgrounds=None, render_mode="RGB",
):  # fmt: skip
    """Render N Gaussians from C cameras; differentiable in every tensor but Ks.

    Args:
        means: (N, 3) centres, or (C, N, 3): one set per camera (frames of an animation in one call). The same choice
            is open for quats, scales and opacities, independently.
        quats: (N, 4) wxyz, need not be normalised. scales: (N, 3) > 0, standard deviations. opacities: (N,) in [0, 1].
        colors: (N, D) or (C, N, D), any D >= 1; with sh_degree coefficients (N, K, 3) or (C, N, K, 3).
        viewmats: (C, 4, 4) world to camera, OpenCV axes. Ks: (C, 3, 3) in pixels, pixel centres at +0.5.
        near_plane, far_plane: bounds on camera z. eps2d: pixels^2 added to the diagonal of the 2D covariance.
        sh_degree: 0 to 3: colours are max(0, 0.5 + spherical harmonics of the direction), K >= (sh_degree + 1)^2.
        backgrounds: (C, D) or None for black; depth channels have background 0.
        render_mode: "RGB" colours; "D" accumulated depth; "ED" expected depth; "RGB+D", "RGB+ED" both.
        As in gsplat all tensors may share leading batch axes, viewmats (..., C, 4, 4); every result then has them too.
    Returns:
        renders (C, H, W, D'), alphas (C, H, W, 1), and meta: means2d (C, N, 2) pixels, depths (C, N), conics (C, N, 3)
        (inverse 2D covariance xx, xy, yy), all differentiable and 0 where culled (gsplat leaves such entries undefined),
        radii (C, N, 2) int32, 0 where culled. means2d keeps its gradient.
    Raises:
        InputError: shapes, dtypes or devices that do not fit, NaN or infinity, an unknown render_mode or sh_degree.
    """
    return _rasterize(
        _render_best, means, quats, scales, opacities, colors, viewmats, Ks, width, height,
        near_plane, far_plane, eps2d, sh_degree, backgrounds, render_mode,
    )  # fmt: skip


def rasterize_torch(
    means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane=0.01, far_plane=1e10,
    *, eps2d=0.3, sh_degree=None, backgrounds=None, render_mode="RGB",
):  # fmt: skip
    """The same as `rasterize` in plain PyTorch on any device: slow, short, the reference."""
    return _rasterize(
        _render_torch, means, quats, scales, opacities, colors, viewmats, Ks, width, height,
        near_plane, far_plane, eps2d, sh_degree, backgrounds, render_mode,
    )  # fmt: skip


def _rasterize(
    render, means, quats, scales, opacities, colors, viewmats, Ks,
    width, height, near_plane, far_plane, eps2d, sh_degree, backgrounds, render_mode,
):  # fmt: skip
    """Check the arguments and render."""
    if not (isinstance(means, torch.Tensor) and means.dtype in (torch.float32, torch.float64)):
        got = means.dtype if isinstance(means, torch.Tensor) else type(means).__name__
        raise InputError(f"means is {got}; give a tensor of float32 (or float64).")
    if render_mode not in MODES:
        raise InputError(f"render_mode is {render_mode!r}; choose one of {', '.join(MODES)}.")
    if sh_degree not in (None, *SH_DEGREES):
        raise InputError(f"sh_degree is {sh_degree!r}; choose None for plain colours, or 0, 1, 2, 3.")
    if int(width) < 1 or int(height) < 1:
        raise InputError(f"The image size is {width} x {height}; width and height must be at least 1.")
    tensors = {"means": means, "quats": quats, "scales": scales, "opacities": opacities, "colors": colors}
    tensors |= {"viewmats": viewmats, "Ks": Ks} | ({} if backgrounds is None else {"backgrounds": backgrounds})
    batch = _check(tensors, sh_degree)
    settings = (int(width), int(height), float(near_plane), float(far_plane), float(eps2d), sh_degree, render_mode)
    renders, alphas, meta = render(tensors, batch, settings)
    if meta["means2d"].requires_grad:
        meta["means2d"].retain_grad()
    return renders, alphas, meta | {"width": int(width), "height": int(height)}


def _check(tensors, sh_degree):
    """Raise InputError unless shapes, dtypes, devices and values fit; returns the leading batch axes."""
    means, viewmats = tensors["means"], tensors["viewmats"]
    for name, x in tensors.items():
        if not isinstance(x, torch.Tensor) or x.dtype != means.dtype or x.device != means.device:
            got = f"{x.dtype} on {x.device}" if isinstance(x, torch.Tensor) else type(x).__name__
            raise InputError(f"{name} is {got} but means is {means.dtype} on {means.device}; make them the same.")
    if viewmats.ndim < 3 or means.ndim < 2:
        raise InputError(
            f"means has shape {tuple(means.shape)} and viewmats {tuple(viewmats.shape)}; give means as (N, 3) or "
            "(C, N, 3) and viewmats as (C, 4, 4)."
        )
    batch, C, N = viewmats.shape[:-3], viewmats.shape[-3], means.shape[-2]
    if N > MOST:
        raise InputError(f"means holds {N} Gaussians; at most {MOST} can be rendered at once: split them.")
    last = {"means": (3,), "quats": (4,), "scales": (3,), "opacities": (), "colors": tensors["colors"].shape[-1:]}
    if sh_degree is not None:
        K = max((sh_degree + 1) ** 2, tensors["colors"].shape[-2] if tensors["colors"].ndim > 2 else 0)
        last["colors"] = (K, 3)
    wanted = {name: [(*batch, N, *end)] for name, end in last.items()}
    for name in wanted if not batch else ["colors"]:
        wanted[name].append((*batch, C, N, *last[name]))
    wanted |= {"viewmats": [(*batch, C, 4, 4)], "Ks": [(*batch, C, 3, 3)], "backgrounds": [(*batch, C, last["colors"][-1])]}
    for name, x in tensors.items():
        if tuple(x.shape) not in wanted[name] or (name == "colors" and x.shape[-1] < 1):
            expected = " or ".join(map(str, wanted[name]))
            raise InputError(f"{name} has shape {tuple(x.shape)}; expected {expected} for {N} Gaussians, {C} cameras.")
        if not x.detach().sum().isfinite() and not x.isfinite().all():  # one NaN or infinity spoils the sum
            raise InputError(f"{name} holds {int((~x.isfinite()).sum())} values that are NaN or infinite; all must be finite.")
    return tuple(batch)


def _fold(tensors, batch, sh_degree):
    """Batch axes folded into the camera axis: every tensor gets one set per camera, (B C, N, ...)."""
    C, folded = tensors["viewmats"].shape[-3], {}
    for name, x in tensors.items():
        ends = {"opacities": 1, "colors": 2 if sh_degree is None else 3}.get(name, 2)  # axes from N on
        if name in ("viewmats", "Ks", "backgrounds") or x.ndim > len(batch) + ends:
            folded[name] = x.flatten(0, len(batch))
        else:
            folded[name] = x.unsqueeze(len(batch)).expand(*batch, C, *x.shape[len(batch) :]).flatten(0, len(batch))
    return folded


def _render_best(tensors, batch, settings):
    """Render by the fastest back-end for the device and dtype of the tensors."""
    means = tensors["means"]
    if means.device.type == "cpu":
        _warm_up(means.dtype)
        return _render_cpu(tensors, batch, settings)
    if means.device.type == "cuda" and means.dtype == torch.float32 and means.numel() and _gsplat() is not None:
        return _render_gsplat(tensors, batch, settings)
    return _render_torch(tensors, batch, settings)


def _render_cpu(*arguments):
    return _render(Project.apply, Composite.apply, *arguments)


def _render_torch(*arguments):
    return _render(project_torch, composite_torch, *arguments)


def _render(project, composite, tensors, batch, settings):
    """Project, evaluate colours, add the depth channel that render_mode asks for, composite."""
    width, height, near_plane, far_plane, eps2d, sh_degree, render_mode = settings
    means, quats, scales, opacities, colors, viewmats, Ks, *rest = (_fold(tensors, batch, sh_degree) if batch else tensors).values()
    C, backgrounds = len(viewmats), rest[0] if rest else None
    # a leading axis of 1 or C everywhere
    means, quats, scales = (x if x.ndim == 3 else x[None] for x in (means, quats, scales))
    opacities = opacities if opacities.ndim == 2 else opacities[None]
    colors = colors if colors.ndim == (3 if sh_degree is None else 4) else colors[None]
    frame = (width, height, near_plane, far_plane, eps2d)
    means2d, depths, conics, radii = project(means, quats, scales, opacities.detach(), viewmats, Ks, frame)
    meta = {"means2d": means2d, "depths": depths, "conics": conics, "radii": radii}
    if batch:  # what meta shows lies on the way to the picture, so that it gets gradients
        meta = {name: x.unflatten(0, (*batch, -1)) for name, x in meta.items()}
        means2d, depths, conics, radii = (x.flatten(0, len(batch)) for x in meta.values())
    if sh_degree is not None and render_mode not in ("D", "ED"):
        directions = means - torch.linalg.inv(viewmats)[:, None, :3, 3]
        colors = (spherical_harmonics(sh_degree, directions, colors) + 0.5).clamp(min=0)
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
    if batch:
        renders, alphas = (x.unflatten(0, (*batch, -1)) for x in (renders, alphas))
    return renders, alphas, meta


def spherical_harmonics(degree, directions, coefficients):
    """Sum of real spherical harmonics up to `degree` (0 to 3), in the order and with the signs of gsplat.

    directions (..., 3), of any length > 0; coefficients (..., K, 3), K >= (degree + 1)^2; returns (..., 3).
    Basis: Sloan 2013, "Efficient spherical harmonic evaluation".
    """
    x, y, z = torch.nn.functional.normalize(directions, dim=-1).unbind(-1)
    bases = [torch.full_like(x, 0.28209479177387814)]
    if degree > 0:
        bases += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if degree > 1:
        bases += [1.0925484305920792 * x * y, -1.0925484305920792 * y * z, 0.31539156525252005 * (3 * z * z - 1)]
        bases += [-1.0925484305920792 * x * z, 0.5462742152960396 * (x * x - y * y)]
    if degree > 2:
        bases += [-0.5900435899266435 * y * (3 * x * x - y * y), 2.890611442640554 * x * y * z]
        bases += [-0.4570457994644658 * y * (5 * z * z - 1), 0.3731763325901154 * z * (5 * z * z - 3)]
        bases += [-0.4570457994644658 * x * (5 * z * z - 1), 1.445305721320277 * z * (x * x - y * y)]
        bases += [-0.5900435899266435 * x * (x * x - 3 * y * y)]
    return (torch.stack(bases, -1)[..., None, :] @ coefficients[..., : len(bases), :])[..., 0, :]


# ------------------------------------------------------------------------------------------------------ CPU kernels


@lru_cache(maxsize=2)
def _warm_up(dtype):
    """Compile all kernels (or load them from the cache) on a tiny picture, with a notice to the user if it takes long."""
    with CompileNotice(), torch.enable_grad():
        means = torch.tensor([[[0.0, 0.0, 1.0]]], dtype=dtype, requires_grad=True)
        ones, eye = torch.ones(1, 1, 4, dtype=dtype), torch.eye(4, dtype=dtype)[None]
        tensors = (means, ones, ones[..., :3], ones[..., 0], ones[..., :3], eye, eye[:, :3, :3])
        images, _, _ = _render_cpu(dict(enumerate(tensors)), (), (8, 8, 0.01, 1e10, 0.3, None, "RGB"))
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


def _render_gsplat(tensors, batch, settings):
    """gsplat in one call; Gaussians of each camera's own become its batch axis, with one camera per batch entry.

    In that case meta holds copies, whose gradients stay None.
    """
    means, quats, scales, opacities, colors, viewmats, Ks, *rest = tensors.values()
    width, height, near_plane, far_plane, eps2d, sh_degree, render_mode = settings
    backgrounds, C = rest[0] if rest else None, viewmats.shape[-3]
    own = not batch and (means.ndim == 3 or quats.ndim == 3 or scales.ndim == 3 or opacities.ndim == 2)
    if own:
        means, quats, scales = (x if x.ndim == 3 else x.expand(C, -1, -1) for x in (means, quats, scales))
        opacities = opacities if opacities.ndim == 2 else opacities.expand(C, -1)
        colors = colors if colors.ndim == (3 if sh_degree is None else 4) else colors.expand(C, *colors.shape)
        viewmats, Ks, backgrounds = viewmats[:, None], Ks[:, None], None if backgrounds is None else backgrounds[:, None]
    renders, alphas, meta = _gsplat()(
        means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane=near_plane, far_plane=far_plane,
        eps2d=eps2d, sh_degree=sh_degree, backgrounds=backgrounds, render_mode=render_mode, packed=False,
    )  # fmt: skip
    meta = {name: meta[name] for name in ("means2d", "depths", "conics", "radii")}
    if own:
        renders, alphas, meta = renders[:, 0], alphas[:, 0], {name: x[:, 0] for name, x in meta.items()}
    return renders, alphas, meta

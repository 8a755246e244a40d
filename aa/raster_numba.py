"""CPU kernels of the Gaussian rasteriser (numba): projection, binning, compositing and their analytic gradients.

The image is cut into rows of tiles, `TILE_W` x `TILE_H` pixels each. One SIMD vector holds the `TILE_W` pixels of one
line of a tile, so that the compositing loops below read like scalar code for one pixel. A pixel composites its
Gaussians front to back (3D Gaussian splatting, Kerbl et al. 2023, eq. 2-3):

    alpha_i = min(0.999, opacity_i exp(-sigma_i)),   w_i = T_i alpha_i,   T_{i+1} = T_i (1 - alpha_i)

Gaussians with alpha < 1/255 are skipped and a pixel stops before T would fall to 1e-4 (the constants of gsplat 1.5.3).
Kernels release the GIL and are called on disjoint ranges from a thread pool (`run_parallel`); every sum has a fixed
order, so results do not depend on the number of threads.
"""

import math
import operator
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, models, register_model

TILE_W = 8  # pixels in one SIMD vector: one AVX2 register of float32
TILE_H = 16
ALPHA_MAX = 0.999  # the four constants below are those of gsplat 1.5.3 (Common.h, RasterizeToPixels3DGSFwd.cu)
ALPHA_MIN = 1.0 / 255.0
T_STOP = 1e-4
EXTENT = 3.33
LOG2E = math.log2(math.e)
MARGIN = 0.05  # pixels added around exact ellipse bounds: covers float32 rounding, costs nothing
EXP2_DEGREE = {4: 5, 8: 13}  # by item size: relative error about 1e-7 and 1e-16


def _jit(function):
    """njit with a disk cache; without one where neither the package folder nor the user's cache folder is writable."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no writable cache folder
        return njit(**options)(function)


# ---------------------------------------------------------------------------------------------- SIMD vectors in numba


class Vec(types.Type):
    """numba type of `TILE_W` floats in one SIMD register; + - * / work between vectors and with scalars."""

    def __init__(self, dtype):
        self.dtype = dtype
        super().__init__(name=f"Vec{TILE_W}({dtype})")


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, manager, vec):
        super().__init__(manager, vec, ir.VectorType(manager.lookup(vec.dtype).get_value_type(), TILE_W))


def _as_vec(context, builder, value, kind, vec):
    """LLVM value of `kind` (a Vec or a scalar, which is broadcast) as a `vec`."""
    if isinstance(kind, Vec):
        return value
    value = context.cast(builder, value, kind, vec.dtype)
    empty = ir.Constant(context.get_value_type(vec), ir.Undefined)
    one = builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(ir.IntType(32), TILE_W), [0] * TILE_W))


def _vec_of(kinds):
    """The Vec type among argument types if all the others are floats, else None."""
    vecs = [k for k in kinds if isinstance(k, Vec)]
    return vecs[0] if vecs and all(isinstance(k, Vec | types.Float) for k in kinds) else None


def _register_operator(op, instruction):
    @infer_global(op)
    class _VecOperator(AbstractTemplate):
        def generic(self, args, kws):
            vec = _vec_of(args)
            return None if vec is None else signature(vec, *args)

    def lower(context, builder, sig, args):
        a, b = (_as_vec(context, builder, v, k, sig.return_type) for v, k in zip(args, sig.args))
        return getattr(builder, instruction)(a, b, flags=("contract",))

    for kinds in ((Vec, Vec), (Vec, types.Float), (types.Float, Vec)):
        lower_builtin(op, *kinds)(lower)


_register_operator(operator.add, "fadd")
_register_operator(operator.iadd, "fadd")  # a += b
_register_operator(operator.sub, "fsub")
_register_operator(operator.mul, "fmul")
_register_operator(operator.truediv, "fdiv")


def _element_pointer(context, builder, array, value, index, kind):
    data = context.make_array(array)(context, builder, value=value).data
    return builder.bitcast(builder.gep(data, [index]), ir.PointerType(kind))


@intrinsic
def vload(typing_context, array, index):
    """TILE_W consecutive elements of a 1-D array (no bounds check)."""
    vec = Vec(array.dtype)

    def codegen(context, builder, sig, args):
        pointer = _element_pointer(context, builder, array, *args, context.get_value_type(vec))
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return vec(array, types.intp), codegen


@intrinsic
def vstore(typing_context, array, index, value):
    """Write TILE_W consecutive elements of a 1-D array (no bounds check); a scalar is broadcast."""
    vec = Vec(array.dtype)

    def codegen(context, builder, sig, args):
        pointer = _element_pointer(context, builder, array, args[0], args[1], context.get_value_type(vec))
        builder.store(_as_vec(context, builder, args[2], value, vec), pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def vfull(typing_context, array, value):
    """A scalar in every lane of a vector of the array's dtype."""
    vec = Vec(array.dtype)

    def codegen(context, builder, sig, args):
        return _as_vec(context, builder, args[1], value, vec)

    return vec(array, value), codegen


@intrinsic
def where_gt(typing_context, a, b, yes, no):
    """a > b ? yes : no, per lane."""
    vec = _vec_of((a, b, yes, no))

    def codegen(context, builder, sig, args):
        a, b, yes, no = (_as_vec(context, builder, v, k, vec) for v, k in zip(args, sig.args))
        return builder.select(builder.fcmp_ordered(">", a, b), yes, no)

    return vec(a, b, yes, no), codegen


@intrinsic
def vexp2(typing_context, x):
    """2^x per lane for x <= 0, by a polynomial on [-1/2, 1/2] and the exponent bits; x is floored at -30."""
    size = x.dtype.bitwidth // 8
    interpolant = np.polynomial.Chebyshev.interpolate(np.exp2, EXP2_DEGREE[size], [-0.5, 0.5])
    coefficients = interpolant.convert(kind=np.polynomial.Polynomial).coef
    mantissa = {4: 23, 8: 52}[size]

    def codegen(context, builder, sig, args):
        vec = context.get_value_type(x)
        ints = ir.VectorType(ir.IntType(8 * size), TILE_W)

        def constant(c, kind=vec):
            return ir.Constant(kind, [c] * TILE_W)

        v = builder.select(builder.fcmp_ordered(">", args[0], constant(-30.0)), args[0], constant(-30.0))
        magic = constant(1.5 * 2.0**mantissa)  # adding it rounds v to an integer kept in the low mantissa bits
        shifted = builder.fadd(v, magic)
        fraction = builder.fsub(v, builder.fsub(shifted, magic))
        power = constant(float(np.float32(coefficients[-1]) if size == 4 else coefficients[-1]))
        for c in coefficients[-2::-1]:
            c = float(np.float32(c)) if size == 4 else float(c)
            power = builder.fadd(builder.fmul(power, fraction, flags=("contract",)), constant(c), flags=("contract",))
        exponent = builder.shl(builder.bitcast(shifted, ints), constant(mantissa, ints))
        return builder.bitcast(builder.add(builder.bitcast(power, ints), exponent), vec)

    return x(x), codegen


@intrinsic
def vsum(typing_context, v):
    """Sum of the lanes of one vector, a scalar."""

    def codegen(context, builder, sig, args):
        total = args[0]
        for step in (4, 2, 1):
            mask = [lane ^ step for lane in range(TILE_W)]
            swapped = builder.shuffle_vector(total, total, ir.Constant(ir.VectorType(ir.IntType(32), TILE_W), mask))
            total = builder.fadd(total, swapped)
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return v.dtype(v), codegen


@intrinsic
def vsums(typing_context, v0, v1, v2, v3, v4, v5, v6, v7):
    """Vector whose lane k is the sum of the lanes of v_k: a transposed reduction, three levels of pairwise adds."""

    def codegen(context, builder, sig, args):
        level = [_as_vec(context, builder, v, k, v0) for v, k in zip(args, sig.args)]
        index = ir.VectorType(ir.IntType(32), TILE_W)
        for step in (1, 2, 4):
            # lanes with bit `step` clear come from a, the others from b; each adds its partner lane
            low = [lane if not lane & step else TILE_W + lane - step for lane in range(TILE_W)]
            high = [lane + step if not lane & step else TILE_W + lane for lane in range(TILE_W)]
            level = [
                builder.fadd(
                    builder.shuffle_vector(a, b, ir.Constant(index, low)),
                    builder.shuffle_vector(a, b, ir.Constant(index, high)),
                )
                for a, b in zip(level[0::2], level[1::2])
            ]
        return level[0]

    return v0(v0, v1, v2, v3, v4, v5, v6, v7), codegen


# ------------------------------------------------------------------------------------------------------- projection


@_jit
def _rotation(q, R):
    """Fill R (3, 3) with the rotation of quaternion q (4,) wxyz, normalised here; returns |q|."""
    norm = math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])
    w, x, y, z = q[0] / norm, q[1] / norm, q[2] / norm, q[3] / norm
    R[0, 0], R[0, 1], R[0, 2] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    R[1, 0], R[1, 1], R[1, 2] = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    R[2, 0], R[2, 1], R[2, 2] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
    return norm


@_jit
def _splat(p, q, s, view, K, frame, pc, R, M, J, U):
    """EWA splat of one Gaussian, in float64: fills pc (3,) camera point, R, M = W R diag(s), J (2, 3), U = J M.

    cov2d = U U^T + eps2d (Zwicker et al. 2002). Returns (|q|, x/z clamped?, y/z clamped?).
    """
    for i in range(3):
        pc[i] = view[i, 0] * p[0] + view[i, 1] * p[1] + view[i, 2] * p[2] + view[i, 3]
    if not (pc[2] >= frame[2] and pc[2] <= frame[3]):
        return 0.0, False, False
    norm = _rotation(q, R)
    for i in range(3):
        for j in range(3):
            M[i, j] = (view[i, 0] * R[0, j] + view[i, 1] * R[1, j] + view[i, 2] * R[2, j]) * s[j]
    z, fx, fy, cx, cy = pc[2], K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    # as in gsplat, the Jacobian is taken at most 15% of the image outside of it, where it would blow up
    margin_x, margin_y = 0.15 * frame[0] / fx, 0.15 * frame[1] / fy
    u = min(max(pc[0] / z, -cx / fx - margin_x), (frame[0] - cx) / fx + margin_x)
    v = min(max(pc[1] / z, -cy / fy - margin_y), (frame[1] - cy) / fy + margin_y)
    J[0, 0], J[0, 1], J[0, 2] = fx / z, 0.0, -fx * u / z
    J[1, 0], J[1, 1], J[1, 2] = 0.0, fy / z, -fy * v / z
    for j in range(3):
        U[0, j] = J[0, 0] * M[0, j] + J[0, 2] * M[2, j]
        U[1, j] = J[1, 1] * M[1, j] + J[1, 2] * M[2, j]
    return norm, u != pc[0] / z, v != pc[1] / z


@_jit
def project(first, last, means, quats, scales, opacities, views, Ks, frame, means2d, depths, conics, radii):
    """Project Gaussians first..last for every camera; outputs of culled ones stay 0 (radii (C, N, 2) too).

    Inputs have a leading axis of C or 1. frame = (width, height, near, far, eps2d).
    """
    pc, R, M = np.empty(3), np.empty((3, 3)), np.empty((3, 3))
    J, U = np.empty((2, 3)), np.empty((2, 3))
    for c in range(views.shape[0]):
        cm, cq, cs, co = (
            min(c, means.shape[0] - 1),
            min(c, quats.shape[0] - 1),
            min(c, scales.shape[0] - 1),
            min(c, opacities.shape[0] - 1),
        )
        for n in range(first, last):
            norm, _, _ = _splat(means[cm, n], quats[cq, n], scales[cs, n], views[c], Ks[c], frame, pc, R, M, J, U)
            opacity = float(opacities[co, n])
            if not norm > 0 or not opacity >= ALPHA_MIN:
                continue
            xx = U[0, 0] ** 2 + U[0, 1] ** 2 + U[0, 2] ** 2 + frame[4]
            yy = U[1, 0] ** 2 + U[1, 1] ** 2 + U[1, 2] ** 2 + frame[4]
            xy = U[0, 0] * U[1, 0] + U[0, 1] * U[1, 1] + U[0, 2] * U[1, 2]
            det = xx * yy - xy * xy
            mx, my = Ks[c, 0, 0] * pc[0] / pc[2] + Ks[c, 0, 2], Ks[c, 1, 1] * pc[1] / pc[2] + Ks[c, 1, 2]
            extent = min(EXTENT, math.sqrt(2.0 * math.log(opacity / ALPHA_MIN)))
            rx, ry = math.ceil(extent * math.sqrt(xx)), math.ceil(extent * math.sqrt(yy))
            if not (det > 0 and mx + rx > 0 and mx - rx < frame[0] and my + ry > 0 and my - ry < frame[1]):
                continue
            radii[c, n, 0], radii[c, n, 1] = min(rx, 1e9), min(ry, 1e9)
            means2d[c, n, 0], means2d[c, n, 1], depths[c, n] = mx, my, pc[2]
            conics[c, n, 0], conics[c, n, 1], conics[c, n, 2] = yy / det, -xy / det, xx / det


@_jit
def _rotation_grad(q, norm, v_R, out):
    """Add to out (4,) the gradient of an unnormalised quaternion whose rotation matrix has gradient v_R (3, 3)."""
    w, x, y, z = q[0] / norm, q[1] / norm, q[2] / norm, q[3] / norm
    a, b, c = v_R[2, 1] - v_R[1, 2], v_R[0, 2] - v_R[2, 0], v_R[1, 0] - v_R[0, 1]
    d, e, f = v_R[1, 0] + v_R[0, 1], v_R[0, 2] + v_R[2, 0], v_R[2, 1] + v_R[1, 2]
    vw = 2 * (x * a + y * b + z * c)
    vx = 2 * (w * a + y * d + z * e - 2 * x * (v_R[1, 1] + v_R[2, 2]))
    vy = 2 * (w * b + x * d + z * f - 2 * y * (v_R[0, 0] + v_R[2, 2]))
    vz = 2 * (w * c + x * e + y * f - 2 * z * (v_R[0, 0] + v_R[1, 1]))
    radial = vw * w + vx * x + vy * y + vz * z
    out[0] += (vw - radial * w) / norm
    out[1] += (vx - radial * x) / norm
    out[2] += (vy - radial * y) / norm
    out[3] += (vz - radial * z) / norm


@_jit
def project_grad(
    first, last, means, quats, scales, views, Ks, frame, conics, radii,
    v_means2d, v_depths, v_conics, v_means, v_quats, v_scales, v_views,
):  # fmt: skip
    """Gradient of `project` for Gaussians first..last; adds to v_means, v_quats, v_scales and to v_views (C, 3, 4)."""
    pc, R, M, v_pc = np.empty(3), np.empty((3, 3)), np.empty((3, 3)), np.empty(3)
    J, U, v_U = np.empty((2, 3)), np.empty((2, 3)), np.empty((2, 3))
    v_M, v_R = np.empty((3, 3)), np.empty((3, 3))
    for c in range(views.shape[0]):
        cm, cq, cs = min(c, means.shape[0] - 1), min(c, quats.shape[0] - 1), min(c, scales.shape[0] - 1)
        W, K = views[c], Ks[c]
        for n in range(first, last):
            if radii[c, n, 0] == 0:
                continue
            p, q, s = means[cm, n], quats[cq, n], scales[cs, n]
            norm, clamped_x, clamped_y = _splat(p, q, s, W, K, frame, pc, R, M, J, U)
            # dL/dcov2d = -Q dL/dQ Q with Q the conic; the off-diagonal gradient is shared by two entries
            a, b, d = float(conics[c, n, 0]), float(conics[c, n, 1]), float(conics[c, n, 2])
            va, vb, vd = float(v_conics[c, n, 0]), 0.5 * v_conics[c, n, 1], float(v_conics[c, n, 2])
            l00, l01, l10, l11 = a * va + b * vb, a * vb + b * vd, b * va + d * vb, b * vb + d * vd
            xx, xy, yy = -(l00 * a + l01 * b), -(l00 * b + l01 * d), -(l10 * b + l11 * d)
            for j in range(3):
                v_U[0, j] = 2 * (xx * U[0, j] + xy * U[1, j])
                v_U[1, j] = 2 * (xy * U[0, j] + yy * U[1, j])
                v_M[0, j] = J[0, 0] * v_U[0, j]
                v_M[1, j] = J[1, 1] * v_U[1, j]
                v_M[2, j] = J[0, 2] * v_U[0, j] + J[1, 2] * v_U[1, j]
            j00 = v_U[0, 0] * M[0, 0] + v_U[0, 1] * M[0, 1] + v_U[0, 2] * M[0, 2]
            j02 = v_U[0, 0] * M[2, 0] + v_U[0, 1] * M[2, 1] + v_U[0, 2] * M[2, 2]
            j11 = v_U[1, 0] * M[1, 0] + v_U[1, 1] * M[1, 1] + v_U[1, 2] * M[1, 2]
            j12 = v_U[1, 0] * M[2, 0] + v_U[1, 1] * M[2, 1] + v_U[1, 2] * M[2, 2]
            x, y, z, fx, fy = pc[0], pc[1], pc[2], K[0, 0], K[1, 1]
            mx, my = v_means2d[c, n, 0], v_means2d[c, n, 1]
            v_pc[0], v_pc[1] = mx * fx / z, my * fy / z
            v_pc[2] = v_depths[c, n] - (mx * fx * x + my * fy * y) / (z * z)
            v_pc[2] -= (j00 * J[0, 0] + j02 * J[0, 2] + j11 * J[1, 1] + j12 * J[1, 2]) / z
            if not clamped_x:  # J02 = -fx (x / z) / z
                v_pc[0] -= j02 * fx / (z * z)
                v_pc[2] += j02 * fx * x / (z * z * z)
            if not clamped_y:
                v_pc[1] -= j12 * fy / (z * z)
                v_pc[2] += j12 * fy * y / (z * z * z)
            for j in range(3):
                v_means[cm, n, j] += W[0, j] * v_pc[0] + W[1, j] * v_pc[1] + W[2, j] * v_pc[2]
                v_s = 0.0
                for i in range(3):  # M = W R diag(s)
                    v_RS = W[0, i] * v_M[0, j] + W[1, i] * v_M[1, j] + W[2, i] * v_M[2, j]
                    v_s += v_RS * R[i, j]
                    v_R[i, j] = v_RS * s[j]
                    v_views[c, i, j] += v_pc[i] * p[j]
                    for k in range(3):
                        v_views[c, i, k] += v_M[i, j] * R[k, j] * s[j]
                v_scales[cs, n, j] += v_s
                v_views[c, j, 3] += v_pc[j]
            _rotation_grad(q, norm, v_R, v_quats[cq, n])


# ---------------------------------------------------------------------------------------------------------- binning


@_jit
def _depth_order(keys, radii):
    """Indices of the visible Gaussians by increasing depth, stable (radix sort on the bits of positive floats)."""
    order = np.nonzero(radii[:, 0])[0]
    other = np.empty_like(order)
    for shift in range(0, keys.itemsize * 8, 11):
        start = np.zeros(2049, np.int64)
        for i in order:
            start[((keys[i] >> np.uint64(shift)) & np.uint64(2047)) + np.uint64(1)] += 1
        start = np.cumsum(start)
        for i in order:
            digit = (keys[i] >> np.uint64(shift)) & np.uint64(2047)
            other[start[digit]] = i
            start[digit] += 1
        order, other = other, order
    return order


@_jit
def pack(c, size, keys, means2d, conics, radii, opacities, colors, packed, order, lines, slots):
    """Sort camera c by depth and lay its Gaussians out for compositing.

    packed (C, N, 8 + D'): centre, the conic times -log2(e), log2(opacity), half extents of the alpha = 1/255 ellipse,
    colours padded with zeros; order (C, N) original index; lines (C, N, 2) first and last pixel line; slots (C, N + 1)
    where the gradient sums of each Gaussian start: one per row of tiles it touches. Returns the number of Gaussians
    laid out and, per row of tiles, those that reach it: row_starts (rows + 1,) into row_items.
    """
    width, height = size
    count, slot = 0, 0
    co, cc = min(c, opacities.shape[0] - 1), min(c, colors.shape[0] - 1)
    row_starts = np.zeros(-(-height // TILE_H) + 1, np.int64)
    for n in _depth_order(keys[c], radii[c]):
        mx, my, log_opacity = means2d[c, n, 0], means2d[c, n, 1], math.log2(float(opacities[co, n]))
        a, b, d = float(conics[c, n, 0]), float(conics[c, n, 1]), float(conics[c, n, 2])
        reach = max(2.0 * (log_opacity - math.log2(ALPHA_MIN)) / LOG2E, 0.0) / (a * d - b * b)
        half_x, half_y = math.sqrt(reach * d) + MARGIN, math.sqrt(reach * a) + MARGIN
        top, bottom = math.ceil(max(my - half_y - 0.5, 0.0)), math.floor(min(my + half_y - 0.5, height - 1.0))
        if top > bottom or mx + half_x < 0.5 or mx - half_x > width - 0.5:
            continue
        g = packed[c, count]
        g[0], g[1], g[2], g[3], g[4] = mx, my, -0.5 * LOG2E * a, -LOG2E * b, -0.5 * LOG2E * d
        g[5], g[6], g[7] = log_opacity, half_x, half_y
        for k in range(colors.shape[2]):
            g[8 + k] = colors[cc, n, k]
        g[8 + colors.shape[2] :] = 0.0
        order[c, count], lines[c, count, 0], lines[c, count, 1], slots[c, count] = n, top, bottom, slot
        for row in range(top // TILE_H, bottom // TILE_H + 1):
            row_starts[row + 1] += 1
            slot += 1
        count += 1
    slots[c, count] = slot
    row_starts = np.cumsum(row_starts)
    fill, row_items = row_starts.copy(), np.empty(slot, np.int64)
    for i in range(count):
        for row in range(lines[c, i, 0] // TILE_H, lines[c, i, 1] // TILE_H + 1):
            row_items[fill[row]] = i
            fill[row] += 1
    return count, row_starts, row_items


@_jit
def _span(shear, spread, narrowing, peak, low, high):
    """Range of u over the part of an ellipse with v in [low, high], where v = peak at the largest u.

    The ellipse a u^2 + 2 b u v + d v^2 <= k has u = -b/a v +- sqrt(k/a - (d/a - (b/a)^2) v^2), here with
    shear = b/a, spread = k/a, narrowing = d/a - (b/a)^2.
    """
    t = min(max(-peak, low), high)
    start = -shear * t - math.sqrt(max(spread - narrowing * t * t, 0.0)) - MARGIN
    t = min(max(peak, low), high)
    return start, -shear * t + math.sqrt(max(spread - narrowing * t * t, 0.0)) + MARGIN


@_jit
def bin_rows(first, last, size, packed, lines, row_starts, row_items):
    """Gaussians of every tile in the rows of tiles first..last (counted over all cameras), front to back.

    Returns starts (rows * columns + 1,) into items, and items: (place in packed) << 16 | first line << 8 | end line,
    lines counted from the top of the tile. An ellipse is listed only in tiles that it really touches.
    """
    width, height = size
    columns, rows = -(-width // TILE_W), -(-height // TILE_H)
    starts = np.zeros((last - first) * columns + 1, np.int64)
    offset = row_starts[first]
    touched = np.empty((row_starts[last] - offset, 2), np.int32)  # first and last column of tiles
    for row in range(first, last):
        c, y0 = row // rows, (row % rows) * TILE_H
        for j in range(row_starts[row], row_starts[row + 1]):
            g, line = packed[c, row_items[j]], lines[c, row_items[j]]
            mx, my, a, b, d = float(g[0]), float(g[1]), -float(g[2]), -0.5 * g[3], -float(g[4])
            low, high = max(line[0], y0) + 0.5 - my, min(line[1], y0 + TILE_H - 1) + 0.5 - my
            spread = (g[5] - math.log2(ALPHA_MIN)) / a
            left, right = _span(b / a, spread, d / a - (b / a) ** 2, -b / d * g[6], low, high)
            x0 = math.ceil(max(mx + left - 0.5, 0.0)) // TILE_W
            x1 = math.floor(min(mx + right - 0.5, width - 1.0)) // TILE_W
            touched[j - offset, 0], touched[j - offset, 1] = x0, x1
            for x in range(x0, x1 + 1):
                starts[(row - first) * columns + x + 1] += 1
    starts = np.cumsum(starts)
    fill = starts.copy()
    items = np.empty(starts[-1], np.int64)
    for row in range(first, last):
        c, y0 = row // rows, (row % rows) * TILE_H
        for j in range(row_starts[row], row_starts[row + 1]):
            i = row_items[j]
            g = packed[c, i]
            mx, my, a, b, d = float(g[0]), g[1] - 0.5 - y0, -float(g[2]), -0.5 * g[3], -float(g[4])
            shear, spread, peak = b / d, (g[5] - math.log2(ALPHA_MIN)) / d, -b / a * g[7]
            narrowing = a / d - shear * shear
            for x in range(touched[j - offset, 0], touched[j - offset, 1] + 1):
                left = x * TILE_W + 0.5 - mx
                top, bottom = _span(shear, spread, narrowing, peak, left, left + (TILE_W - 1))
                low = math.ceil(max(my + top, 0.0))
                high = math.floor(min(max(my + bottom, -1.0), TILE_H - 1.0)) + 1
                tile = (row - first) * columns + x
                items[fill[tile]] = (i << 16) | (min(low, high) << 8) | high
                fill[tile] += 1
    return starts, items


# ------------------------------------------------------------------------------------------------------ compositing


@_jit
def _live_lines(buffer, stride, low, high):
    """Shrink the range of lines low..high - 1 of a tile to those with a pixel that has not stopped."""
    while low < high and vsum(vload(buffer, TILE_W + low * stride)) <= 0.0:
        low += 1
    while high > low and vsum(vload(buffer, TILE_W + (high - 1) * stride)) <= 0.0:
        high -= 1
    return low, high


@_jit
def composite(first, last, size, packed, starts, items, background, image, alpha):
    """Render the rows of tiles first..last: image (C, H, W, D) over background (1 or C, D), and alpha (C, H, W)."""
    width, height = size
    columns, rows, depth = -(-width // TILE_W), -(-height // TILE_H), packed.shape[2] - 8
    # per line: live transmittance (0 once stopped), final transmittance, D' colours; before them the pixel numbers
    stride = TILE_W * (2 + depth)
    buffer = np.empty(TILE_W + TILE_H * stride, packed.dtype)
    buffer[:TILE_W] = np.arange(TILE_W)
    for tile in range((last - first) * columns):
        row = first + tile // columns
        c, x0, y0 = row // rows, (tile % columns) * TILE_W, (row % rows) * TILE_H
        low, high = 0, min(TILE_H, height - y0)
        for at in range(TILE_W, TILE_W + high * stride, stride):
            vstore(buffer, at, 1.0)
            vstore(buffer, at + TILE_W, 1.0)
            for to in range(at + 2 * TILE_W, at + stride, TILE_W):
                vstore(buffer, to, 0.0)
        for e in range(starts[tile], starts[tile + 1]):
            if (e - starts[tile]) % 8 == 7:
                low, high = _live_lines(buffer, stride, low, high)
                if low == high:
                    break
            item = items[e]
            g = packed[c, item >> 16]
            y, end = max((item >> 8) & 255, low), min(item & 255, high)
            dx = vload(buffer, 0) + (x0 + 0.5 - g[0])
            constant, linear, square = dx * dx * g[2] + g[5], dx * g[3], vfull(buffer, g[4])
            dy = vfull(buffer, y0 + y + 0.5 - g[1])
            c0, c1, c2, c3 = vfull(buffer, g[8]), vfull(buffer, g[9]), vfull(buffer, g[10]), vfull(buffer, g[11])
            for at in range(TILE_W + y * stride, TILE_W + end * stride, stride):
                a = vexp2(constant + dy * (linear + square * dy))
                a = where_gt(ALPHA_MIN, a, 0.0, where_gt(a, ALPHA_MAX, ALPHA_MAX, a))
                live = vload(buffer, at)
                weight = live * a
                rest = live - weight
                vstore(buffer, at, where_gt(rest, T_STOP, rest, 0.0))
                vstore(buffer, at + TILE_W, where_gt(rest, T_STOP, rest, vload(buffer, at + TILE_W)))
                weight = where_gt(rest, T_STOP, weight, 0.0)
                vstore(buffer, at + 2 * TILE_W, vload(buffer, at + 2 * TILE_W) + weight * c0)
                vstore(buffer, at + 3 * TILE_W, vload(buffer, at + 3 * TILE_W) + weight * c1)
                vstore(buffer, at + 4 * TILE_W, vload(buffer, at + 4 * TILE_W) + weight * c2)
                vstore(buffer, at + 5 * TILE_W, vload(buffer, at + 5 * TILE_W) + weight * c3)
                for k in range(4, depth):
                    to = at + (2 + k) * TILE_W
                    vstore(buffer, to, vload(buffer, to) + weight * g[8 + k])
                dy += 1.0
        for y in range(min(TILE_H, height - y0)):
            at = TILE_W + y * stride + TILE_W
            for x in range(min(TILE_W, width - x0)):
                rest = buffer[at + x]
                alpha[c, y0 + y, x0 + x] = 1 - rest
                for k in range(image.shape[3]):
                    behind = rest * background[min(c, background.shape[0] - 1), k]
                    image[c, y0 + y, x0 + x, k] = buffer[at + x + (1 + k) * TILE_W] + behind


@_jit
def _load_gradients(buffer, stride, c, x0, y0, size, image, alpha, v_image, v_alpha):
    """Fill the lines of a tile for `composite_grad`; pixels beyond the right border count as stopped."""
    width, height = size
    buffer[TILE_W : TILE_W + TILE_H * stride] = 0.0
    for y in range(min(TILE_H, height - y0)):
        for x in range(min(TILE_W, width - x0)):
            at = TILE_W + y * stride + x
            rest = 1 - alpha[c, y0 + y, x0 + x]
            suffix = -v_alpha[c, y0 + y, x0 + x] * rest
            for k in range(image.shape[3]):
                v = v_image[c, y0 + y, x0 + x, k]
                buffer[at + (2 + k) * TILE_W] = v
                suffix += v * image[c, y0 + y, x0 + x, k]
            buffer[at] = 1.0
            buffer[at + TILE_W] = suffix


@_jit
def composite_grad(
    first, last, size, packed, starts, items, lines, slots, bases, image, alpha, v_image, v_alpha, sums
):  # fmt: skip
    """Gradient of `composite` for the rows of tiles first..last, accumulated in sums (slots, 8 + 8 ceil(D / 8)) flat.

    Front to back again: with q_i = c_i . dL/dC and suffix S_i = sum_{j > i} w_j q_j + T_end (background term - dL/dA),
    dL/dalpha_i = T_i q_i - S_i / (1 - alpha_i). A slot holds the sums over pixels of g = alpha dL/dalpha times
    1, dx, dy, dx^2, dx dy, dy^2 (two lanes unused), then w_i dL/dC per channel.
    """
    columns, rows, depth = -(-size[0] // TILE_W), -(-size[1] // TILE_H), packed.shape[2] - 8
    # per line: live transmittance, suffix, D' channels of dL/dC; behind them the colour sums of one Gaussian
    stride = TILE_W * (2 + depth)
    tail = TILE_W + TILE_H * stride
    blocks = -(-depth // 8)
    buffer = np.zeros(tail + blocks * 8 * TILE_W, packed.dtype)
    buffer[:TILE_W] = np.arange(TILE_W)
    zero = vfull(buffer, 0.0)
    for tile in range((last - first) * columns):
        if starts[tile] == starts[tile + 1]:
            continue
        row = first + tile // columns
        c, r, x0 = row // rows, row % rows, (tile % columns) * TILE_W
        y0 = r * TILE_H
        low, high = 0, min(TILE_H, size[1] - y0)
        _load_gradients(buffer, stride, c, x0, y0, size, image, alpha, v_image, v_alpha)
        for e in range(starts[tile], starts[tile + 1]):
            if (e - starts[tile]) % 8 == 7:
                low, high = _live_lines(buffer, stride, low, high)
                if low == high:
                    break
            item = items[e]
            i = item >> 16
            g = packed[c, i]
            y, end = max((item >> 8) & 255, low), min(item & 255, high)
            if y >= end:
                continue
            dx = vload(buffer, 0) + (x0 + 0.5 - g[0])
            constant, linear, square = dx * dx * g[2] + g[5], dx * g[3], vfull(buffer, g[4])
            dy = vfull(buffer, y0 + y + 0.5 - g[1])
            c0, c1, c2, c3 = vfull(buffer, g[8]), vfull(buffer, g[9]), vfull(buffer, g[10]), vfull(buffer, g[11])
            s, sy, syy, s0, s1, s2, s3 = zero, zero, zero, zero, zero, zero, zero
            for to in range(tail + 4 * TILE_W, tail + depth * TILE_W, TILE_W):
                vstore(buffer, to, 0.0)
            for at in range(TILE_W + y * stride, TILE_W + end * stride, stride):
                raw = vexp2(constant + dy * (linear + square * dy))
                a = where_gt(ALPHA_MIN, raw, 0.0, where_gt(raw, ALPHA_MAX, ALPHA_MAX, raw))
                live = vload(buffer, at)
                rest = live - live * a
                vstore(buffer, at, where_gt(rest, T_STOP, rest, 0.0))
                a = where_gt(rest, T_STOP, a, 0.0)
                weight = live * a
                v0, v1 = vload(buffer, at + 2 * TILE_W), vload(buffer, at + 3 * TILE_W)
                v2, v3 = vload(buffer, at + 4 * TILE_W), vload(buffer, at + 5 * TILE_W)
                q = (v0 * c0 + v1 * c1) + (v2 * c2 + v3 * c3)
                s0 += weight * v0
                s1 += weight * v1
                s2 += weight * v2
                s3 += weight * v3
                for k in range(4, depth):
                    v = vload(buffer, at + (2 + k) * TILE_W)
                    q += v * g[8 + k]
                    to = tail + k * TILE_W
                    vstore(buffer, to, vload(buffer, to) + weight * v)
                gain = weight * q
                suffix = vload(buffer, at + TILE_W) - gain
                vstore(buffer, at + TILE_W, suffix)
                v_log = where_gt(raw, ALPHA_MAX, 0.0, gain - suffix * (a / (1.0 - a)))
                s += v_log
                v_log = v_log * dy
                sy += v_log
                syy += v_log * dy
                dy += 1.0
            to = (bases[c] + slots[c, i] + r - lines[c, i, 0] // TILE_H) * 8 * (1 + blocks)
            sx = s * dx
            vstore(sums, to, vload(sums, to) + vsums(s, sx, sy, sx * dx, sy * dx, syy, zero, zero))
            for b in range(blocks):
                at = tail + b * 8 * TILE_W
                if b > 0:
                    s0, s1 = vload(buffer, at), vload(buffer, at + TILE_W)
                    s2, s3 = vload(buffer, at + 2 * TILE_W), vload(buffer, at + 3 * TILE_W)
                s4, s5 = vload(buffer, at + 4 * TILE_W), vload(buffer, at + 5 * TILE_W)
                s6, s7 = vload(buffer, at + 6 * TILE_W), vload(buffer, at + 7 * TILE_W)
                to += 8
                vstore(sums, to, vload(sums, to) + vsums(s0, s1, s2, s3, s4, s5, s6, s7))


@_jit
def gather(c, first, last, order, slots, base, sums, conics, opacities, v_means2d, v_conics, v_opacities, v_colors):
    """Turn the sums of places first..last of camera c into gradients (C, N, ...) of 2D centres, conics, opacities and colours."""
    depth = v_colors.shape[2]
    width = 8 * (1 + -(-depth // 8))
    total = np.empty(width)
    for i in range(first, last):
        n = order[c, i]
        total[:] = 0.0
        for slot in range(base + slots[c, i], base + slots[c, i + 1]):
            for k in range(width):
                total[k] += sums[slot * width + k]
        a, b, d = conics[c, n, 0], conics[c, n, 1], conics[c, n, 2]
        v_means2d[c, n, 0] = a * total[1] + b * total[2]
        v_means2d[c, n, 1] = b * total[1] + d * total[2]
        v_conics[c, n, 0], v_conics[c, n, 1], v_conics[c, n, 2] = -0.5 * total[3], -total[4], -0.5 * total[5]
        v_opacities[c, n] = total[0] / opacities[min(c, opacities.shape[0] - 1), n]
        for k in range(depth):
            v_colors[c, n, k] = total[8 + k]


# ---------------------------------------------------------------------------------------------------------- threads


@lru_cache(maxsize=4)
def _pool(process, threads):
    """Thread pool of this process: a forked child has another process id and starts its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="aa-raster")


def run_parallel(task, count, threads):
    """Call task(0) ... task(count - 1) on `threads` threads, this one included, each taking the next one left."""
    left = iter(range(count))

    def work():
        for k in left:
            task(k)

    helpers = min(threads, count) - 1
    futures = [_pool(os.getpid(), threads).submit(work) for _ in range(helpers)] if helpers > 0 else []
    work()
    for future in futures:
        future.result()


class CompileNotice:
    """Context that tells the user, once it has taken a second, that numba is compiling; silent with a warm cache."""

    def __enter__(self):
        text = "aa: compiling the CPU renderer once, about 20 s\n"
        self.timer = threading.Timer(1.0, sys.stderr.write, (text,))
        self.timer.daemon = True
        self.timer.start()

    def __exit__(self, *exception):
        self.timer.cancel()

"""CPU kernels of the EWA projection (numba): 3D Gaussians to 2D ones and the analytic gradient of that."""

import math

import numpy as np

from aa.raster_simd import jit

# constants of gsplat 1.5.3 (Common.h, ProjectionEWA3DGSFused.cu, Utils.cuh, RasterizeToPixels3DGSFwd.cu)
ALPHA_MAX = 0.999
T_STOP = 1e-4  # a pixel stops before its transmittance falls to this
ALPHA_MIN = 1.0 / 255.0  # fainter Gaussians are skipped
EXTENT = 3.33  # standard deviations where opacity 1 has fallen to ALPHA_MIN
BORDER = 0.15  # the Jacobian is taken at most this share of the image outside of it, where it would blow up


@jit
def _rotation(q, R):
    """Fill R (3, 3) with the rotation of quaternion q (4,) wxyz, normalised here; returns |q|."""
    norm = math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])
    w, x, y, z = q[0] / norm, q[1] / norm, q[2] / norm, q[3] / norm
    R[0, 0], R[0, 1], R[0, 2] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    R[1, 0], R[1, 1], R[1, 2] = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    R[2, 0], R[2, 1], R[2, 2] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
    return norm


@jit
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
    margin_x, margin_y = BORDER * frame[0] / fx, BORDER * frame[1] / fy
    u = min(max(pc[0] / z, -cx / fx - margin_x), (frame[0] - cx) / fx + margin_x)
    v = min(max(pc[1] / z, -cy / fy - margin_y), (frame[1] - cy) / fy + margin_y)
    J[0, 0], J[0, 1], J[0, 2] = fx / z, 0.0, -fx * u / z
    J[1, 0], J[1, 1], J[1, 2] = 0.0, fy / z, -fy * v / z
    for j in range(3):
        U[0, j] = J[0, 0] * M[0, j] + J[0, 2] * M[2, j]
        U[1, j] = J[1, 1] * M[1, j] + J[1, 2] * M[2, j]
    return norm, u != pc[0] / z, v != pc[1] / z


@jit
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


@jit
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


@jit
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

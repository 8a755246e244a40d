"""The CPU back-end of the rasteriser as PyTorch functions: numba kernels called from a pool of threads (`aa.threads`).

Their number is `torch.get_num_threads()`; results do not depend on it.
"""

import sys
import threading

import numpy as np
import torch

from aa import raster_bins as binning
from aa import raster_numba as kernels
from aa import raster_project as projection
from aa.threads import run_parallel

MOST = binning.MOST  # Gaussians in one call
CHUNK = 2048  # Gaussians per task of the projection; fixed, so that sums over Gaussians keep their order


class CompileNotice:
    """Context that tells the user, once it has taken three seconds, that numba is compiling; silent with a warm cache."""

    def __enter__(self):
        text = "aa: compiling the CPU renderer once, about 20 s\n"
        self.timer = threading.Timer(3.0, sys.stderr.write, (text,))
        self.timer.daemon = True
        self.timer.start()

    def __exit__(self, *exception):
        self.timer.cancel()


def _array(tensor):
    """Contiguous numpy view of a CPU tensor (a copy only if it was not contiguous)."""
    return tensor.detach().contiguous().numpy()


def _zeros(like, *shape):
    """Zeros of the dtype of `like`, by numpy: torch would wake its OpenMP threads, which then spin beside ours."""
    return torch.from_numpy(np.zeros(shape, _array(like).dtype))


def _chunks(C, N):
    """Tasks (camera, first, last) over all Gaussians of all cameras."""
    return [(c, n, min(n + CHUNK, N)) for c in range(C) for n in range(0, N, CHUNK)]


class Project(torch.autograd.Function):
    """`project_torch` by numba kernels."""

    @staticmethod
    def forward(ctx, means, quats, scales, opacities, viewmats, Ks, frame):
        C, N = len(viewmats), means.shape[1]
        arrays = [_array(x) for x in (means, quats, scales, opacities, viewmats, Ks)]
        out = [_zeros(means, C, N, 2), _zeros(means, C, N), _zeros(means, C, N, 3)]
        radii = torch.from_numpy(np.zeros((C, N, 2), np.int32))
        results = [x.numpy() for x in (*out, radii)]
        frame = np.array(frame, np.float64)
        run_parallel(
            lambda k: projection.project(k * CHUNK, min(k * CHUNK + CHUNK, N), *arrays, frame, *results),
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
        grads = [_zeros(x, *x.shape) for x in (means, quats, scales)]
        v_views = torch.zeros(chunks, *viewmats.shape, dtype=torch.float64)
        outputs, views = [g.numpy() for g in grads], v_views.numpy()

        def task(k):
            n0, n1 = k * CHUNK, min(k * CHUNK + CHUNK, N)
            projection.project_grad(n0, n1, *inputs, ctx.frame, *saved, *outputs, views[k])

        run_parallel(task, chunks, torch.get_num_threads())
        return (*grads, None, v_views.sum(0).to(viewmats.dtype), None, None)


class Composite(torch.autograd.Function):
    """`composite_torch` by numba kernels."""

    @staticmethod
    def forward(ctx, means2d, conics, opacities, colors, backgrounds, depths, radii, width, height):
        (C, N), D, threads = depths.shape, colors.shape[2], torch.get_num_threads()
        size, floats = (width, height), depths.detach().contiguous().numpy().dtype
        keys = _array(depths).view(np.uint32 if floats.itemsize == 4 else np.uint64)  # bits of floats >= 0 sort as ints
        arrays = [_array(x) for x in (means2d, conics, radii, opacities, colors)]
        padded = max(D, 3)  # the kernels keep the first three channels in registers
        packed, boxes = np.empty((C, N, 9 + padded), floats), np.empty((C, N, 4), np.int32)
        slots, parts, row_lists = np.empty((C, N + 1), np.int64), _chunks(C, N), [None] * C
        run_parallel(lambda k: binning.pack(*parts[k], size, *arrays, packed, boxes), len(parts), threads)

        def sort(c):
            row_lists[c] = binning.sort_into_rows(c, height, keys, boxes, slots)

        run_parallel(sort, C, threads)
        bases = np.cumsum([0, *(len(part[1]) for part in row_lists)])
        row_starts = np.concatenate([part[0][:-1] + base for part, base in zip(row_lists, bases)] + [bases[-1:]])
        row_items = np.concatenate([part[1] for part in row_lists])
        image, alpha = colors.new_empty(C, height, width, D), colors.new_empty(C, height, width)
        results = image.numpy(), alpha.numpy()
        rows = C * -(-height // binning.TILE_H)
        tasks = min(rows, 8 * threads) if threads > 1 else 1
        bounds = [rows * k // tasks for k in range(tasks + 1)]
        bins, background = [None] * tasks, _array(backgrounds)

        def render(k):
            bins[k] = binning.bin_rows(bounds[k], bounds[k + 1], size, packed, boxes, row_starts, row_items)
            kernels.composite(bounds[k], bounds[k + 1], size, row_starts, *bins[k], background, *results)

        run_parallel(render, tasks, threads)
        ctx.save_for_backward(conics, opacities, colors, backgrounds, image, alpha)
        ctx.bins = size, slots, bases, [part[2] for part in row_lists], row_starts, bounds, bins
        return image, alpha

    @staticmethod
    def backward(ctx, v_image, v_alpha):
        conics, opacities, colors, backgrounds, image, alpha = ctx.saved_tensors
        size, slots, bases, places, row_starts, bounds, bins = ctx.bins
        C, N, D, threads = len(slots), slots.shape[1] - 1, image.shape[3], torch.get_num_threads()
        lanes = 6 + max(D, 3)
        sums = np.zeros(bases[-1] * lanes, _array(image).dtype)
        inputs = [_array(x) for x in (image, alpha, v_image, v_alpha)]

        def render(k):
            first, last = bounds[k], bounds[k + 1]
            part = sums[row_starts[first] * lanes : row_starts[last] * lanes]
            kernels.composite_grad(first, last, size, row_starts, *bins[k], *inputs, part)

        run_parallel(render, len(bins), threads)
        grads = [_zeros(conics, C, N, *last) for last in ((2,), (3,), (), (D,))]
        saved, outputs = [_array(conics), _array(opacities)], [g.numpy() for g in grads]

        parts = _chunks(C, N)

        def collect(k):
            c, first, last = parts[k]
            kernels.gather(c, first, last, slots, places[c], sums[bases[c] * lanes :], *saved, *outputs)

        run_parallel(collect, len(parts), threads)
        v_means2d, v_conics, v_opacities, v_colors = grads
        v_opacities = v_opacities.sum(0, keepdim=True) if len(opacities) < C else v_opacities
        v_colors = v_colors.sum(0, keepdim=True) if len(colors) < C else v_colors
        v_backgrounds = None
        if ctx.needs_input_grad[4]:
            v_backgrounds = torch.einsum("chw,chwd->cd", 1 - alpha, v_image)
            v_backgrounds = v_backgrounds.sum(0, keepdim=True) if len(backgrounds) < C else v_backgrounds
        return v_means2d, v_conics, v_opacities, v_colors, v_backgrounds, None, None, None, None

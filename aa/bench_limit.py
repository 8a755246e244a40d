"""How much work a picture is, and how fast this CPU could do it: blended pairs, vector instructions, vector rate.

The limit counts only what no kernel of this design can avoid, at the rate at which this CPU sustains a like mix of vector
instructions on data in its first cache: one pass of the inner loop of `composite` (`composite_grad`) for every Gaussian
and every group of `TILE_W` pixels (aligned, in a line, one SIMD vector) in which it still reaches a live pixel with
alpha >= 1/255; and the set-up of the loop for every Gaussian and every tile with such a group. It leaves out projection,
sorting, binning, what the kernel visits in vain, reading and writing tiles, scalar instructions, branch misses and
latencies: the ratio to the limit is what all of these cost together. The limit is one of this algorithm: one that needs
fewer instructions per group has a lower limit.
"""

import math
import time
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np

from aa import raster_numba
from aa.raster_numba import ALPHA_MAX, T_STOP, TILE_H
from aa.raster_project import ALPHA_MIN
from aa.raster_simd import TILE_W, jit, vload, vstore, where_gt
from aa.threads import run_parallel

# Vector instructions for three channels, read off the source and checked against the assembly for AVX-512. A compare
# and the selection it steers count as two, unless a mask merges the second; a number spread over a vector is one load.
EXP2 = {"floor": 1, "round to integer and fraction": 3, "polynomial of degree 5": 5, "exponent bits": 2}
START = {
    "dx and its terms": 4, "log2(alpha) and its slope": 5, "two exp2": 2 * sum(EXP2.values()), "underflow": 1,
    "loads of the Gaussian": 10, "load of the pixel numbers": 1,
}  # fmt: skip
ALPHA = {"threshold and clamp": 2, "alpha of the next line": 2}
GROUP_INSTRUCTIONS = {
    "composite": {
        **ALPHA, "live and stopped state": 3, "weight, remaining transmittance": 2, "stop: compare, two selections": 3,
        "colours, multiply-adds": 3, "loads": 4, "stores": 4,
    },
    "composite_grad": {
        **ALPHA, "remaining transmittance": 1, "stop: compare, two selections": 3, "weight": 1, "colour . gradient": 3,
        "colour sums, multiply-adds": 3, "gain, suffix": 2, "dL/dalpha with one division": 3, "clamp: compare, selection": 2,
        "moments, dy": 5, "loads": 5, "stores": 2,
    },
}  # fmt: skip
START_INSTRUCTIONS = {
    "composite": START,
    "composite_grad": {
        **START, "moments with dx": 3, "sums over lanes, two shuffles and an addition each": 27, "adding to the sums": 3,
    },
}  # fmt: skip
MIX = 9  # vector instructions per vector of the buffer in `_mix`
CHAINS = 10  # independent multiply-adds in `_chains`: five cycles of latency at two a cycle


@jit
def _count(order, means2d, conics, radii, opacities, rest):
    """Pairs, groups and starts of one picture (see `count_work`); rest (H, W) holds ones, and 0 once a pixel has stopped."""
    height, width = rest.shape
    pairs, groups, starts = 0, 0, 0
    seen = np.full(-(-width // TILE_W), -1)  # per column of tiles the last Gaussian and row of tiles
    rows = -(-height // TILE_H)
    for i, n in enumerate(order):
        mx, my, opacity = float(means2d[n, 0]), float(means2d[n, 1]), float(opacities[n])
        a, b, d = float(conics[n, 0]), float(conics[n, 1]), float(conics[n, 2])
        x0, x1 = max(int(mx) - radii[n, 0] - 1, 0), min(int(mx) + radii[n, 0] + 2, width)
        for y in range(max(int(my) - radii[n, 1] - 1, 0), min(int(my) + radii[n, 1] + 2, height)):
            dy, last = y + 0.5 - my, -1
            for x in range(x0, x1):
                dx = x + 0.5 - mx
                alpha = min(ALPHA_MAX, opacity * math.exp(-0.5 * (a * dx * dx + d * dy * dy) - b * dx * dy))
                if alpha < ALPHA_MIN or rest[y, x] == 0.0:
                    continue
                if x // TILE_W != last:
                    last = x // TILE_W
                    groups += 1
                    if seen[last] != i * rows + y // TILE_H:
                        seen[last] = i * rows + y // TILE_H
                        starts += 1
                after = rest[y, x] * (1.0 - alpha)
                if after > T_STOP:
                    pairs += 1
                    rest[y, x] = after
                else:
                    rest[y, x] = 0.0
    return pairs, groups, starts


def count_work(inputs, render, width: int, height: int) -> dict:
    """Exact counts over all cameras of a scene (the seven tensors of `bench_scenes`): {"pairs", "groups", "starts"}.

    A pair is one pixel and one Gaussian with alpha >= 1/255 there that is blended: the pixel has not stopped, and does
    not stop at it. A group is one Gaussian and `TILE_W` aligned pixels of a line, at least one of them so reached (or
    stopped by it). A start is one Gaussian and one tile with at least one such group. Counted pixel by pixel from the
    projected Gaussians alone: nothing of the kernels is used but the size of their tiles.
    """
    import torch

    with torch.no_grad():
        meta = render(*inputs, width, height)[2]
    names = ("means2d", "conics", "radii", "depths")
    means2d, conics, radii, depths = (meta[name].cpu().numpy() for name in names)
    opacities, total = inputs[3].cpu().numpy(), np.zeros(3, np.int64)
    for c in range(len(depths)):
        order = np.argsort(depths[c], kind="stable")
        order = order[radii[c, order, 0] > 0]
        total += _count(order, means2d[c], conics[c], radii[c], opacities, np.ones((height, width)))
    return dict(zip(("pairs", "groups", "starts"), total.tolist()))


# ------------------------------------------------------------------------------------------------------- calibration


@jit
def _mix(vectors, passes, b, c):
    """Per vector of the buffer 3 multiply-adds, 2 additions, a minimum, a maximum, a load and a store.

    A mix like that of the inner loops, but with short chains and all vectors independent of each other. The buffer is
    made here: numba aligns it to vectors.
    """
    buffer = np.full(vectors * TILE_W, c)
    for _ in range(passes):
        for at in range(0, len(buffer), TILE_W):
            v = vload(buffer, at)
            x = v * b + c
            y = x * b + v
            z = y * b + x
            low, high = y - x, z - y
            high = where_gt(low, high, low, high)
            vstore(buffer, at, where_gt(high, x, x, high))
    return buffer[0]


@jit
def _chains(vectors, passes, b, c):
    """`CHAINS` independent chains of multiply-adds in registers."""
    buffer = np.full(vectors * TILE_W, c)
    v0 = v1 = v2 = v3 = v4 = v5 = v6 = v7 = v8 = v9 = vload(buffer, 0)
    v1, v2, v3, v4, v5, v6, v7, v8, v9 = v1 + 1.0, v2 + 2.0, v3 + 3.0, v4 + 4.0, v5 + 5.0, v6 + 6.0, v7 + 7.0, v8 + 8.0, v9 + 9.0
    for _ in range(passes):
        v0, v1, v2, v3, v4 = v0 * b + c, v1 * b + c, v2 * b + c, v3 * b + c, v4 * b + c
        v5, v6, v7, v8, v9 = v5 * b + c, v6 * b + c, v7 * b + c, v8 * b + c, v9 * b + c
    vstore(buffer, 0, v0 + v1 + v2 + v3 + v4 + v5 + v6 + v7 + v8 + v9)
    return buffer[0]


def calibrate(threads: int = 1, vectors: int = 64, passes: int = 20_000) -> dict:
    """Vector instructions per second and thread, on `threads` at once: {"mix": ..., "fma": multiply-adds alone}.

    The limit uses the mix: it is the higher rate wherever a CPU has more vector units than multiply-add units.
    """
    one, rates = np.float32(1), {}
    for name, kernel, runs, count in (("mix", _mix, passes, vectors * MIX), ("fma", _chains, passes * 40, CHAINS)):

        def task(k, kernel=kernel, runs=runs):
            kernel(vectors, runs, one / 2, one)

        kernel(vectors, 1, one / 2, one)  # compiled, or loaded from the cache
        start = time.perf_counter()
        run_parallel(task, threads, threads)
        rates[name] = runs * count / (time.perf_counter() - start)
    return rates


def limit_seconds(work: dict, phase: str, rate: float) -> float:
    """Shortest time of one thread for the work (of `count_work`) of a phase, at `rate` vector instructions per second."""
    names = ("composite", "composite_grad") if "backward" in phase else ("composite",)
    group, start = (sum(sum(table[name].values()) for name in names) for table in (GROUP_INSTRUCTIONS, START_INSTRUCTIONS))
    return (work["groups"] * group + work["starts"] * start) / rate


@contextmanager
def kernel_clock():
    """Collects the seconds spent inside the compositing kernels, a list with one entry per call on whichever thread."""
    seconds = []

    def timed(kernel):
        def call(*arguments):
            start = time.perf_counter()
            result = kernel(*arguments)
            seconds.append(time.perf_counter() - start)
            return result

        return call

    wrapped = {name: timed(getattr(raster_numba, name)) for name in GROUP_INSTRUCTIONS}
    with patch.multiple(raster_numba, **wrapped):
        yield seconds

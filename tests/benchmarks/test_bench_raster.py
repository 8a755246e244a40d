"""Speed of the CPU rasteriser: `pytest -m bench tests/benchmarks/test_bench_raster.py`."""

import pytest
import torch

from aa.raster import rasterize

pytest.importorskip("pytest_benchmark")
pytestmark = pytest.mark.bench

SIZES = [(10_000, 256), (20_000, 512), (50_000, 512)]


def scene(n, size, seed=0):
    """A ball of small, elongated splats that covers about three quarters of the picture."""
    g = torch.Generator().manual_seed(seed)
    means, quats = 0.5 * torch.randn(n, 3, generator=g), torch.randn(n, 4, generator=g)
    scales = 1.5 * torch.exp(0.5 * torch.randn(n, 3, generator=g) - 4.5)
    opacities, colors = 0.1 + 0.9 * torch.rand(n, generator=g), torch.rand(n, 3, generator=g)
    viewmats = torch.eye(4)[None].clone()
    viewmats[:, 2, 3] = 4
    K = torch.tensor([[[1.5 * size, 0, size / 2], [0, 1.5 * size, size / 2], [0, 0, 1]]])
    return means, quats, scales, opacities, colors, viewmats, K


@pytest.mark.parametrize(("n", "size"), SIZES)
def test_forward(benchmark, n, size):
    inputs = scene(n, size)
    renders, _, _ = benchmark.pedantic(rasterize, (*inputs, size, size), rounds=10, warmup_rounds=2)
    assert renders.isfinite().all()


@pytest.mark.parametrize(("n", "size"), SIZES)
def test_forward_and_backward(benchmark, n, size):
    inputs = [x.requires_grad_(i < 6) for i, x in enumerate(scene(n, size))]
    weight = torch.rand(1, size, size, 3, generator=torch.Generator().manual_seed(1))

    def step():
        renders, _, _ = rasterize(*inputs, size, size)
        renders.backward(weight)

    benchmark.pedantic(step, rounds=10, warmup_rounds=2)
    assert all(x.grad.isfinite().all() for x in inputs[:6])

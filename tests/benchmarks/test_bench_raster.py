"""Speed of the CPU rasteriser: `pytest -m bench tests/benchmarks/test_bench_raster.py`; `python -m aa bench` says more."""

import pytest
import torch

from aa.bench_scenes import PHASES, SIZES, build, make_steps, parse_size
from aa.raster import rasterize_torch

pytest.importorskip("pytest_benchmark")
pytestmark = pytest.mark.bench

RANDOM = [size for size in SIZES if not size.avatar]


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request):
    """torch's number of threads, which the kernels follow too."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("size", RANDOM, ids=lambda size: size.name)
def test_rasterize(benchmark, size, phase, threads):
    benchmark.group = f"{size.name} {phase}"
    step = make_steps(build(size), size.pixels)[phase]
    results = benchmark.pedantic(step, rounds=10, warmup_rounds=2)
    assert all(x.isfinite().all() for x in results)


@pytest.mark.parametrize("phase", PHASES)
def test_reference(benchmark, phase, threads):
    size = parse_size("20k-512")
    benchmark.group = f"{size.name} {phase}"
    step = make_steps(build(size), size.pixels, rasterize_torch)[phase]
    results = benchmark.pedantic(step, rounds=2, warmup_rounds=0)
    assert all(x.isfinite().all() for x in results)

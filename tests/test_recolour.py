"""Colours over time: they take up what motion leaves, within bounds, and only where something is seen."""

from types import SimpleNamespace

import pytest
import torch

from aa.gaussians import intrinsics, look_at
from aa.raster import rasterize
from aa.recolour import Shots, recolour

SIZE, FRAMES, N = 48, 6, 150


@pytest.fixture(scope="module")
def flicker():
    """Gaussians that stand still while their brightness rises; the last ten stand behind the camera."""
    g = torch.Generator().manual_seed(0)
    means = torch.randn(N, 3, generator=g) * 0.3
    means[-10:] = torch.tensor([0.0, -5.0, 0.0])
    shape = (means, torch.tensor([1.0, 0, 0, 0]).repeat(N, 1), torch.full((N, 3), 0.05))
    colors, opacities = 0.2 + 0.4 * torch.rand(N, 3, generator=g), torch.full((N,), 0.9)
    view, K, black = look_at((0, -2.5, 0), (0, 0, 0)), intrinsics(60.0, SIZE, SIZE), torch.zeros(3)
    rise = torch.linspace(0, 0.3, FRAMES)
    frames = torch.stack([rasterize(*shape, opacities, colors + r, view[None], K[None], SIZE, SIZE)[0][0] for r in rise])
    fit = SimpleNamespace(at=lambda t: [*shape, colors], gaussians=SimpleNamespace(opacities=opacities))
    footage = SimpleNamespace(frames=frames, background=black, viewmat=view, K=K)
    return fit, footage, rise


def test_brightness_that_changes_is_found(flicker):
    fit, footage, _ = flicker
    tint = recolour(Shots.of(fit, footage), rounds=3, progress=False)
    shape, opacities = fit.at(0), fit.gaussians.opacities
    left = []
    for t, frame in enumerate(footage.frames):
        *where, colors = shape
        for c in (colors, colors + tint[t]):
            left.append(rasterize(*where, opacities, c, footage.viewmat[None], footage.K[None], SIZE, SIZE)[0][0] - frame)
    before, after = (torch.stack(left[k::2]).square().mean() for k in (0, 1))
    assert after < 0.1 * before
    assert tint[-1, :-10].mean() > tint[0, :-10].mean() + 0.1


def test_what_is_not_seen_keeps_its_colour(flicker):
    fit, footage, _ = flicker
    assert not recolour(Shots.of(fit, footage), rounds=2, progress=False)[:, -10:].any()


def test_changes_are_bounded(flicker):
    fit, footage, _ = flicker
    assert recolour(Shots.of(fit, footage), rounds=2, most=0.05, progress=False).abs().max() <= 0.05

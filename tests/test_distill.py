"""Score distillation against densities in closed form, and what it does to a clip out of step with its sound."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from aa.distill import SDS, direction, noise_level, sds_gradient, track_loss, video_sds_loss
from aa.errors import InputError
from aa.mixture import MixtureTeacher

MEANS = torch.tensor([[-1.0, 0.3], [0.8, 1.0], [0.4, -0.9]], dtype=torch.float64)
SOUNDS = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
PAPER = SDS("paper", guidance=1.0, weight="one")


@pytest.fixture
def plane():
    """A mixture on the plane, a sound for two points, and the points."""
    teacher = MixtureTeacher(MEANS, SOUNDS, spread=0.4, hearing=0.8)
    return teacher, torch.tensor([[0.7], [2.5]], dtype=torch.float64), torch.tensor([[0.3, 0.2], [-0.5, 1.1]], dtype=torch.float64)


def noised_density(sigma, sound):
    """p_sigma( . | sound) by torch.distributions, apart from `aa.mixture`."""
    weight = torch.exp(-((SOUNDS[:, 0] - sound) ** 2) / (2 * 0.8**2)) if sound is not None else torch.ones(3, dtype=torch.float64)
    deviation = (((1 - sigma) * 0.4) ** 2 + sigma**2) ** 0.5
    parts = Independent(Normal((1 - sigma) * MEANS, torch.full_like(MEANS, deviation)), 1)
    return MixtureSameFamily(Categorical(weight), parts)


def score(x, sigma, sound):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(noised_density(sigma, sound).log_prob(x).sum(), x)[0]


@pytest.mark.parametrize("sigma", [0.1, 0.5, 0.9])
def test_the_teachers_prediction_is_the_score_of_its_density(plane, sigma):
    teacher, sounds, z = plane
    level = torch.full((2,), sigma, dtype=torch.float64)
    for sound in (sounds, None):
        v = teacher.velocity(z, level, sound)
        eps_hat = z + (1 - sigma) * v
        expected = torch.cat([-sigma * score(z[k : k + 1], sigma, None if sound is None else sound[k, 0]) for k in range(2)])
        torch.testing.assert_close(eps_hat, expected)
        density = torch.stack([noised_density(sigma, None if sound is None else sound[k, 0]).log_prob(z[k]) for k in range(2)])
        torch.testing.assert_close(teacher.log_density(z, level, sound), density)


def test_the_gradient_is_that_of_eq_2(plane):
    """grad by Phi = mean of w (eps_hat - eps) dz/dPhi, eps_hat from the closed-form score; z = Phi A through an encoder."""
    teacher, sounds, _ = plane
    A = torch.tensor([[1.0, 0.5, -0.2], [0.1, -0.7, 0.4]], dtype=torch.float64)
    teacher.encode = lambda frames: frames @ A.T  # a linear one
    frames = torch.tensor([[0.2, -0.4, 0.9], [0.5, 0.1, -0.3]], dtype=torch.float64, requires_grad=True)
    eps, sigma = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.7])
    video_sds_loss(teacher, frames, sounds, None, replace(PAPER, weight="sigma2"), sigma=sigma.double(), eps=eps).backward()
    z = (frames @ A.T).detach()
    for k, s in enumerate([0.3, 0.7]):
        z_sigma = (1 - s) * z[k : k + 1] + s * eps[k : k + 1]
        g = s**2 * (-s * score(z_sigma, s, sounds[k, 0]) - eps[k : k + 1]) / z.numel()
        torch.testing.assert_close(frames.grad[k], (g @ A)[0], atol=1e-8, rtol=1e-5)


def test_its_expectation_climbs_the_smoothed_density(plane):
    """E_eps[eps_hat - eps] = -sigma E[score], by Gauss-Hermite quadrature, and that is the slope of the smoothed log density."""
    teacher, sounds, z = plane
    sigma, (at, weight) = 0.6, np.polynomial.hermite_e.hermegauss(40)
    grid = torch.tensor(np.stack(np.meshgrid(at, at), -1).reshape(-1, 2))
    mass = torch.tensor(np.outer(weight, weight).ravel() / weight.sum() ** 2)
    n = 40_000
    g = torch.Generator().manual_seed(1)
    eps = torch.randn(n, 2, dtype=torch.float64, generator=g)
    for k in range(2):
        smoothed = lambda x, k=k: (mass * noised_density(sigma, sounds[k, 0]).log_prob((1 - sigma) * x + sigma * grid)).sum()  # noqa: E731
        x = z[k].clone().requires_grad_()
        slope = torch.autograd.grad(smoothed(x), x)[0]  # = (1 - sigma) E[score]
        level = torch.full((n,), sigma, dtype=torch.float64)
        drawn = sds_gradient(teacher, z[k].expand(n, 2), level, eps, sounds[k].expand(n, 1), None, PAPER)
        error = 4 * drawn.std(0) / n**0.5
        assert ((drawn.mean(0) + sigma / (1 - sigma) * slope).abs() < error).all()


def test_parametrisations_differ_by_the_noise_level_alone(plane):
    teacher, sounds, z = plane
    eps, sigma = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), torch.tensor([0.2, 0.85])
    sigma = sigma.double()
    s = sigma[:, None]
    z_sigma = (1 - s) * z + s * eps
    v_hat = teacher.velocity(z_sigma, sigma, sounds)
    errors = {"eps": z_sigma + (1 - s) * v_hat - eps, "v": v_hat - (eps - z), "x0": z - (z_sigma - s * v_hat)}
    for name, error in errors.items():
        torch.testing.assert_close(
            sds_gradient(teacher, z, sigma, eps, sounds, None, replace(PAPER, parametrisation=name)), error
        )  # fmt: skip
        torch.testing.assert_close(error, {"eps": 1 - s, "v": 1, "x0": s}[name] * errors["v"])


def test_directions_and_guidance(plane):
    teacher, sounds, z = plane
    teacher.images = torch.tensor([[0.0], [0.5], [1.0]], dtype=torch.float64)
    image, sigma = torch.tensor([[0.2], [0.9]], dtype=torch.float64), torch.tensor([0.4, 0.4], dtype=torch.float64)
    eps = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    z_sigma = teacher.add_noise(z, sigma, eps)
    v = {(a, i): teacher.predict(z_sigma, sigma, sounds if a else None, image if i else None) for a in (0, 1) for i in (0, 1)}
    config = SDS("paper", guidance=3.0, image_guidance=2.0)
    expected = v[0, 0] + 2 * (v[0, 1] - v[0, 0]) + 3 * (v[1, 1] - v[0, 1]) - (eps - z)
    torch.testing.assert_close(direction(teacher, z, sigma, eps, sounds, image, config), expected)
    plain = SDS("null-subtracted", guidance=3.0)
    torch.testing.assert_close(direction(teacher, z, sigma, eps, sounds, image, plain), 3 * (v[1, 1] - v[0, 1]))
    # what null-subtraction keeps is the slope of log p(sound | z_sigma)
    x = z_sigma.clone().requires_grad_()
    classifier = (teacher.log_density(x, sigma, sounds, image) - teacher.log_density(x, sigma, None, image)).sum()
    slope = torch.autograd.grad(classifier, x)[0]
    torch.testing.assert_close(v[1, 1] - v[0, 1], -0.4 / 0.6 * slope)


def test_noise_levels_come_down_and_gradients_are_clipped(plane):
    teacher, sounds, z = plane
    u = torch.linspace(0, 1, 5)
    assert noise_level(SDS(), u).max() == pytest.approx(0.98)
    assert noise_level(SDS(), u, 1.0).max() == pytest.approx(0.5)
    assert noise_level(SDS(), u, 0.3).min() == pytest.approx(0.02)
    eps, sigma = torch.ones_like(z), torch.full((2,), 0.9, dtype=torch.float64)
    g = sds_gradient(teacher, z, sigma, eps, sounds, None, replace(PAPER, clip=0.01))
    torch.testing.assert_close(g.square().mean(1).sqrt(), torch.full((2,), 0.01, dtype=torch.float64))


def test_chance_comes_from_the_generator(plane):
    teacher, sounds, z = plane
    losses = [float(video_sds_loss(teacher, z, sounds, None, generator=torch.Generator().manual_seed(s))) for s in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_wrong_settings_are_named():
    for wrong in ({"direction": "up"}, {"parametrisation": "score"}, {"weight": "big"}, {"low": 0.7}, {"draws": 0}):
        with pytest.raises(InputError):
            SDS(**wrong)
    with pytest.raises(InputError, match="one for each"):
        MixtureTeacher(MEANS, SOUNDS[:2])


def test_track_loss_ignores_the_hidden_and_the_robust_form_outliers():
    tracks = torch.zeros(3, 4, 2)
    pixels, visible = tracks.clone().requires_grad_(), torch.ones(3, 4, dtype=torch.bool)
    visible[0, 0] = False
    with torch.no_grad():
        pixels[0, 0], pixels[1, 1], pixels[2, 2] = 50.0, 1.0, 20.0
    grads = []
    for robust in (False, True):
        pixels.grad = None
        track_loss(pixels, tracks, visible, 100, robust).backward()
        grads.append(pixels.grad.clone())
    assert (grads[0][0, 0] == 0).all()
    assert (grads[1][0, 0] == 0).all()
    assert grads[0][2, 2, 0] / grads[0][1, 1, 0] == pytest.approx(20)
    assert grads[1][2, 2, 0] / grads[1][1, 1, 0] == pytest.approx(1)


# ---------------------------------------------------------------- a mouth out of step


FRAMES, SIDE = 9, 8


def curve(count, seed):
    """A mouth's opening (count,) in [0, 1], as quick as speech."""
    rng = np.random.default_rng(seed)
    x = np.convolve(rng.standard_normal(count + 8), np.hanning(7), "same")[4 : 4 + count]
    return torch.from_numpy(1 / (1 + np.exp(-2 * x))).float()


def draw(opening):
    """Pictures (..., T, 8, 8, 3) of a dark mouth that is `opening` (..., T) high, differentiable."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    high = 0.1 + 0.7 * opening[..., None, None]
    inside = torch.sigmoid(8 * (1 - (x / 0.8) ** 2 - (y / high) ** 2))
    return (0.8 - 0.6 * inside)[..., None].expand(*inside.shape, 3)


def windows(x):
    return x.unfold(0, FRAMES, 1)


@pytest.fixture(scope="module")
def mouths():
    """A teacher that knows 500 frames of a mouth and the sound it goes with (the opening itself, shaken)."""
    known = curve(500, 0)
    heard = known + 0.05 * torch.randn(500, generator=torch.Generator().manual_seed(0))
    return known, MixtureTeacher.of_clips(draw(windows(known)), windows(heard), shrink=2, spread=0.15, hearing=0.12)


def lag(opening, truth):
    """By how many frames (B, T) runs behind the curve `truth` (B, T + 8), of which [4:-4] is in time, (B,)."""
    error = torch.stack([(opening - truth[:, 4 - d : 4 - d + FRAMES]).square().mean(1) for d in range(-4, 5)])
    return error.argmin(0) - 4


def pulled(teacher, start, sounds, config, steps=60):
    """Openings (B, T) after some steps of Adam on Eq. 2 alone."""
    logits = start.clamp(0.02, 0.98).logit().requires_grad_()
    adam, g = torch.optim.Adam([logits], 0.15), torch.Generator().manual_seed(0)
    for n in range(steps):
        adam.zero_grad()
        video_sds_loss(teacher, draw(logits.sigmoid()), sounds, None, config, progress=n / steps, generator=g).backward()
        adam.step()
    return logits.detach().sigmoid()


def mistimed(known, shift, count=16):
    """Truth (B, T + 8) around windows, openings `shift` frames late, and the sound of the windows."""
    at = torch.linspace(10, 470, count).long()
    truth = torch.stack([known[t - 4 : t + FRAMES + 4] for t in at])
    return truth, truth[:, 4 - shift : 4 - shift + FRAMES], truth[:, 4:-4]


@pytest.mark.parametrize("shift", [-3, 2])
def test_sds_pulls_a_mistimed_mouth_into_step(mouths, shift):
    known, teacher = mouths
    truth, start, sounds = mistimed(known, shift)
    before, after = lag(start, truth), lag(pulled(teacher, start, sounds, SDS()), truth)
    assert (before == shift).float().mean() > 0.9
    assert (after.abs() <= 1).float().mean() > 0.8, after


def test_a_teacher_that_hears_dully_needs_guidance_or_null_subtraction(mouths):
    known, teacher = mouths
    dull = MixtureTeacher(teacher.means, teacher.sounds, spread=teacher.spread, hearing=1.5, shrink=2)
    truth, start, sounds = mistimed(known, -3)
    found = {}
    for config in (SDS("paper", guidance=1.0), SDS("paper"), SDS("null-subtracted")):
        late = lag(pulled(dull, start, sounds, config), truth)
        found[config.direction, config.guidance] = float((late.abs() <= 1).float().mean())
    assert found["paper", 1.0] < 0.3
    assert found["paper", 7.5] > 0.6
    assert found["null-subtracted", 7.5] > 0.6


def test_samples_follow_the_sound(mouths):
    known, teacher = mouths
    audio = teacher.cut(teacher.hear(known), [100])
    frames = teacher.sample(None, audio, seed=1)
    assert frames.shape == (1, FRAMES, SIDE, SIDE, 3)
    again = teacher.sample(None, audio, seed=1)
    assert torch.equal(frames, again)
    truth = draw(windows(known)[100:101])
    dark = lambda x: x.mean((2, 3, 4))[0]  # noqa: E731
    assert torch.corrcoef(torch.stack([dark(frames), dark(truth)]))[0, 1] > 0.8

"""Motion diffusion: FiLM, schedule, windows; and the shipped model against performances it has not seen."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from aa.body import ASSETS, load_body
from aa.errors import InputError
from aa.motion import FiLM, MotionConfig, MotionDiT, MotionModel, Refiner, Sampler, noise_scheduler, time_embedding
from aa.motion_data import Recipe, Stage, recipes, sound_of
from aa.motion_metrics import Judge, closure_rate, correlation, lagged_correlation
from aa.motion_training import known_frames, motion_loss, noised
from aa.speech import speak
from aa.visemes import lip_aperture


@pytest.fixture(scope="module")
def stage():
    return Stage(load_body())


@pytest.fixture(scope="module")
def model():
    return MotionModel.load()


@pytest.fixture(scope="module")
def audio():
    return speak("People bring maps when the weather is bad.", "us-man", seed=0).audio


# ---------------------------------------------------------------- pieces


def test_film_starts_unconditional():
    film, h = FiLM(16, 8), torch.randn(2, 5, 16)
    plain = torch.nn.functional.layer_norm(h, (16,))
    torch.testing.assert_close(film(h, torch.randn(2, 1, 8)), plain)
    torch.nn.init.normal_(film.modulate.weight)
    e = torch.randn(2, 1, 8)
    scale, shift = film.modulate(torch.nn.functional.silu(e)).chunk(2, -1)
    torch.testing.assert_close(film(h, e), plain * (1 + scale) + shift)


def test_transformer_and_refiner_start_at_rest_and_identity(model):
    config, embedding = MotionConfig(layers=2), model.embedding.config
    D = sum(embedding.latents.values())
    dit, refiner = MotionDiT(D, config, embedding), Refiner(embedding.latents, config, config.width)
    x, none = torch.randn(2, 20, D), torch.zeros(2, 20, dtype=torch.bool)
    heard = dit.condition(torch.randn(2, 20, embedding.width), torch.randn(2, 20, embedding.features))
    assert dit(x, heard, torch.tensor([3, 900]), none, x).abs().max() == 0
    torch.testing.assert_close(refiner(x, heard, torch.arange(20).expand(2, -1)), x)
    torch.nn.init.normal_(refiner.leave.weight)
    for block in refiner.blocks:
        torch.nn.init.normal_(block.film1.modulate.weight)
    refined = refiner(x, heard, torch.arange(20).expand(2, -1))
    torch.testing.assert_close(refined[..., : embedding.body], x[..., : embedding.body])  # the body is left alone
    assert (refined != refiner(x, heard, torch.arange(100, 120).expand(2, -1))).any()  # the index t counts


def test_time_embedding_tells_steps_apart():
    e = time_embedding(torch.arange(1000), 64)
    assert e.shape == (1000, 64)
    near = torch.cdist(e, e) + 99 * torch.eye(1000)
    assert near.min() > 1e-3
    assert float(e[0, 0]) == pytest.approx(1)


def test_schedule_is_that_of_diffusers():
    scheduler = noise_scheduler(MotionConfig())
    t = torch.arange(1001) / 1000
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    alpha_bar = torch.cumprod(1 - (1 - f[1:] / f[:-1]).clamp(max=0.999), 0)  # Nichol and Dhariwal 2021, Eq. 17
    torch.testing.assert_close(scheduler.alphas_cumprod, alpha_bar, atol=1e-5, rtol=1e-3)
    x0, noise, tau = torch.randn(2, 4, 3), torch.randn(2, 4, 3), torch.tensor([40, 700])
    torch.testing.assert_close(noised(x0, tau, alpha_bar, noise), scheduler.add_noise(x0, noise, tau), atol=1e-4, rtol=1e-3)
    # One DDIM step by hand: the noise that x0 implies, put back at the lower level.
    scheduler.set_timesteps(8)
    now, after = scheduler.timesteps[2], scheduler.timesteps[3]
    a, b = scheduler.alphas_cumprod[now], scheduler.alphas_cumprod[after]
    x = scheduler.add_noise(x0, noise, now.expand(2))
    wanted = b.sqrt() * x0 + (1 - b).sqrt() * (x - a.sqrt() * x0) / (1 - a).sqrt()
    torch.testing.assert_close(scheduler.step(x0, now, x).prev_sample, wanted, atol=1e-5, rtol=1e-4)


def test_given_frames_do_not_count_and_are_kept(model):
    x0, weight = torch.zeros(1, 10, 2), torch.ones(2)
    known = torch.arange(10)[None] < 4
    x0_hat = x0.clone()
    x0_hat[:, :4] = 5.0
    assert float(motion_loss(x0_hat, x0, weight, known)["simple"]) == 0
    x0_hat[:, 7] = 1.0
    loss = motion_loss(x0_hat, x0, weight, known)
    assert float(loss["simple"]) == pytest.approx(2 / 10)
    drawn = known_frames(200, 80, 12, np.random.default_rng(0))
    assert (drawn.sum(1) == 12).float().mean() > 0.5
    assert (drawn.sum(1) < 12).any()
    assert (drawn.sum(1) > 60).any()
    first = torch.randn(1, 12, len(model.scale)) * 0.1
    noise, heard = torch.randn(1, 40, len(model.scale)), torch.randn(1, 40, model.config.width)
    with torch.no_grad():
        x = Sampler(model, 1.0, steps=3)(noise, heard, first)
    torch.testing.assert_close(x[:, :12], first)


def test_scores_by_hand():
    t = np.arange(100) / 5
    assert lagged_correlation(np.sin(t - 0.6), np.sin(t))[1] == 3
    assert correlation(np.ones(9), np.arange(9)) == 0
    gap = np.ones(50)
    gap[[10, 30]] = 0.05
    assert closure_rate(gap, [11, 30]) == 1
    assert closure_rate(gap, [11, 20]) == 0.5
    assert closure_rate(gap, [11, 30], shift=5) == 0
    assert closure_rate(gap, []) is None


# ---------------------------------------------------------------- generation


def test_any_length_and_the_same_seed(model, audio):
    for samples, frames in ((640, 1), (3200, 5), (len(audio), round(25 * len(audio) / 16000))):
        motion = model.generate(audio[:samples])
        assert motion.means.shape == motion.rotvecs.shape == (frames, 17206, 3)
        assert motion.means.isfinite().all()
    again, other = model.generate(audio), model.generate(audio, seed=1)
    assert torch.equal(motion.means, again.means)
    assert not torch.equal(motion.means, other.means)


def test_silence_rests(model, stage):
    talking = lip_aperture(stage.rest + model.generate(speak("Mama bought a happy parrot.", "us-woman").audio).means)
    for sound in (np.zeros(64000, np.float32), 1e-3 * np.random.default_rng(0).standard_normal(64000).astype(np.float32)):
        motion = model.generate(sound)
        gap = lip_aperture(stage.rest + motion.means)
        assert float(gap.mean()) < 0.05 * float(torch.quantile(talking, 0.9))
        assert motion.means[:, stage.parts.hand].norm(dim=-1).median() < 0.05, "arms hang at ease, give or take a sway"


def test_long_sound_comes_in_pieces_without_seams(model, audio):
    sound = np.tile(np.concatenate([audio, np.zeros(5000, np.float32)]), 5)
    pieces = list(model.stream(sound, chunk=25))
    assert all(len(p) <= 25 for p in pieces)
    means = torch.cat([p.means for p in pieces])
    assert len(means) == round(25 * len(sound) / 16000)
    speed = means.diff(dim=0).norm(dim=-1)  # (T - 1, V)
    jump = speed[:, torch.cat([model.basis.parts.body, model.basis.parts.hand])].mean(1)
    hop = model.config.window - model.config.known - model.config.margin
    seams = jump[hop - 1 :: hop]
    elsewhere = np.delete(jump.numpy(), range(hop - 1, len(jump), hop))
    assert len(seams) >= 4
    assert seams.mean() < 1.5 * elsewhere.mean()
    assert seams.max() < np.percentile(elsewhere, 99) * 1.5


def test_lips_follow_unseen_sentences(stage, model):
    judge = Judge(stage.body, model)
    for recipe in recipes(2, seed=90, split="held-out", voices=("us-man", "gb-woman"), people=0):
        row = judge.clip(recipe)
        assert correlation(row["made"], row["truth"]) >= 0.85, recipe
        assert row["made"][row["silent"]].mean() < 0.1 * np.percentile(row["made"], 90)


def test_saved_and_loaded_is_the_same(model, audio, tmp_path):
    model.save(tmp_path / "m.safetensors", {"seed": 1})
    copy = MotionModel.load(tmp_path / "m.safetensors")
    assert (tmp_path / "m.json").exists()
    assert (ASSETS / "motion.safetensors").stat().st_size < 20e6
    a, b = model.generate(audio[:16000]), copy.generate(audio[:16000])
    torch.testing.assert_close(a.means, b.means, atol=1e-4, rtol=0)


def test_files_that_hold_no_model_are_refused_in_a_sentence(model, tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(InputError, match="there is no motion model"):
        MotionModel.load(path)
    path.write_bytes((ASSETS / "motion.safetensors").read_bytes()[:-1000])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        MotionModel.load(path)
    path.write_text("not weights at all")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        MotionModel.load(path)
    with pytest.raises(InputError, match="holds no motion model"):
        MotionModel.load(ASSETS / "body.safetensors")
    was, model.config = model.config, replace(model.config, width=64)
    model.save(path)
    model.config = was
    with pytest.raises(InputError, match="do not fit the sizes"):
        MotionModel.load(path)


def test_pauses_and_rest_are_part_of_the_data(stage):
    rest = [r for r in recipes(20) if r.kind == "rest"]
    assert len(rest) == 2
    speech = sound_of(rest[0])
    assert not np.any(speech.audio)
    assert float(stage.lips(stage.motion(rest[0], speech, every=10)).max()) < 2e-4
    assert [r.text for r in recipes(20)] == [r.text for r in recipes(40)[:20]]
    assert isinstance(rest[0], Recipe)

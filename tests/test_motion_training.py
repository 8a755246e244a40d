"""Batches, the three objectives, baselines and ablations, on a handful of clips."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from aa.ablations import SMALL, SMALL_EMBEDDING, ablations, interval
from aa.audio import PROSODY, feature_dim
from aa.batches import Clips
from aa.body import load_body
from aa.motion_baselines import Retrieval
from aa.motion_data import Recipe, Stage, learn_basis, make_clip
from aa.motion_metrics import Judge
from aa.motion_training import DiffusionObjective, RefinerObjective, lip_reader, train_motion
from aa.speech import speak

RECIPES = [Recipe("speech", ("Maybe the boat will come back.",), "us-man", seed=n, takes=2) for n in (1, 2)] + [
    Recipe("rest", seed=3, takes=1)
]


@pytest.fixture(scope="module")
def stage():
    return Stage(load_body())


@pytest.fixture(scope="module")
def basis(stage):
    return learn_basis(stage, RECIPES[:2], every=3)


@pytest.fixture(scope="module")
def clips(stage, basis):
    few = stage.sparse()
    reduced = stage.select(few), basis.select(few)
    return [make_clip(stage, basis, r, reduced) for r in RECIPES]


@pytest.fixture(scope="module")
def trained(basis, clips):
    return train_motion(basis, clips, (15, 50, 4), config=SMALL, embedding=SMALL_EMBEDDING)


def test_batches_begin_at_rest_and_hide_prosody_half_of_the_time(basis, clips):
    source = Clips(clips, basis.sizes, SMALL)
    assert torch.equal(source.coordinates[0][: SMALL.known], torch.zeros(SMALL.known, sum(basis.sizes.values())))
    assert torch.equal(source.features[0][1, 0], source.rest)
    c, f, silent = source.batch(200, np.random.default_rng(0))
    assert c.shape[:2] == f.shape[:2] == silent.shape == (200, SMALL.window)
    assert f.shape[2] == feature_dim("phones")
    hidden = (f[..., -PROSODY:] == source.mean[-PROSODY:]).all(-1).all(-1)
    assert 0.35 < hidden.float().mean() < 0.65
    rest = source.disturbed(source.rest.expand(30, -1), np.random.default_rng(1))
    torch.testing.assert_close(rest[:, :-PROSODY], source.rest.expand(30, -1)[:, :-PROSODY])


def test_training_lowers_every_loss(trained):
    model, curves = trained
    assert set(curves) == {"embedding", "diffusion", "refiner"}
    assert [len(c["total"]) for c in curves.values()] == [15, 50, 4]
    for stage in ("embedding", "diffusion"):
        assert np.mean(curves[stage]["total"][-4:]) < np.mean(curves[stage]["total"][:4])
    assert not model.training


def test_without_the_embedding_latents_are_pca_and_the_sound_is_raw(basis, clips):
    model, curves = train_motion(basis, clips, (5, 1, 1), config=replace(SMALL, embedded=False), embedding=SMALL_EMBEDDING)
    assert curves["embedding"] == {}
    c = clips[0]["coordinates"]
    x = model.embedding.encoder(c[None])[0]
    torch.testing.assert_close(x[:, : SMALL_EMBEDDING.body], c[:, : SMALL_EMBEDDING.body])
    sound = clips[0]["features"][:1].float()
    before = model.hear(sound)
    torch.nn.init.normal_(model.embedding.audio.enter.weight)
    torch.testing.assert_close(model.hear(sound), before)


def test_refiner_learns_from_what_is_drawn_and_is_not_asked_for_what_is_hidden(trained, basis, clips):
    model = trained[0]
    objective = RefinerObjective(model, Clips(clips, basis.sizes, SMALL))
    batch = list(objective.draw(np.random.default_rng(0), 2))
    with torch.no_grad():
        simple = []
        for first in (0, 5):
            batch[3] = torch.tensor(first)
            simple.append(float(objective(*batch)["simple"]))
    assert simple[0] < 1e-3, "from pure noise nothing of the truth can be asked for"
    assert simple[1] > 1e-3
    with torch.no_grad():
        reader, basis_lips = lip_reader(basis), DiffusionObjective(model, objective.clips).open
    assert torch.equal(reader, basis_lips)


def test_regression_draws_nothing(basis, clips):
    config = replace(SMALL, regression=True, refine=False)
    model, _ = train_motion(basis, clips, (3, 6, 0), config=config, embedding=SMALL_EMBEDDING)
    audio = clips_audio()
    first, second = (torch.cat(list(model.stream_latents(audio, seed=s))) for s in (0, 1))
    torch.testing.assert_close(first, second)


def clips_audio():
    return speak("Maybe the boat will come back.", "us-man").audio


def test_retrieval_copies_training_motion(trained, basis, clips):
    source = Clips(clips, basis.sizes, SMALL)
    copy = Retrieval(trained[0], source)
    x = torch.cat(list(copy.stream_latents(clips_audio(), frames=60)))
    assert x.shape == (60, len(copy.scale))
    assert torch.cdist(x[4:10], copy.x).amin(1).max() < 1e-2, "inside a piece it is training motion to the letter"
    again = torch.cat(list(copy.stream_latents(clips_audio(), seed=1, frames=60)))
    assert not torch.equal(x, again)


def test_ablations_compare_with_the_full_model(stage, basis, clips, trained):
    judge = Judge(stage.body, trained[0])
    out = ablations(judge, basis, clips, RECIPES[:1], clips[:2], seeds=2, steps=(2, 2, 1), variants=("full", "no patch contrast"))
    assert set(out) == {"full", "no patch contrast"}
    assert all(v == (0, 0, 0) for v in out["full"]["effect"].values())
    effect = out["no patch contrast"]["effect"]
    assert {"recall1_patch", "lip_corr", "closure"} <= set(effect)
    assert all(low <= mean <= high for mean, low, high in effect.values())
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert (mean, round(low, 2), round(high, 2)) == (2.0, -0.48, 4.48)  # t = 4.303 with two degrees of freedom

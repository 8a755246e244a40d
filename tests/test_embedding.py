"""Part split, particle basis, and the losses of the shared space."""

import math

import pytest
import torch

from aa.audio import feature_dim
from aa.body import load_body
from aa.embedding import Embedding, EmbeddingConfig, contrastive, embedding_losses, info_nce, negatives_allowed, patches
from aa.motion_data import Recipe, Stage, make_clip
from aa.parts import PARTS, Basis, fit_basis, join_parts, rigid_fit, split_parts
from aa.transfer import motion_from_rest


@pytest.fixture(scope="module")
def stage():
    return Stage(load_body())


def move(stage, frames=4, face=0.5, arms=0.3, seed=0):
    """Random motion dG of the template: head, arms, fingers, facial actions."""
    g, body = torch.Generator().manual_seed(seed), stage.body
    rotvecs = stage.ease.repeat(frames, 1, 1)
    for j, name in enumerate(body.joint_names):
        if name.startswith(("head", "neck", "upperarm", "lowerarm", "wrist", "finger", "spine")):
            rotvecs[:, j] += 0.3 * arms * torch.randn(frames, 3, generator=g)
    actions = face * torch.rand(frames, 52, generator=g)
    return motion_from_rest(*body.pose(None, rotvecs, actions), stage.rest, stage.turns)


@pytest.fixture(scope="module")
def basis(stage):
    return fit_basis(stage.parts, [split_parts(stage.parts, move(stage, 45))], stage.weights)


def test_split_and_join_are_inverse(stage):
    motion = move(stage)
    back = join_parts(stage.parts, split_parts(stage.parts, motion))
    used = torch.cat([stage.parts.body, stage.parts.face, stage.parts.hand])
    assert len(used) == len(used.unique()) > 13_000
    torch.testing.assert_close(back.means[:, used], motion.means[:, used], atol=1e-6, rtol=0)
    torch.testing.assert_close(back.rotvecs[:, used], motion.rotvecs[:, used], atol=1e-5, rtol=0)


def test_a_nod_is_no_matter_of_the_face_and_an_arm_none_of_the_fingers(stage):
    still = split_parts(stage.parts, move(stage, face=0.0))
    firm = stage.parts.hold > 0.999
    assert still.face.means[:, firm].abs().max() < 1e-5
    talking = split_parts(stage.parts, move(stage, face=0.5, arms=0.0))
    assert talking.face.means.abs().max() > 5e-3
    assert talking.body.means.abs().max() < 1e-6
    assert talking.hand.means.abs().max() < 1e-6


def test_rigid_fit_finds_rotation_and_offset():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=g)
    R, _ = torch.linalg.qr(torch.randn(5, 3, 3, generator=g))
    R = R * torch.det(R).sign()[:, None, None]
    t = torch.randn(5, 3, generator=g)
    R_hat, t_hat = rigid_fit(x, x @ R.transpose(1, 2) + t[:, None])
    torch.testing.assert_close(R_hat, R, atol=1e-5, rtol=0)
    torch.testing.assert_close(t_hat, t, atol=1e-5, rtol=0)


def test_basis_reads_what_it_wrote_and_rest_is_zero(stage, basis):
    motion = move(stage, 45)[:5]  # of those it was made from
    c = basis.encode(motion)
    back = basis.decode(c)
    torch.testing.assert_close(basis.encode(back), c, atol=2e-3, rtol=0)
    assert float((back.means - motion.means)[:, stage.parts.face].norm(dim=-1).mean()) < 2e-3
    at_rest = basis.decode(torch.zeros(1, c.shape[1]))
    assert at_rest.means.abs().max() < 1e-6
    assert at_rest.rotvecs.abs().max() < 1e-5
    copy = Basis.from_tensors(basis.tensors())
    torch.testing.assert_close(copy.encode(motion), c)


def test_few_vertices_give_the_coordinates_of_performed_motion(stage):
    recipe = Recipe("speech", ("Maybe the boat will come back.",), "us-woman", seed=3, takes=1)
    from aa.motion_data import learn_basis

    basis = learn_basis(stage, [recipe], every=4)
    few = stage.sparse()
    full = make_clip(stage, basis, recipe)
    fast = make_clip(stage, basis, recipe, (stage.select(few), basis.select(few)))
    assert float((full["coordinates"] - fast["coordinates"]).square().mean().sqrt()) < 5e-3
    torch.testing.assert_close(full["aperture"], fast["aperture"])
    assert len(full["closures"]) == 5  # m b, b, m b
    assert full["features"].shape[:2] == (1, len(full["coordinates"]))


def test_info_nce_by_hand():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    a = torch.tensor([[0.8, 0.6], [0.6, 0.8]])
    s = 2.0  # logits [[1.6, 1.2], [1.2, 1.6]] whichever way round
    wanted = -math.log(math.exp(1.6) / (math.exp(1.6) + math.exp(1.2)))
    everything = torch.ones(2, 2, dtype=torch.bool)
    assert float(info_nce(x, a, s, everything)) == pytest.approx(wanted, rel=1e-5)
    assert float(info_nce(x, a, s, torch.eye(2, dtype=torch.bool))) == pytest.approx(0, abs=1e-6)


def test_no_false_negatives():
    clip = torch.tensor([0, 0, 0, 1, 1])
    frame = torch.tensor([0, 2, 3, 0, 1])
    silent = torch.tensor([True, False, False, True, False])
    allowed = negatives_allowed(clip, frame, silent)
    wanted = torch.ones(5, 5, dtype=torch.bool)
    for i, j in ((0, 1), (1, 2), (3, 4), (0, 3)):  # two frames apart, one, one; both silent
        wanted[i, j] = wanted[j, i] = False
    assert torch.equal(allowed, wanted)


def test_contrast_is_lower_for_matching_sound():
    g = torch.Generator().manual_seed(0)
    h = torch.nn.functional.normalize(torch.randn(3, 20, 16, generator=g), dim=-1)
    silent = torch.zeros(3, 20, dtype=torch.bool)
    own = contrastive(h, h, silent, 14.0, generator=torch.Generator().manual_seed(1))
    other = contrastive(h, h.roll(7, 1), silent, 14.0, generator=torch.Generator().manual_seed(1))
    assert all(a < 0.3 * b for a, b in zip(own, other))
    assert patches(h).shape == (3, 16, 16)
    torch.testing.assert_close(patches(h)[0, 2], torch.nn.functional.normalize(h[0, 2:7].mean(0), dim=0))


def test_embedding_starts_as_pca_and_rest_stays_rest():
    model = Embedding()
    c = torch.randn(2, 30, sum(model.sizes.values()))
    x = model.encoder(c)
    start = 0
    for p, part in zip(PARTS, model.decoder(x).split(list(model.sizes.values()), -1)):
        n = model.config.latents[p]
        torch.testing.assert_close(part[..., :n], c[..., start : start + n])  # kept latents pass through
        assert part[..., n:].abs().max() == 0  # the rest has to be learned
        start += model.sizes[p]
    assert model.decoder(torch.zeros(1, 1, x.shape[-1])).abs().max() == 0


def test_the_kind_of_sound_says_how_many_features_there_are():
    assert EmbeddingConfig().features == feature_dim("phones")
    assert EmbeddingConfig(sound="mel").features == feature_dim("mel")
    assert EmbeddingConfig(**EmbeddingConfig(sound="mel").as_dict()) == EmbeddingConfig(sound="mel")


def test_embedding_learns():
    torch.manual_seed(0)
    model = Embedding()
    c = torch.randn(2, 40, sum(model.sizes.values())).cumsum(1) * 0.1
    f = torch.randn(2, 40, model.config.features)
    silent = torch.zeros(2, 40, dtype=torch.bool)
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    first = None
    for _ in range(12):
        terms = embedding_losses(model, c, f, silent, torch.Generator().manual_seed(0))
        first = first or {k: float(v.detach()) for k, v in terms.items()}
        adam.zero_grad()
        terms["total"].backward()
        adam.step()
    assert all(float(terms[k].detach()) < first[k] for k in ("total", "reconstruction", "frame", "patch"))
    assert float(model.logit_scale.detach()) <= 100

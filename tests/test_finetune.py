"""The person seen close, and fine-tuning through the renderer: tracks get better, terms are balanced, runs can be repeated."""

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aa.body import load_body
from aa.clips import Clip
from aa.closeup import CloseUp, Person
from aa.distill import SDS
from aa.errors import InputError
from aa.finetune import Balance, FineTune, FineTuneObjective, fine_tune, track_error
from aa.gaussians import intrinsics, load_layout, look_at
from aa.mixture import MixtureTeacher
from aa.motion import MotionModel
from aa.motion_data import Recipe, Stage
from aa.scenes import Scene, avatar_scene, studio_scene
from aa.training import Run

T, SIZE = 48, 32


@pytest.fixture(scope="module")
def loaded():
    return MotionModel.load()


@pytest.fixture
def model(loaded):
    return deepcopy(loaded)


@pytest.fixture(scope="module")
def template():
    return Stage(load_body())


@pytest.fixture(scope="module")
def scene(loaded, template):
    from aa import studio

    person = studio.Stage(template.body, studio.sample_identity(7))
    recipe = Recipe("speech", ("Maybe the boat.",), "us-man", seed=1)
    return studio_scene(loaded, template, recipe, person, SIZE, T)


def mixture(scene, frames=9):
    """A teacher that knows all windows of the scene and what is heard in them."""
    windows = lambda x: x.unfold(0, frames, 1).movedim(-1, 1)  # noqa: E731
    heard = scene.features[:, -3:]
    teacher = MixtureTeacher.of_clips(windows(scene.frames), windows(heard), shrink=4, spread=0.2, hearing=0.5)
    teacher.hear = lambda sound, frames=None: heard[:frames]
    return teacher


def test_a_close_up_shows_what_the_whole_person_does(loaded, template, scene):
    fit = scene.fit(scene.coordinates)
    assert fit["track_px"] < 0.1, "performed motion, carried to the person by few nodes and seen by few particles"
    assert fit["track_mm"] < 0.6
    rest = scene.fit(torch.zeros_like(scene.coordinates))
    assert rest["track_px"] > 10 * fit["track_px"]
    with torch.no_grad():
        pictures = scene.closeup.picture(*scene.closeup.pose(scene.coordinates))
    assert (pictures - scene.frames).abs().mean() < 0.03
    strain = [float(scene.closeup.strain(scene.closeup.pose(c)[0])) for c in (torch.zeros(4, 108), scene.coordinates)]
    assert strain[0] < 1e-6 < strain[1] < 0.05


def test_particles_of_the_template_follow_their_vertices(loaded, template, scene):
    layout = load_layout(template.body, 10_000)
    person = Person.of_layout(layout, template.rest, torch.full((len(layout), 3), 0.5))
    head = template.rest[template.body.region_vertices("face")].mean(0)
    viewmat, K = look_at(head + torch.tensor([0.0, -1.0, 0.0]), head), intrinsics(200.0, SIZE, SIZE)
    view = CloseUp(template.body, loaded.basis, person, None, viewmat, K, SIZE, most=300)
    assert len(view.rows) == 300
    coordinates = scene.coordinates[10:40:10]
    there = layout.place(template.rest + loaded.basis.decode(coordinates).means)[:, view.rows]
    off = (view.pose(coordinates)[0] - there).norm(dim=-1)
    moved = (there - view.gaussians.means).norm(dim=-1)
    assert off.mean() < 0.05 * moved.mean()
    with pytest.raises(InputError, match="in the crop"):
        CloseUp(template.body, loaded.basis, person, None, look_at((0, -1, 9.0), (0, 0, 9.0)), K, SIZE)


def test_a_clip_can_be_seen_through_a_box(loaded, scene):
    rows = scene.closeup.rows[scene.particle[:50]].numpy()
    tracks = np.random.default_rng(0).uniform(0, 64, (50, T, 2)).astype(np.float32)
    frames = np.random.default_rng(1).integers(0, 255, (T, 80, 64, 3), dtype=np.uint8)
    clip = Clip(frames, tracks=tracks, visibility=np.ones((50, T), bool), particle=rows, audio=scene.audio)
    seen = Scene.of_clip(loaded, scene.closeup, clip, scene.coordinates, (10, 20, 42, 52))
    torch.testing.assert_close(seen.tracks, torch.from_numpy(tracks).transpose(0, 1) - torch.tensor([10.0, 20.0]))
    torch.testing.assert_close(seen.frames[3], torch.from_numpy(frames[3, 20:52, 10:42]) / 255, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="no sound"):
        Scene.of_clip(loaded, scene.closeup, replace(clip, audio=None), scene.coordinates)
    with pytest.raises(InputError, match="motion of this clip"):
        Scene.of_clip(loaded, scene.closeup, clip, scene.coordinates[:-1])


def test_an_avatar_that_nobody_filmed(loaded, template, scene):
    body, layout = template.body, load_layout(template.body, 10_000)
    head = template.rest[body.region_vertices("face")].mean(0)
    colors = 0.4 + 0.2 * (layout.region % 3 == 0).float()[:, None].expand(-1, 3)
    background = torch.zeros(100, 80, 3, dtype=torch.uint8)
    background[:, 40:] = 200
    avatar = SimpleNamespace(
        gaussians=layout.gaussians(template.rest, colors), corners=layout.corners, bary=layout.bary, vertices=template.rest,
        loose=torch.zeros(len(layout), dtype=torch.bool), turn=torch.eye(3).expand(len(template.rest), 3, 3),
        viewmat=look_at(head + torch.tensor([0.0, -1.0, 0.0]), head), K=intrinsics(200.0, 80, 100), background=background,
    )  # fmt: skip
    own = avatar_scene(loaded, body, avatar, scene.audio, size=SIZE)
    assert len(own.coordinates) == len(own.features) == T
    assert own.tracks is None
    assert own.frames is None
    behind = own.closeup.behind
    assert behind[:, : SIZE // 3].max() < 0.01
    assert behind[:, -SIZE // 3 :].min() > 0.7
    with torch.no_grad():
        picture = own.closeup.picture(*own.closeup.pose(own.coordinates[:1]))[0]
    assert (picture - own.image).abs().mean() < 0.03
    with pytest.raises(InputError, match="no tracks"):
        FineTuneObjective(loaded, [own], FineTune(sds=0))
    FineTuneObjective(loaded, [own], FineTune(traj=0, l1=0, sds=0))


def test_trajectories_bring_generated_particles_nearer_to_the_tracks(model, scene):
    before = track_error(model, scene, (0,))
    curves = fine_tune(model, [scene], FineTune(simple=0, l1=0, sds=0, iso=0), Run(40, batch=1, rate=6e-4))
    after = track_error(model, scene, (0,))
    assert after["track_px"] < 0.8 * before["track_px"], (before, after)
    assert after["track_mm"] < 0.8 * before["track_mm"], "in depth as well, which the camera does not see"
    assert set(curves) == {"total", "traj", "norm traj"}
    assert not model.training


def test_every_term_reaches_the_networks_and_can_be_left_out(model, scene):
    teacher, rng = mixture(scene), np.random.default_rng
    for term in ("simple", "traj", "l1", "iso", "sds"):
        only = dict.fromkeys(("simple", "traj", "l1", "iso", "sds"), 0.0) | {term: 1.0}
        objective = FineTuneObjective(model, [scene], FineTune(**only), teacher if term == "sds" else None)
        model.zero_grad()
        batch = list(objective.draw(rng(3), 1))
        batch[7] = torch.tensor([False])
        terms = objective(*batch)
        terms["total"].backward()
        assert set(terms) == {"total", term, f"norm {term}"}
        assert terms[f"norm {term}"] > 0
        for part in objective.trained.values():
            grads = [p.grad for p in part.parameters() if p.grad is not None]
            assert all(g.isfinite().all() for g in grads)
            assert not list(part.parameters()) or max(g.abs().max() for g in grads) > 0, term
    batch[7] = torch.tensor([True])
    assert objective(*batch)["sds"] == 0, "what is made without sound cannot be asked to fit it"


def test_terms_pull_as_their_weights_say(model, scene):
    weights = {"simple": 1.0, "traj": 2.0, "l1": 0.5, "iso": 0.1, "sds": 0.5}
    objective = FineTuneObjective(model, [scene], FineTune(**weights), mixture(scene))
    terms = objective(*objective.draw(np.random.default_rng(0), 2))
    balance = objective.trained["balance"]
    assert balance.names == ("simple", "traj", "l1", "iso", "sds")
    pull = torch.tensor(list(weights.values())) * balance.factors() * balance.norm
    torch.testing.assert_close(pull / pull[0], torch.tensor([1.0, 2.0, 0.5, 0.1, 0.5]))
    assert float(terms["norm traj"]) == float(balance.norm[1])
    x = torch.ones(3, requires_grad=True)
    small = Balance(("a", "b"))
    small.measure({"a": 3 * x.sum(), "b": 0 * x.sum()}, x)
    assert small.factors().isfinite().all()
    small.measure({"a": 6 * x.sum(), "b": x.sum()}, x)
    assert small.norm[0] == pytest.approx((0.8 * 3 + 0.2 * 6) * 3**0.5)


def test_same_seed_same_result_also_after_an_interruption(loaded, scene, tmp_path):
    config = FineTune(measure_every=2, sds_every=2, asked=SDS(draws=2), parts=("refiner", "decoder"))
    run, teacher = Run(6, batch=1, rate=1e-3, every=3), mixture(scene)
    whole, again, parts = (deepcopy(loaded) for _ in range(3))
    curves = fine_tune(whole, [scene], config, run, teacher)
    assert curves["sds"][1] == 0 < curves["sds"][0]

    calls, cut = [], teacher.cut

    def breaks(rows, starts):
        calls.append(starts)
        if len(calls) == 3:  # in the fifth step, after the checkpoint of the third
            raise KeyboardInterrupt
        return cut(rows, starts)

    kept = replace(run, folder=tmp_path)
    teacher.cut = breaks
    with pytest.raises(KeyboardInterrupt):
        fine_tune(parts, [scene], config, kept, teacher)
    teacher.cut = cut
    assert fine_tune(again, [scene], config, kept, teacher) == curves
    for (name, a), b, start in zip(whole.named_parameters(), again.parameters(), loaded.parameters()):
        assert torch.equal(a, b), name
        assert name.startswith(("refiner.", "embedding.decoder.")) or torch.equal(a, start), name


def test_what_does_not_fit_is_said(model, scene):
    with pytest.raises(InputError, match="needs a teacher"):
        FineTuneObjective(model, [scene], FineTune())
    with pytest.raises(InputError, match="no tracks"):
        FineTuneObjective(model, [replace(scene, tracks=None)], FineTune(sds=0))
    with pytest.raises(InputError, match="too short"):
        FineTuneObjective(model, [scene], FineTune(sds=0, frames=40))
    with pytest.raises(InputError, match="parts"):
        FineTune(parts=("encoder",))
    with pytest.raises(InputError, match="weights"):
        FineTune(0, 0, 0, 0, 0)
    teacher = mixture(scene)
    teacher.height = 48
    with pytest.raises(InputError, match="that size"):
        FineTuneObjective(model, [scene], FineTune(), teacher)

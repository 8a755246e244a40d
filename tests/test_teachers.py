"""The tiny teacher: its latents, what it is asked, its data, its training and its test."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from aa.errors import InputError
from aa.teacher_data import Windows, clip_file, close_up, close_up_recipes, crop_camera, cut_rows, film_all
from aa.teacher_tiny import TinyConfig, TinyTeacher
from aa.teacher_training import SHIFTS, TeacherObjective, judge, prepare_teacher, shift_losses, swap_sounds, train_teacher
from aa.teachers import load_teacher, sample_clip
from aa.training import Run

SMALL = TinyConfig(frames=3, size=32, width=16, condition=32, context=1)


@pytest.fixture(scope="module")
def teacher():
    """Untrained, but with an output that is not zero."""
    torch.manual_seed(0)
    t = TinyTeacher(SMALL)
    for p in t.net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    t.latent.fit(torch.rand(4, 32, 32, 3))
    return t.freeze()


def conditions(teacher, batch=2):
    g = torch.Generator().manual_seed(1)
    c = teacher.config
    frames, image = torch.rand(batch, 3, 32, 32, 3, generator=g), torch.rand(batch, 32, 32, 3, generator=g)
    return frames, teacher.cut(torch.randn(20, c.features, generator=g), [4] * batch), teacher.look(image)


def test_noise_and_what_a_velocity_implies(teacher):
    z, eps, sigma = torch.randn(2, 24, 3, 8, 8), torch.randn(2, 24, 3, 8, 8), torch.tensor([0.2, 0.9])
    z_sigma, v = teacher.add_noise(z, sigma, eps), eps - z
    torch.testing.assert_close(teacher.x0_hat(z_sigma, sigma, v), z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(teacher.eps_hat(z_sigma, sigma, v), eps, rtol=1e-4, atol=1e-5)


def test_latents_are_principal_components_and_go_back(teacher):
    frames = torch.rand(4, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    whole = TinyTeacher(replace(SMALL, channels=48))
    whole.latent.fit(frames)
    torch.testing.assert_close(whole.decode(whole.encode(frames[None])), frames[None])
    smooth = torch.nn.functional.interpolate(frames.movedim(-1, 1)[..., ::8, ::8], size=32, mode="bicubic").movedim(1, -1)
    few = TinyTeacher(SMALL)
    few.latent.fit(smooth)
    error = (few.decode(few.encode(smooth[None])) - smooth).square().mean()
    assert error < 1e-4 * smooth.var(), "24 of 48 components hold smooth pictures"
    assert 0.5 < few.encode(smooth[None]).var() < 2, "latents are of order one"


def test_gradients_reach_the_frames_and_not_the_teacher(teacher):
    frames, audio, image = conditions(teacher)
    grads = []
    for on in (False, True):
        x = frames.clone().requires_grad_()
        v = teacher.checkpointing(on).velocity(teacher.encode(x), 0.5, audio, image, audio_guidance=2.0)
        v.square().mean().backward()
        grads.append(x.grad)
    teacher.checkpointing(False)
    assert grads[0].abs().amax((0, 2, 3, 4)).min() > 0
    torch.testing.assert_close(*grads)
    assert all(p.grad is None for p in teacher.parameters())


@torch.no_grad()
def test_guidance_is_the_sum_it_says(teacher):
    frames, audio, image = conditions(teacher)
    z, s = teacher.encode(frames), torch.tensor([0.7, 0.3])
    full, blind, deaf, null = (teacher.predict(z, s, a, i) for a in (audio, None) for i in (image, None))
    guided = teacher.velocity(z, s, audio, image, audio_guidance=4.0, image_guidance=2.0)
    torch.testing.assert_close(guided, null + 2 * (deaf - null) + 4 * (full - deaf))
    torch.testing.assert_close(teacher.velocity(z, s, audio, None, audio_guidance=3.0), null + 3 * (blind - null))
    torch.testing.assert_close(teacher.velocity(z, s, None, image, image_guidance=3.0), null + 3 * (deaf - null))
    torch.testing.assert_close(teacher.velocity(z, s), null)


def test_plain_guidance_costs_one_pass(teacher, monkeypatch):
    frames, audio, image = conditions(teacher)
    calls, plain = [], teacher.predict
    monkeypatch.setattr(teacher, "predict", lambda *a: calls.append(a) or plain(*a))
    teacher.velocity(teacher.encode(frames), 0.5, audio, image)
    assert len(calls) == 1
    teacher.velocity(teacher.encode(frames), 0.5, audio, image, audio_guidance=2.0)
    assert len(calls) == 3


def test_samples_follow_seed_sound_and_image(teacher):
    _, audio, image = conditions(teacher, 1)
    a, b, c, d, e = (
        teacher.sample(i, s, seed, steps=3)
        for i, s, seed in ((image, audio, 0), (image, audio, 0), (image, audio, 1), (image, -audio, 0), (-image, audio, 0))
    )
    assert torch.equal(a, b)
    assert a.shape == (1, 3, 32, 32, 3)
    assert 0 <= a.min() <= a.max() <= 1
    assert all((a - x).abs().max() > 1e-3 for x in (c, d, e))


def test_a_sample_is_a_clip(teacher):
    picture = np.full((32, 32, 3), 128, np.uint8)
    clip = sample_clip(teacher, picture, np.zeros(16000, np.float32), 0, steps=1)
    assert clip.frames.shape == (6, 32, 32, 3), "every second frame was made, each is shown twice"
    assert (clip.fps, clip.source, len(clip.audio)) == (25, "tiny", 3 * 1280)
    with pytest.raises(InputError, match="sound is empty"):
        sample_clip(teacher, picture, np.zeros(0, np.float32), 0)


def test_saved_and_loaded(teacher, tmp_path):
    teacher.save(tmp_path / "t.safetensors")
    again = load_teacher("tiny", path=tmp_path / "t.safetensors")
    frames, audio, image = conditions(teacher)
    z = teacher.encode(frames)
    assert torch.equal(again.velocity(z, 0.5, audio, image), teacher.velocity(z, 0.5, audio, image))
    assert not any(p.requires_grad for p in again.parameters())
    half = load_teacher("tiny", path=tmp_path / "t.safetensors", dtype=torch.bfloat16).velocity(z, 0.5, audio, image)
    plain = again.velocity(z, 0.5, audio, image)
    assert half.dtype == z.dtype
    assert (half - plain).norm() < 0.1 * plain.norm()
    (tmp_path / "bad.safetensors").write_bytes((tmp_path / "t.safetensors").read_bytes()[:500])
    with pytest.raises(InputError, match="damaged"):
        load_teacher("tiny", path=tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="make_teacher"):
        load_teacher("tiny", path=tmp_path / "none.safetensors")


def test_rows_lie_around_their_frames():
    rows = torch.arange(30.0)[:, None]
    cut = cut_rows(rows, [4, -3], 3, 2, 1)[..., 0]
    assert cut[0].tolist() == [[3, 4, 5], [5, 6, 7], [7, 8, 9]]
    assert cut[1].tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 2]]


def test_the_close_up_camera_sees_the_close_up():
    K = torch.tensor([[500.0, 0, 128], [0, 500, 128], [0, 0, 1]])
    box = torch.tensor([100.0, 90, 40])
    X = torch.tensor([(100 - 128) / 500, (90 - 128) / 500, 1.0]), torch.tensor([(120 - 128) / 500, (110 - 128) / 500, 1.0])
    seen = [(crop_camera(K, box, 64) @ x)[:2].tolist() for x in X]
    assert seen[0] == pytest.approx([32, 32], abs=1e-3)
    assert seen[1] == pytest.approx([64, 64], abs=1e-3)
    box = close_up(torch.tensor([[80.0, 60], [120, 60], [100, 160]]))
    assert box.tolist() == pytest.approx([100, 122, 85])


# ---------------------------------------------------------------- data and training


def test_people_and_sentences_of_the_test_are_unseen():
    train, held = close_up_recipes(40), close_up_recipes(12, split="held-out")
    assert {r.identity for r in train}.isdisjoint(r.identity for r in held)
    assert {r.text for r in train}.isdisjoint(r.text for r in held)
    assert len({r.identity for r in train}) == 10
    assert all(r.source == "studio-hq" and not r.moves for r in train), "clean pictures that move with their sound"
    assert close_up_recipes(8) == train[:8]


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("close-ups")
    recipes = [replace(r, samples=1, frames=24) for r in close_up_recipes(4)]
    return folder, recipes, film_all(folder, recipes[:1])


def test_close_ups_are_filmed_and_kept(filmed):
    folder, recipes, files = filmed
    written = [f.stat().st_mtime_ns for f in files]
    assert film_all(folder, recipes[:1]) == files
    assert [f.stat().st_mtime_ns for f in files] == written
    windows = Windows(files)
    x, image, rows, _ = windows.draw(6, np.random.default_rng(0))
    assert (x.shape, image.shape, rows.shape) == ((6, 9, 64, 64, 3), (6, 64, 64, 3), (6, 9, 7, 113))
    again = windows.draw(6, np.random.default_rng(0))
    assert torch.equal(x, again[0])
    assert (windows.box[0][:, :2] - 40).abs().max() < 12, "the face is in the middle"
    assert (windows.box[0][:, 2] - 64).abs().max() < 12
    assert x.var(1).mean() > 1e-5, "something moves"
    mirrored = windows.pictures(0, 0, 22, mirror=True)[0]
    assert torch.equal(mirrored.flip(2), windows.pictures(0, 0, 22)[0])
    red = windows.pictures(0, 0, 22, backdrop=(1.0, 0, 0))[0]
    assert (red - windows.pictures(0, 0, 22)[0]).abs().mean() > 0.01
    assert clip_file(folder, recipes[0]) != clip_file(folder, replace(recipes[0], frames=27))


def test_damaged_or_no_close_ups(filmed, tmp_path):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(filmed[2][0].read_bytes()[:1000])
    with pytest.raises(InputError, match="film the close-ups again"):
        Windows([bad])
    with pytest.raises(InputError, match="no close-ups"):
        Windows([])
    with pytest.raises(InputError, match="frames: windows need"):
        Windows(filmed[2], frames=14)


class Beeps(Windows):
    """Made-up clips in which the picture's brightness is what the sound says, so that a teacher can learn it in seconds."""

    def __init__(self, seed: int, clips: int = 12, T: int = 40):
        self.frames, self.stride, self.size, self.context = 3, 2, 32, 1
        g = torch.Generator().manual_seed(seed)
        level = torch.rand(clips, T, generator=g)
        self.sound = [level[k, :, None].repeat(1, 113)[None] - 0.5 for k in range(clips)]
        self.box, self.kind, self.level = [torch.zeros(T, 3)] * clips, [0] * clips, level

    def pictures(self, clip, start, other, *_, **__):
        return self.whole(clip)[start : start + self.reach : self.stride], torch.full((32, 32, 3), 0.5)

    def whole(self, clip):
        """The left half shows the sound, the right half something else."""
        g = torch.Generator().manual_seed(int(clip))
        x = torch.rand(len(self.level[clip]), 1, 1, 1, generator=g).repeat(1, 32, 32, 3)
        x[:, :, :16] = self.level[clip][:, None, None, None]
        return x


def test_it_learns_to_hear_and_the_test_shows_it(tmp_path):
    data, held = Beeps(0), Beeps(1, 5)
    teacher = prepare_teacher(SMALL, data)
    run = Run(90, 8, 4e-3, 0, 0.9, tmp_path, every=100)
    assert teacher.hearing[0, 1:-1, 1:3].min() > 1.5
    assert teacher.hearing[0, :, 5:].max() == 0, "where the sound tells nothing nothing counts"
    curves = train_teacher(teacher, data, run)["simple"]
    assert np.mean(curves[-20:]) < 0.7 * np.mean(curves[:20])
    found = judge(teacher, held, per_clip=1)
    assert found["at_0"]["face"] >= 0.8
    assert found["gain"]["face"] > 0.05
    assert len(found["curves"]["face"]) == len(SHIFTS)
    frames, image = held.pictures(0, 12, 0)
    late = torch.cat([held.rows(0)[:1].expand(2, -1), held.rows(0)[:-2]])  # the same sound, two frames too late
    told, _ = shift_losses(teacher, frames, image, late, 12)
    assert SHIFTS[int(told.argmin())] == -2, "heard two frames earlier it would fit"
    made = swap_sounds(teacher, held, 0, [1, 2], steps=8)
    at = torch.tensor([8, 10, 12])
    wanted = torch.stack([held.level[k, at] for k in (0, 1, 2)])
    assert np.corrcoef(made[:, :, :, :16].mean((2, 3, 4)).flatten(), wanted.flatten())[0, 1] > 0.8
    again = prepare_teacher(SMALL, data)
    train_teacher(again, data, run)
    assert torch.equal(again.net.enter.weight, teacher.net.enter.weight), "a finished training is read, not repeated"


def test_the_conditions_are_dropped_in_training(teacher):
    objective = TeacherObjective(teacher, Beeps(0))
    *_, deaf, blind = objective.draw(np.random.default_rng(0), 400)
    assert deaf.float().mean() == pytest.approx(0.2, abs=0.06)
    assert blind.float().mean() == pytest.approx(0.15, abs=0.05)
    assert (deaf & blind).float().mean() == pytest.approx(0.05, abs=0.03)

"""Training sets: recipes, the hybrid mix, resuming, damage, a full disk, and the same bytes from any number of workers."""

import errno
from dataclasses import asdict, replace

import numpy as np
import pytest

import aa.clips
import aa.footage as footage
import aa.stage
from aa.body import load_body
from aa.clips import Clip, DiskFull
from aa.errors import InputError
from aa.footage import Recipe, cut_speech, load_set, make_recipes, make_set
from aa.identities import people, sample_identity
from aa.speech import SILENCE, sentences, speak

SMALL = {"size": 48, "seconds": 0.24, "particles": 0, "clips_per_person": 2}


def test_recipes_mix_sources_people_and_sentences():
    recipes = make_recipes(60, hybrid=0.25)
    assert make_recipes(20, hybrid=0.25) == recipes[:20]
    assert sum(r.source == "studio-hq" for r in recipes) == 15
    assert all((r.moves and r.moves != r.text) if r.source == "studio-hq" else r.moves == "" for r in recipes)
    assert {r.framing for r in recipes} == {"upper", "face", "full"}
    cast = {p.seed for p in people("train").values()}
    assert {r.identity for r in recipes} <= cast
    assert {r.text for r in recipes} <= set(sentences("train"))
    assert len({r.voice for r in recipes}) > 4
    held = make_recipes(30, split="held-out", hybrid=None)
    assert not {r.identity for r in held} & cast
    assert not {r.text for r in held} & set(sentences("train"))
    assert {r.source for r in held} == {"studio-sync"}  # no hybrid: one source
    assert {r.source for r in make_recipes(9, hybrid=False, alone="studio-hq")} == {"studio-hq"}
    for bad in ({"hybrid": 1.5}, {"alone": "moon"}, {"seconds": 0}, {"size": 4}):
        with pytest.raises(InputError):
            make_recipes(4, **bad)


def test_speech_is_cut_and_padded():
    speech = speak("Maybe Bob put my map up.", "us-woman")
    for frames in (20, 120):
        cut = cut_speech(speech, frames)
        assert len(cut.audio) == frames * 640
        assert cut.phonemes[-1][2] == pytest.approx(frames / 25)
        assert all(a[2] == b[1] for a, b in zip(cut.phonemes, cut.phonemes[1:]))
    assert cut.phonemes[-1][0] == SILENCE


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "one"
    make_set(folder, 2, workers=1, progress=False, **SMALL)
    return folder


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "set.json"}


def test_a_set_reads_back(small_set):
    clips = load_set(small_set)
    assert len(clips) == 2
    assert sorted(clips.facts(k)["source"] for k in range(2)) == ["studio-hq", "studio-sync"]
    assert len(clips.of("studio-hq")) == 1
    for clip in clips:
        assert clip.frames is None
        assert clip.load_frames().shape == (6, 48, 48, 3)
        assert clip.part.shape == clip.depth.shape == (6, 48, 48)
        assert len(clip.audio) == 6 * 640
        assert clip.seeds["identity"] in {p.seed for p in people("train").values()}
        assert clip.phonemes
    assert clips.load(0, frames=False, only=()).mask is None


@pytest.fixture
def made(monkeypatch):
    """Grey clips instead of filmed ones; the names of those that were made."""
    names = []

    def grey(recipe, *_):
        names.append(recipe.name)
        frames = np.full((recipe.frames, 48, 48, 3), recipe.performance % 200, np.uint8)
        return Clip(frames, mask=frames[..., 0] > 0, source=recipe.source, seeds=asdict(recipe))

    monkeypatch.setattr(aa.stage, "Stage", lambda *_: None)
    monkeypatch.setattr(footage, "film_recipe", grey)
    return names


def test_a_set_goes_on_where_it_stopped(tmp_path, made):
    folder = tmp_path / "a"
    make_set(folder, 3, workers=1, progress=False, **SMALL)
    assert made == ["clip_0000", "clip_0001", "clip_0002"]
    before = contents(folder)
    (folder / "clip_0001" / "arrays.safetensors").write_bytes(b"damaged")
    (folder / "clip_0002" / "clip.json").unlink()
    make_set(folder, 3, workers=1, progress=False, **SMALL)
    assert made[3:] == ["clip_0001", "clip_0002"]  # the damaged ones alone
    assert contents(folder) == before
    make_set(folder, 4, workers=1, progress=False, **SMALL)
    assert made[5:] == ["clip_0003"]  # a set can grow
    with pytest.raises(InputError, match="another set"):
        make_set(folder, 3, workers=1, progress=False, **(SMALL | {"seed": 5}))


def test_a_full_disk_keeps_what_is_finished(tmp_path, made, monkeypatch):
    calls = []
    real = aa.clips.save_arrays

    def full_at_the_second(*args):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args)

    monkeypatch.setattr(aa.clips, "save_arrays", full_at_the_second)
    with pytest.raises(DiskFull, match=r"disk is full: 1 of 2 clips .* kept") as caught:
        make_set(tmp_path / "a", 2, workers=1, progress=False, **SMALL)
    assert "\n" not in str(caught.value)
    assert len(load_set(tmp_path / "a")) == 1
    assert [p.name for p in (tmp_path / "a").iterdir() if p.name.endswith(".part")] == []
    assert len(make_set(tmp_path / "a", 2, workers=1, progress=False, **SMALL)) == 2


def test_workers_do_not_change_the_bytes(tmp_path):
    recipes = [replace(r, frames=2) for r in make_recipes(2, **(SMALL | {"particles": 10_000, "clips_per_person": 1}))]
    make_set(tmp_path / "one", recipes, workers=1, progress=False)
    make_set(tmp_path / "two", recipes, workers=2, progress=False)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_hq_moves_by_another_sentence():
    """The motion of studio-hq is that of `moves`, its sound that of `text`."""
    recipe = Recipe(
        "x", "Maybe Bob put my map up.", "studio-hq", "We saw you eat cheese.", frames=14, width=32, height=32, particles=0
    )
    stage = aa.stage.Stage(load_body(), sample_identity(recipe.identity))
    hq = footage.film_recipe(recipe, stage)
    other = footage.film_recipe(replace(recipe, text=recipe.moves, moves=""), stage)
    assert (hq.frames == other.frames).all()
    assert not np.array_equal(hq.audio, other.audio)
    assert hq.seeds["moves"] != hq.seeds["text"]


def test_what_is_no_set(tmp_path):
    with pytest.raises(InputError, match="no set"):
        load_set(tmp_path / "gone")
    with pytest.raises(InputError, match="no set"):
        load_set(tmp_path)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="other files"):
        make_set(tmp_path, 1, progress=False, **SMALL)

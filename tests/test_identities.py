"""The studio's people: plausible adults, varied, the same every day; held-out people are other people; backdrops."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from aa.backdrops import BACKDROPS, backdrop_of, make_backdrop
from aa.body import load_body, load_people
from aa.errors import InputError
from aa.hair import STYLES
from aa.identities import HAIR_STYLES, NECKLINES, PATTERNS, PEOPLE, adult_height, people, person, sample_identity
from aa.stage import camera
from aa.wardrobe import KINDS, dress


@pytest.fixture(scope="module")
def body():
    return load_body()


@pytest.fixture(scope="module")
def crowd():
    return [sample_identity(s) for s in range(250)]


def standing_height(body, identity):
    """Metres from sole to crown of the bare body."""
    bare = body.region_vertices("torso", "neck", "leg", "foot", "face", "scalp")
    z = body.rest(torch.tensor(identity.betas))[bare, 2]
    return float(z.max() - z.min())


def brightness(identity):
    return sum(identity.skin) / 3


def test_cast_has_people_to_learn_from_and_people_held_out():
    train, held = people("train"), people("held-out")
    assert len(train) >= 16
    assert len(held) >= 8
    assert {**train, **held} == people()
    assert not {p.seed for p in train.values()} & {p.seed for p in held.values()}
    assert {n: PEOPLE[n][0] for n in ("ada", "bruno", "chidi", "dalia", "emil", "flora")} == {
        "ada": 10, "bruno": 5, "chidi": 7, "dalia": 17, "emil": 12, "flora": 22,
    }  # fmt: skip
    assert person("ada") == train["ada"] == sample_identity(10)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match=r"split 'test'.*held-out"):
        people("test")
    with pytest.raises(InputError, match=r"Nobody in the studio is called 'zaphod'.*ada"):
        person("zaphod")


def test_same_seed_same_person(crowd):
    assert sample_identity(33) == crowd[33]
    assert len({p.betas for p in crowd}) > 180  # of 600 bodies


def test_heights_are_those_of_adults(body, crowd):
    """Ranges of real adults; the bodies they are made from reach from 1.2 to 2.4 m."""
    for sex, low, high, mean in (("female", 1.48, 1.81, (1.60, 1.69)), ("male", 1.58, 1.95, (1.72, 1.81))):
        heights = np.array([p.height for p in crowd if p.sex == sex])
        assert heights.min() > low
        assert heights.max() < high
        assert mean[0] < heights.mean() < mean[1]
        assert 0.05 < heights.std() < 0.12
    for p in crowd[:12]:
        assert standing_height(body, p) == pytest.approx(p.height, abs=0.012)


def test_height_is_changed_alone(body):
    """Order among people of one sex is kept, and a face stays the same face: it moves with the head, a few millimetres apart."""
    betas, kinds = load_people()
    women = (kinds["gender"] > 0.5).nonzero()[:20, 0]
    shaped = [adult_height(betas[i], "female") for i in women]
    before = torch.stack([body.rest(betas[i])[body.region_vertices("scalp"), 2].max() for i in women])
    assert np.corrcoef(before, [h for _, h in shaped])[0, 1] > 0.9
    face = body.region_vertices("face")
    for i, (b, _) in zip(women[:6], shaped):
        old, new = body.rest(betas[i])[face], body.rest(b)[face]
        old, new = old - old.mean(0), new - new.mean(0)
        assert (old * ((new * old).sum() / old.square().sum()) - new).norm(dim=1).mean() < 0.004


def test_everybody_is_grown_up(crowd):
    years = np.array([p.years for p in crowd])
    assert years.min() > 18
    assert 60 < years.max() < 75
    assert min(p.years for p in people().values()) >= 23


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_each_split_is_varied(split):
    cast = list(people(split).values())
    women = [p for p in cast if p.sex == "female"]
    assert abs(len(women) - len(cast) / 2) <= 1
    tones = sorted(brightness(p) for p in cast)
    assert tones[0] < 0.30
    assert tones[-1] > 0.70
    assert sum(0.35 < t < 0.65 for t in tones) >= 3
    assert max(p.years for p in cast) - min(p.years for p in cast) > 30
    assert max(p.height for p in cast) - min(p.height for p in cast) > 0.25
    assert len({p.hair_style for p in cast}) >= 7
    assert len({p.hair for p in cast}) >= 4
    assert len({p.pattern for p in cast}) >= 4
    assert {p.neckline for p in cast} == set(NECKLINES)
    assert len({p.iris for p in cast}) > 0.7 * len(cast)
    assert len({p.backdrop for p in cast}) >= 3
    assert any(p.full_beard for p in cast)
    assert any(p.makeup > 0.4 for p in cast)


def test_people_held_out_are_other_people(body):
    """No held-out body is one of the others, nor as close to one as two draws can be; nor do their colours coincide."""
    train, held = people("train").values(), people("held-out").values()
    face = body.region_vertices("face", "lips", "eyelid")
    shape = lambda p: (lambda v: v - v.mean(0))(body.rest(torch.tensor(p.betas))[face])  # noqa: E731
    look = lambda p: np.concatenate([p.skin, p.hair, p.shirt, p.iris, p.lips])  # noqa: E731
    for a, b in itertools.product(train, held):
        assert torch.dist(torch.tensor(a.betas), torch.tensor(b.betas)) > 3
        assert (shape(a) - shape(b)).norm(dim=1).mean() > 0.0015  # m
        assert np.linalg.norm(look(a) - look(b)) > 0.1


def test_features_stay_in_range(crowd):
    assert {p.hair_style for p in crowd} == set(HAIR_STYLES)
    assert set(HAIR_STYLES) == {*STYLES, "bald"}
    assert {p.pattern for p in crowd} == set(PATTERNS)
    assert {p.backdrop for p in crowd} <= set(BACKDROPS)
    for p in crowd:
        assert all(0 <= c <= 1 for c in (*p.skin, *p.lips, *p.iris, *p.brow, *p.hair, *p.shirt, *p.shirt2))
        assert 0.6 < p.brow_shape[0] < 1.5
        assert p.lips[0] > p.lips[1]  # red, on every skin
        if p.sex == "female":
            assert p.beard == p.full_beard == 0
        else:
            assert p.makeup == 0


def test_dress_by_style(body):
    """Hair, beard and collar are there when they should be and lie outside the head and the neck."""
    kinds = lambda f: torch.bincount(f.kind, minlength=len(KINDS))  # noqa: E731
    base = replace(sample_identity(7), full_beard=0.0)
    bald, beard = (dress(body, replace(base, hair_style="bald", full_beard=b)) for b in (0.0, 0.008))
    assert kinds(bald)[8] == kinds(bald)[9] == 0
    assert kinds(beard)[9] > 500
    lips = beard.body.v_template[body.region_vertices("lips")]
    shells = beard.body.v_template[beard.body.faces[beard.kind == 9].unique()]
    cut = beard.mask[beard.body.faces[beard.kind == 9].unique(), 3] > 0
    assert torch.cdist(shells[cut], lips).min() > 0.002
    afro = dress(body, replace(base, hair_style="curly"))
    reach = lambda f: float(f.body.v_template[:, 2].max() - bald.body.v_template[:, 2].max())  # noqa: E731
    assert 0.02 < reach(afro) < 0.07
    assert torch.isfinite(afro.body.v_template).all()


def test_collar_stands_around_the_neck(body):
    """On long and short necks alike the collar's fold lies outside the neck at that height."""
    for p in [p for p in people().values() if p.neckline == "collar"][::4]:
        figure = dress(body, p)
        cloth = figure.body.faces[figure.kind == 6].unique()
        stand = cloth[figure.mask[cloth, 1] > 0.5]  # free-standing cloth
        v = figure.body.v_template
        neck = v[body.region_vertices("neck")]
        near = torch.cdist(v[stand], neck).amin(1)
        assert near.median() < 0.05
        centre = neck[:, :2].mean(0)
        nearest = neck[torch.cdist(v[stand], neck).argmin(1)]
        outside = (v[stand, :2] - centre).norm(dim=1) > (nearest[:, :2] - centre).norm(dim=1) - 0.002
        assert outside.float().mean() > 0.9


def test_backdrops():
    assert {make_backdrop(k, 30, 40).shape for k in BACKDROPS} == {(40, 30, 3)}
    for kind in BACKDROPS:
        picture = make_backdrop(kind, 60, 90, seed=3)
        assert picture.dtype == np.float32
        assert 0 <= picture.min() <= picture.max() <= 1
        assert np.abs(np.diff(picture, axis=0)).max() < 0.1  # soft
        assert (picture == make_backdrop(kind, 60, 90, seed=3)).all()
    assert (make_backdrop("room", 60, 90, 1) != make_backdrop("room", 60, 90, 2)).any()
    assert (backdrop_of(person("ada"), 8, 8) == make_backdrop(person("ada").backdrop, 8, 8, 10)).all()
    with pytest.raises(ValueError, match="backdrop must be one of"):
        make_backdrop("beach", 8, 8)


def test_detectors_find_people_who_were_held_out(body):
    """Face and both hands at half length, and the same bytes on another day."""
    from aa.detect import detect
    from aa.studio import portrait

    picture = portrait(person("yara"), 384, 576, body, samples=1)
    found = detect(picture)
    assert found.confidence["face"] > 0.6
    assert found.hands["left"] is not None
    assert found.hands["right"] is not None
    assert (picture == portrait(person("yara"), 384, 576, body, samples=1)).all()


def test_head_is_in_the_picture(body):
    """The half-length camera leaves room above the tallest hair."""
    afro = replace(max(people().values(), key=lambda p: p.height), hair_style="curly")
    figure = dress(body, afro)
    K, view = camera("portrait", 40, 60, person=figure.body)
    x = figure.body.v_template @ view[:3, :3].T + view[:3, 3]
    top = float((K[1, 1] * x[:, 1] / x[:, 2] + K[1, 2]).min())
    assert top > 1.5

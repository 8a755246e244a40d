"""Gestures: which kind goes with which word, Kendon's phases, hands and styles; safe for every body, tied to the voice."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aa.arms import POSES, Postures, glide
from aa.body import load_body, load_people
from aa.cospeech import KINDS, plan_gestures, read_words
from aa.gestures import at_ease, find_beats, phrases, vowel_accents
from aa.handshapes import SHAPES, shape_rotations
from aa.limits import Clearance, beyond_limits, joint_angles
from aa.motion_metrics import beat_alignment, stroke_speed
from aa.performer import Style, perform
from aa.visemes import loudness, segments

WEAK = {"a", "an", "the", "and", "or", "of", "to", "at", "is", "in", "it", "with", "on", "for", "was", "are", "do", "did", "can"}
TEXTS = (
    "We really need apples, yellow cheese, bread, and a bottle of milk.",
    "The weather was lovely, but nobody would ever believe me today.",
    "Well then, what on earth are you doing over there?",
    "Mother bought two tickets and gave three to the other children.",
    "The green bicycle belongs to my brother and the blue one to you.",
    "Yesterday evening we could not find the key in the garden.",
    "Perhaps the train is late, perhaps it never left the station.",
    "First, open the window, second, close the door, third, sit down.",
)


def say(text, seed=0, loud=1.0, lead=0.4, tail=1.2):
    """A speech whose words are of one or two made-up syllables, humming as loud as their accent; a pause at each comma."""
    rng = np.random.default_rng(seed)
    phonemes, words, levels, now = [("_", 0.0, lead)], [], [0.0], lead
    for token in text.split():
        name = token.strip(".,;:!?")
        weak, start = name.lower() in WEAK, now
        for syllable in range(1 if len(name) < 6 else 2):
            strong = not weak and syllable == 0
            length = (0.07, rng.uniform(0.13, 0.20) if strong else 0.07)
            for symbol, n, level in (
                ("t", length[0], 0.02),
                ("ˈæ" if strong else "ə", length[1], rng.uniform(0.16, 0.3) if strong else 0.06),
            ):
                phonemes.append((symbol, now, now + n))
                levels.append(level)
                now += n
        words.append((name, start, now))
        if token[-1] in ",;":
            phonemes.append(("_", now, now + 0.12))
            levels.append(0.0)
            now += 0.12
    phonemes.append(("_", now, now + tail))
    levels.append(0.0)
    audio = np.zeros(round((now + tail) * 16000), np.float32)
    for (_, a, b), level in zip(phonemes, levels):
        n = np.arange(int(a * 16000), int(b * 16000))
        audio[n] = loud * level * np.sin(2 * np.pi * 140 / 16000 * n) * np.sin(np.pi * (n - n[0]) / len(n)) ** 0.5
    return SimpleNamespace(audio=audio, text=text, phonemes=phonemes, words=words, duration=len(audio) / 16000)


def plan(speech, seed=0, tempo=1.0, handedness=-0.3, rate=1.0):
    parts = segments(speech.phonemes, speech.duration)
    return plan_gestures(speech, parts, tempo, handedness, rate, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def body():
    return load_body()


@pytest.fixture(scope="module")
def speeches():
    return [say(TEXTS[k % len(TEXTS)], k) for k in range(24)]


@pytest.fixture(scope="module")
def shows(body, speeches):
    g = torch.Generator().manual_seed(3)
    return [perform(body, s, seed=k, style=Style.sample(g)) for k, s in enumerate(speeches)]


def test_words_get_their_punctuation():
    spoken = [(w, k, k + 1) for k, w in enumerate(["Well", "who", "is", "it", "We", "need"])]
    words = read_words("Well, who is it? We need apples, bread and milk!", spoken)
    assert [w.mark for w in words] == [",", "", "", "?", "", ""]
    assert [w.question for w in words] == [True] * 4 + [False] * 2
    assert read_words("", [("hello", 0, 1)])[0].text == "hello"  # no text: the words alone
    items = read_words(TEXTS[0], [(w.strip(".,"), k, k + 1) for k, w in enumerate(TEXTS[0].split())])
    assert [(w.text, w.item) for w in items if w.item >= 0] == [("apples", 0), ("yellow", 1), ("bread", 2), ("bottle", 3)]
    plain = "Hello, my name does not matter, but my voice does."
    assert all(w.item < 0 for w in read_words(plain, [(w.strip(".,"), k, k + 1) for k, w in enumerate(plain.split())]))


@pytest.mark.parametrize(
    ("text", "word", "kind", "pose"),
    [
        ("Tomorrow evening nobody believes this old story.", "nobody", "open-palm", "apart"),
        ("Grandmother always wanted it for me alone yesterday.", "me", "deictic", "self"),
        ("Grandmother always wanted it for you alone yesterday.", "you", "deictic", "you"),
        ("Grandmother always wanted it right here in winter.", "here", "deictic", "here"),
        ("Grandmother always wanted to travel far into summer.", "far", "deictic", "there"),
        ("Grandmother said it was perhaps a broken finger.", "perhaps", "open-palm", "offer"),
        ("Grandmother said where is the broken window?", "where", "open-palm", "offer"),
        ("Grandmother bought three broken windows.", "three", "list", "count"),
        ("Grandmother bought it in a beautiful garden.", "bought", "beat", "beat"),
    ],
)
def test_the_word_decides_on_the_kind(text, word, kind, pose):
    found = [[g for g in plan(say(text, k), k) if g.word == word] for k in range(10)]
    kinds = [(g[0].kind, g[0].pose) for g in found if g]
    assert len(kinds) >= 6
    assert np.mean([x == (kind, pose) for x in kinds]) >= 0.8


def test_a_list_steps_on_with_every_item():
    steps = [g.step for g in plan(say(TEXTS[0], 1)) if g.pose == "list"]
    assert len(steps) >= 3
    assert steps == sorted(set(steps))
    shapes = [g.shape for g in plan(say("Mother counts, one, two, three, four, five, all day long.", 2)) if g.pose == "count"]
    assert len(shapes) >= 3
    assert shapes == [s for s in ("one", "two", "three", "four", "five") if s in shapes]


def test_the_same_words_and_accents_get_the_same_gestures(speeches):
    same, all_ = 0, 0
    for s in speeches[:8]:
        first, second = ({g.word: (g.kind, g.pose, g.hand) for g in plan(s, seed)} for seed in (1, 2))
        same += sum(first.get(w) == x for w, x in second.items())
        all_ += len(second)
    print(f"{same} of {all_} gestures are the same with another seed")
    assert same / all_ > 0.75
    assert plan(speeches[0], 4) == plan(speeches[0], 4)


def test_without_words_every_gesture_is_a_beat(speeches):
    bare = SimpleNamespace(audio=speeches[1].audio, duration=speeches[1].duration, phonemes=speeches[1].phonemes)
    found = plan(bare)
    assert len(found) >= 2
    assert {g.kind for g in found} == {"beat"}
    assert plan(SimpleNamespace(audio=np.zeros(48000, np.float32), duration=3.0, phonemes=[("_", 0.0, 3.0)])) == []


def test_phases_are_in_order_and_strokes_end_on_accents(shows, speeches):
    kinds, rates = [], []
    for show, speech in zip(shows, speeches):
        accents = np.array([a.time for a in vowel_accents(segments(speech.phonemes, speech.duration), speech.audio)])
        rates.append(len(show.gestures) / speech.duration)
        for g, following in zip(show.gestures, [*show.gestures[1:], None]):
            kinds.append(g.kind)
            assert 0 <= g.start < g.stroke < g.apex <= g.hold <= g.end <= speech.duration
            assert np.abs(accents - g.apex).min() < 1e-9
            assert g.rests or following is not None
            if following is not None:
                assert g.end <= following.start + 1e-9
                assert following.apex - g.apex >= 0.4
    print({k: kinds.count(k) for k in KINDS}, f"{np.mean(rates):.2f} a second")
    assert all(kinds.count(k) >= 5 for k in KINDS)
    assert 0.3 < np.mean(rates) < 1.2


def test_hands_follow_handedness():
    used = {h: [g.hand for k in range(8) for g in plan(say(TEXTS[k], k), handedness=h)] for h in (-1.0, -0.4, 0.4, 1.0)}
    assert set(used[-1.0]) == {"R"}
    assert set(used[1.0]) == {"L"}
    assert set(used[-0.4]) == {"R", "both"}
    assert set(used[0.4]) == {"L", "both"}


def test_both_hands_make_the_same_shapes(body):
    for shape in SHAPES.values():
        left, right = (shape_rotations(body, s, shape) for s in "LR")
        for name, r in left.items():
            np.testing.assert_allclose(right[name[:-1] + "R"], r * [1, -1, -1], atol=0.02)
    ease = at_ease(body).numpy()
    relaxed = shape_rotations(body, "L", SHAPES["relaxed"])
    assert max(np.abs(ease[body.joint(n)] - r).max() for n, r in relaxed.items()) < 2e-3
    bend = {
        n: np.degrees(np.linalg.norm(sum(shape_rotations(body, "L", SHAPES["point"])[f"finger{n}-{k}.L"] for k in (1, 2, 3))))
        for n in (2, 3, 5)
    }
    assert bend[2] < 30
    assert min(bend[3], bend[5]) > 100


def test_joints_stay_within_limits(body, shows):
    over = {}
    wide = [
        perform(body, say(t, k), seed=k, style=Style(1.5, 1.25, (-1, 0, 1)[k % 3], 1.4, 1.2, 1.5, (1.0, -0.5)[k % 2]))
        for k, t in enumerate(TEXTS)
    ]
    for show in [*shows, *wide]:
        over |= beyond_limits(body, show.rotvecs)
    assert over == {}
    bent = at_ease(body).repeat(2, 1, 1)
    bent[1, body.joint("wrist.L")] += torch.tensor(Postures(body, "L").bend(1.8, 0.0)).float()
    bent[1, body.joint("head"), 2] = 1.5
    assert set(beyond_limits(body, bent)) == {"wrist flexion.L", "head turn"}
    assert joint_angles(body, bent)["elbow.L"][0] == pytest.approx(38, abs=3)  # at ease


def test_hands_clear_the_body_the_head_and_each_other(body):
    """Many people, styles and seeds, and every posture as it stands."""
    clearance, betas = Clearance(body, every=16), load_people()[0]
    sunk = at_ease(body)[None].clone()  # arms turned into the trunk are found out
    sunk[0, body.joint("upperarm01.L"), 1] += 0.7
    sunk[0, body.joint("upperarm01.R"), 1] -= 0.7
    inside, crossed = clearance(sunk)
    assert inside < -0.02
    torso = body.select(body.region_vertices("torso")).rest(betas)
    size = torso.amax(1) - torso.amin(1)
    people = [0, *size[:, 0].topk(2).indices.tolist(), *size[:, 1].topk(2).indices.tolist(), *size.argmin(0)[:2].tolist(), 167, 311]
    nearest, apart = [], []
    for k, i in enumerate(people):
        style = Style(1.5, 1.25, (0, -0.4, 0.4)[k % 3], 1.4, 1.0, 1.5, (1.0, -0.5)[k % 2])
        for n in (k, k + 1):
            show = perform(body, say(TEXTS[n % 8], n), seed=k, style=style)
            a, b = clearance(show.rotvecs[::3], betas[i], show.actions[::3])
            nearest.append(float(a.min()))
            apart.append(float(b.min()))
    print(f"hands stay {1000 * min(nearest):.0f} mm off the body, {1000 * min(apart):.0f} mm off each other")
    assert min(nearest) > 0.005
    assert min(apart) > 0.01
    for space in (-0.5, 1.0):
        sides = [Postures(body, s, space) for s in "LR"]
        pose = torch.zeros(len(POSES), len(body.parents), 3)
        for own in sides:
            for n, name in enumerate(POSES):
                pose[n, own.joints] = torch.tensor(own.arms[name] + own.shapes["open"]).float()
        one = [n for n, name in enumerate(POSES) if name.split()[0] in ("self", "you", "here", "there", "count", "list")]
        pose[np.ix_(one, sides[0].joints)] = at_ease(body)[sides[0].joints]  # made with one hand only
        inside, crossed = clearance(pose)
        assert inside.min() > 0.02
        assert crossed.min() > 0.02


def test_hands_stay_below_the_chin_and_off_the_face(body, shows):
    some = torch.cat([body.region_vertices("hand")[::24], body.region_vertices("face")])
    few, n = body.select(some), len(body.region_vertices("hand")[::24])
    for show in shows[::2]:
        v, _ = few.pose(None, show.rotvecs[::3])
        assert (v[:, :n, 2].amax(1) < v[:, n:, 2].amin(1)).all()


def test_feet_stand_still(body, shows):
    feet = body.select(body.region_vertices("foot"))
    for show in shows[:3]:
        v, _ = feet.pose(None, show.rotvecs)
        assert (v == v[:1]).all()
        assert (show.translation == 0).all()


def test_the_trunk_shifts_between_phrases(body):
    speech = say(TEXTS[1], 0, tail=0.6)
    pair = SimpleNamespace(
        audio=np.tile(speech.audio, 2), duration=2 * speech.duration, text="", words=[],
        phonemes=[*speech.phonemes, *((s, a + speech.duration, b + speech.duration) for s, a, b in speech.phonemes)],
    )  # fmt: skip
    first, second = phrases(segments(pair.phonemes, pair.duration))
    spine = [body.joint(f"spine0{k}") for k in range(1, 6)]
    moved = []
    for seed in range(6):
        show = perform(body, pair, seed=seed)
        lean, t = show.rotvecs[:, spine, 2].sum(1), show.times
        one, two = (lean[(t > a + 1) & (t < b)].mean() for a, b in (first, second))
        moved.append(abs(float(two - one)))
    assert np.mean(moved) > 0.015
    assert max(moved) < 0.15


def hands_of(body, shows):
    few = body.select(body.region_vertices("hand")[::32])
    return [few.pose(None, s.rotvecs)[0] for s in shows]


def test_styles_differ(body, speeches):
    def measure(**settings):
        moved = hands_of(body, [perform(body, s, seed=k, style=Style(**settings)) for k, s in enumerate(speeches[:4])])
        left = moved[0][0, :, 0] > 0
        speed = [float(v.diff(dim=0).norm(dim=-1).mean()) * 25 for v in moved]
        sides = [[float(v[:, m].diff(dim=0).norm(dim=-1).mean()) for v in moved] for m in (left, ~left)]
        peak = np.mean([float(v[..., 2].mean(1).max() - v[0, :, 2].mean()) for v in moved])
        wide = np.mean([float(v[..., 0].abs().mean(1).max()) for v in moved])
        return SimpleNamespace(speed=np.mean(speed), sides=np.mean(sides, 1), peak=peak, wide=wide)

    assert measure(amplitude=1.4).speed > 1.3 * measure(amplitude=0.5).speed
    often, seldom = (sum(len(plan(s, rate=x)) for s in speeches[:6]) for x in (1.4, 0.4))
    assert often > 1.3 * seldom
    assert measure(rate=1.4).speed > 1.05 * measure(rate=0.4).speed
    assert measure(space=1.0).peak > measure(space=-0.5).peak + 0.01
    right, left = measure(handedness=-0.6).sides, measure(handedness=0.6).sides
    assert right[1] > 1.5 * right[0]
    assert left[0] > 1.5 * left[1]
    quick, slow = ([g.apex - g.stroke for g in plan(speeches[0], tempo=x)] for x in (1.25, 0.8))
    assert np.mean(quick) < 0.8 * np.mean(slow)
    sampled = [Style.sample(torch.Generator().manual_seed(k)) for k in range(40)]
    assert sum(s.handedness < 0 for s in sampled) > 28
    assert np.std([s.rate for s in sampled]) > 0.1


def accent_contrast(speed, accents) -> float:
    """Speed of the hands 110 ms before the accents less that 40 ms after, over their mean speed: large when strokes end there."""
    t = (np.arange(len(speed)) + 0.5) / 25
    before, after = (np.interp(np.asarray(accents) + d, t, speed).mean() for d in (-0.11, 0.04))
    return float((before - after) / max(speed.mean(), 1e-6))


def test_hands_beat_with_their_own_speech(body, speeches, shows):
    """24 clips: strokes belong to the accents of their own speech, not to those of another."""
    speeds = [stroke_speed(v.numpy()) for v in hands_of(body, shows)]
    accents = [[b.time for b in find_beats(segments(s.phonemes, s.duration), s.audio)] for s in speeches]
    own = [accent_contrast(v, a) for v, a in zip(speeds, accents)]
    other = [
        accent_contrast(v, [x for x in accents[(k + j) % 24] if x < len(v) / 25]) for k, v in enumerate(speeds) for j in (3, 7, 12)
    ]
    spans = [(int(25 * a[0]) - 6, int(25 * a[-1]) + 8) for a in accents]
    loud = [loudness(s.audio, (np.arange(len(v)) + 0.5) / 25) for s, v in zip(speeches, speeds)]
    p = beat_alignment([v[a:b] for v, (a, b) in zip(speeds, spans)], [q[a:b] for q, (a, b) in zip(loud, spans)], draws=200)
    error = np.std(other) / len(other) ** 0.5
    print(f"contrast at the own accents {np.mean(own):.2f}, at others' {np.mean(other):.2f} +- {error:.2f}; p {p:.3f}")
    assert np.mean(own) > np.mean(other) + 0.3
    assert np.mean(own) > np.mean(other) + 6 * error
    assert p < 0.02


def test_motion_is_cheap(body, speeches):
    """200 clips of 3 s within a minute on one core."""
    began = time.process_time()
    for k, s in enumerate(speeches[:6]):
        perform(body, s, seed=k)
    assert (time.process_time() - began) / sum(s.duration for s in speeches[:6]) < 0.1


def test_glide_passes_its_keys():
    rows = np.array([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
    out = glide(np.array([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0]), [0.0, 1.0, 2.0], rows)
    np.testing.assert_allclose(out, [[0, 1], [0, 1], [1, 0.5], [2, 0], [1, 1], [1, 1]])
    np.testing.assert_allclose(glide(np.array([0.0, 9.0]), [0.0], rows[:1]), rows[[0, 0]])

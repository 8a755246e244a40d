"""A photo and a recording become a video: what comes out, what is kept, and one clear sentence for each thing that cannot be used.

Everything goes through the command line. One small avatar is fitted for the whole file.
"""

import json
import os
import shutil
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from aa import canonical, cli, media, talk
from aa.body import load_body
from aa.motion import MotionModel
from aa.playback import Player
from aa.transfer import Deformation

PORTRAIT = cli.ASSETS / "portraits" / "ada.png"
SMALL = {"particles": 10_000, "settings": canonical.SMOKE}
RATE = media.SAMPLE_RATE


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory):
    """A cache of its own, and `talk` with a coarse photo fit: the command line knows no such switch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(talk, "talk", partial(talk.talk, **SMALL))
        yield


@pytest.fixture(scope="module")
def avatar(small):
    """The portrait's avatar at 256 px, in the cache from now on."""
    return talk.get_avatar(PORTRAIT, 256, progress=False, **SMALL)


@pytest.fixture
def no_fit(monkeypatch, avatar):
    """Photo fits are counted and give the small avatar at once; photos are told apart by content all the same."""
    calls = []

    def fit(image, **options):
        calls.append(options)
        return replace(avatar, report={**avatar.report, "notices": ["from the photo."]})

    monkeypatch.setattr(canonical, "fit_photo", fit)
    return calls


def tone(seconds: float, level: float = 0.3) -> np.ndarray:
    """Syllables of a sort: a buzz at 120 Hz, four times a second."""
    t = np.arange(round(seconds * RATE)) / RATE
    return (level * np.sign(np.sin(2 * np.pi * 120 * t)) * np.sin(2 * np.pi * 2 * t) ** 2).astype(np.float32)


def write_sound(path: Path, sound: np.ndarray, codec: str = "pcm_s16le", container: str | None = None, rate: int = RATE) -> Path:
    """A sound file of any codec, whatever its name says."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.layout = "mono"
        resampler = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate, frame_size=stream.frame_size or 0)
        frame = av.AudioFrame.from_ndarray((sound * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return path


def run(folder: Path, capsys, image=PORTRAIT, audio=None, *more: str) -> tuple[int, str, Path]:
    """Exit code, standard error, and where the video should be."""
    out = folder / "out.mp4"
    sound = ["--audio", str(audio)] if audio else []
    code = cli.main(["talk", "--image", str(image), *sound, "--out", str(out), "--size", "256", "--quiet", *more])
    return code, capsys.readouterr().err, out


def refused(folder: Path, capsys, *given: str, **how) -> str:
    """The sentence with which a request is refused, after seeing that it is one and that nothing was left in the folder."""
    before = sorted(folder.iterdir())
    code, error, _ = run(folder, capsys, *given, **how)
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert sorted(folder.iterdir()) == before
    return error


# ---------------------------------------------------------------- what comes out


@pytest.mark.parametrize("seconds", [0.2, 1.13, 2.0 - 1 / RATE])
def test_video_has_the_length_of_the_sound_and_says_what_it_is(avatar, tmp_path, capsys, seconds):
    sound = tone(seconds)
    code, error, out = run(tmp_path, capsys, audio=write_sound(tmp_path / "a.wav", sound))
    assert (code, error) == (0, "")
    frames, fps, heard = media.read_video(out)
    assert (len(frames), fps) == (round(25 * len(sound) / RATE), 25)
    assert frames.shape[1:3] == (avatar.height, avatar.width)
    with av.open(str(out)) as file:
        video, audio = file.streams.video[0].codec_context, file.streams.audio[0].codec_context
        assert (video.name, video.pix_fmt, audio.name) == ("h264", "yuv420p", "aac")
        assert "synthetic" in file.metadata["comment"]
    n = min(len(heard), len(sound))
    assert abs(n - len(sound)) <= 1
    best = np.argmax([np.dot(heard[800 : n - 800], sound[800 + k : n - 800 + k]) for k in range(-320, 321, 8)])
    assert abs(8 * best - 320) <= 16  # in step within a millisecond


def test_the_mouth_opens_for_a_voice_and_rests_in_silence(avatar, tmp_path, capsys):
    body, model = load_body(), MotionModel.load()
    sound = np.concatenate([np.zeros(RATE, np.float32), tone(1.0), np.zeros(RATE, np.float32)])
    lips = body.region_vertices("lips")
    moved = talk.retarget(body, avatar)(model.generate(sound)).means[:, lips]
    moved = moved - moved.mean(1, keepdim=True)  # without the head
    opening = moved.norm(dim=-1).mean(1).numpy()
    assert opening[28:48].max() > 3 * np.abs(opening[5:20]).max()
    code, error, out = run(tmp_path, capsys, audio=write_sound(tmp_path / "quiet.wav", np.zeros(RATE, np.float32)))
    assert code == 0
    assert error == "note: the recording is silent: the avatar rests, breathes and blinks.\n"
    assert len(media.read_video(out)[0]) == 25


def test_a_resting_avatar_blinks(avatar):
    body = load_body()
    motion = MotionModel.load().generate(np.zeros(10 * RATE, np.float32))
    lids = motion.means[:, body.region_vertices("eyelid")]
    head = motion.means[:, body.region_vertices("scalp")].mean(1, keepdim=True)
    travel = (lids - head).norm(dim=-1).amax(1)
    assert travel.max() > 0.004  # m: an upper lid comes down some 8 mm
    assert travel.median() < 0.004


@pytest.mark.parametrize(
    ("name", "codec", "container", "rate"),
    [("a.wav", "libmp3lame", "mp3", 44100), ("a.m4a", "aac", "mp4", 48000), ("a.ogg", "libopus", "ogg", 48000)],
)
def test_any_sound_file(avatar, tmp_path, capsys, name, codec, container, rate):
    sound = write_sound(tmp_path / name, tone(0.6), codec, container, rate)
    code, _, out = run(tmp_path, capsys, audio=sound)
    assert code == 0
    assert 15 <= len(media.read_video(out)[0]) <= 18  # an encoder may add its own silence


def test_text_is_spoken(avatar, tmp_path, capsys):
    code, error, out = run(tmp_path, capsys, PORTRAIT, None, "--text", "Hello there.")
    assert (code, error) == (0, "")
    frames, _, sound = media.read_video(out)
    assert len(frames) == round(25 * len(sound) / RATE)
    assert np.abs(sound).max() > 0.1


# ---------------------------------------------------------------- photos


def test_photos_of_odd_formats(avatar, tmp_path, capsys, monkeypatch):
    people = []
    monkeypatch.setattr(canonical, "fit_photo", lambda image, **options: people.append(canonical.detect(image)) or avatar)
    picture = Image.open(PORTRAIT).convert("RGB").resize((512, 768))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    picture.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    clear = picture.convert("RGBA")
    clear.putpixel((0, 0), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    picture.convert("L").save(tmp_path / "grey.webp")
    sound = write_sound(tmp_path / "a.wav", tone(0.2))
    for name in ("turned.jpg", "clear.png", "grey.webp"):
        code, error, _ = run(tmp_path, capsys, tmp_path / name, sound)
        assert (code, error) == (0, ""), name
        assert people[-1].image.shape == (768, 512, 3), name
        assert abs(people[-1].yaw) < 15, name
    assert len(people) == 3


def test_several_people_are_counted_and_the_largest_is_used(tmp_path, capsys):
    large = Image.open(PORTRAIT).convert("RGB").resize((512, 768))
    both = Image.new("RGB", (922, 768), large.getpixel((2, 2)))
    both.paste(large.resize((410, 614)), (512, 154))
    both.paste(large, (0, 0))
    both.save(tmp_path / "both.png")
    sound = write_sound(tmp_path / "a.wav", tone(0.2))
    for _ in range(2):  # the second time from the cache
        code, error, out = run(tmp_path, capsys, tmp_path / "both.png", sound)
        assert (code, error) == (0, "note: 2 faces in the photo: the largest is used.\n")
    person = canonical.detect(tmp_path / "both.png")
    assert person.face[:, 0].mean() < 512
    assert out.exists()


def nobody(folder):
    y, x = np.mgrid[:400, :300]
    return np.stack([x * 255 // 300, y * 255 // 400, 0 * x + 90], -1).astype(np.uint8)


def far_away(folder):
    canvas = Image.new("RGB", (768, 1152), (200, 203, 205))
    canvas.paste(Image.open(PORTRAIT).convert("RGB").resize((154, 230), Image.Resampling.LANCZOS), (300, 400))
    return np.asarray(canvas)


def turned_away(folder):
    from aa.identities import sample_identity
    from aa.studio import Stage, camera

    body = load_body()
    stage = Stage(body, sample_identity(10), "cpu")
    rotvecs = torch.zeros(len(body.parents), 3)
    rotvecs[0, 2] = np.radians(70)
    stage.pose(rotvecs, torch.zeros(len(body.action_names)), None)
    picture, _ = stage.shoot(*camera("portrait", 480, 720, person=stage.body), 480, 720, 1)
    return (picture * 255).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("make", "words"),
    [(nobody, "No person was found"), (far_away, "face is too small"), (turned_away, "turned away")],
)
def test_unusable_people(tmp_path, capsys, make, words):
    Image.fromarray(make(tmp_path)).save(tmp_path / "photo.png")
    assert words in refused(tmp_path, capsys, tmp_path / "photo.png", write_sound(tmp_path / "a.wav", tone(0.2)))


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "is empty"), (b"no picture at all", "cannot be read"), (None, "is not there")]
)
def test_unreadable_photos(tmp_path, capsys, content, words):
    photo = tmp_path / "photo.jpg"
    if content is not None:
        photo.write_bytes(content)
    assert words in refused(tmp_path, capsys, photo, write_sound(tmp_path / "a.wav", tone(0.2)))


def test_a_photo_cut_off_in_the_middle(tmp_path, capsys):
    photo = tmp_path / "photo.png"
    photo.write_bytes(PORTRAIT.read_bytes()[:9000])
    assert "cannot be read" in refused(tmp_path, capsys, photo, write_sound(tmp_path / "a.wav", tone(0.2)))


# ---------------------------------------------------------------- sound, place, device: refused before the photo is looked at


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "is empty"), (b"no sound at all" * 50, "cannot be read"), (None, "is not there")]
)
def test_unreadable_sound(tmp_path, capsys, no_fit, content, words):
    sound = tmp_path / "a.wav"
    if content is not None:
        sound.write_bytes(content)
    assert words in refused(tmp_path, capsys, PORTRAIT, sound, "--no-cache")
    assert not no_fit


def test_too_short_a_sound(tmp_path, capsys, no_fit):
    sound = write_sound(tmp_path / "a.wav", tone(0.19))
    assert "0.19 s, which is too short" in refused(tmp_path, capsys, PORTRAIT, sound, "--no-cache")
    assert not no_fit


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--background", "sky"), 'background "sky" is not known'),
        (("--text", "..."), "word"),
        (("--text", "Hello.", "--voice", "nobody"), "nobody"),
        (("--device", "cuda"), "no CUDA device"),
    ],
)
def test_other_things_that_cannot_be_done(tmp_path, capsys, no_fit, monkeypatch, more, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert words in refused(tmp_path, capsys, PORTRAIT, None, "--no-cache", *more)
    assert not no_fit


def test_unwritable_places_are_found_before_the_work(tmp_path, capsys, no_fit, monkeypatch):
    for out, words in ((tmp_path / "no" / "o.mp4", "does not exist"), (tmp_path, "is a folder"), (tmp_path / "o.avi", "mp4 only")):
        assert cli.main(["talk", "--image", str(PORTRAIT), "--out", str(out), "--no-cache"]) == 2
        assert words in capsys.readouterr().err
    monkeypatch.setattr(Path, "touch", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert "cannot write into" in refused(tmp_path, capsys, PORTRAIT, None, "--no-cache")
    assert not no_fit


@pytest.mark.skipif(os.name != "posix", reason="needs file size limits")
def test_a_full_disk_is_one_sentence(avatar, tmp_path, capsys):
    import resource

    sound = write_sound(tmp_path / "a.wav", tone(2.0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        assert "could not be written" in refused(tmp_path, capsys, PORTRAIT, sound)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_interrupt_leaves_no_half_video(avatar, tmp_path, capsys, monkeypatch):
    sound, count = write_sound(tmp_path / "a.wav", tone(1.0)), iter(range(9))
    write = media.VideoWriter.write
    monkeypatch.setattr(media.VideoWriter, "write", lambda self, f: write(self, f) if next(count) < 5 else interrupt())
    code, error, _ = run(tmp_path, capsys, audio=sound)
    assert (code, error) == (130, "stopped\n")
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def interrupt(*_, **__):
    raise KeyboardInterrupt


# ---------------------------------------------------------------- avatars that are kept


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache for one test, and a photo of its own."""
    monkeypatch.setenv("AA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photo.png").write_bytes(PORTRAIT.read_bytes())
    write_sound(tmp_path / "a.wav", tone(0.2))
    return tmp_path / "cache"


def test_a_photo_is_fitted_once_and_anew_when_it_changes(cache, tmp_path, capsys, no_fit):
    photo, videos = tmp_path / "photo.png", []
    for name in ("photo.png", "photo.png", "other name.png"):
        shutil.copy(photo, tmp_path / name) if name != photo.name else None
        code, error, out = run(tmp_path, capsys, tmp_path / name, tmp_path / "a.wav")
        assert (code, error) == (0, "note: from the photo.\n")  # a kept avatar still says what was noticed
        videos.append(out.read_bytes())
    assert videos[0] == videos[1] == videos[2]
    assert len(no_fit) == 1
    Image.open(photo).convert("RGB").point(lambda v: v // 2).save(photo)
    assert run(tmp_path, capsys, photo, tmp_path / "a.wav")[0] == 0
    assert run(tmp_path, capsys, photo, tmp_path / "a.wav", "--seed", "1")[0] == 0
    assert len(no_fit) == 3
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("harm", ["gaussians.safetensors", "background.png", "cut", "not json"])
def test_a_damaged_entry_is_made_anew(cache, tmp_path, capsys, no_fit, harm):
    photo, sound = tmp_path / "photo.png", tmp_path / "a.wav"
    run(tmp_path, capsys, photo, sound)
    (entry,) = cache.iterdir()
    if harm == "cut":
        file = entry / "avatar.safetensors"
        file.write_bytes(file.read_bytes()[:1000])
    elif harm == "not json":
        (entry / "avatar.json").write_text("{")
    else:
        (entry / harm).unlink()
    code, error, _ = run(tmp_path, capsys, photo, sound)
    assert code == 0
    assert "was damaged: it was fitted anew" in error
    assert len(no_fit) == 2
    assert run(tmp_path, capsys, photo, sound)[1] == "note: from the photo.\n"
    assert len(no_fit) == 2


def test_interrupted_fits_leave_no_entry(cache, tmp_path, capsys, monkeypatch, no_fit):
    monkeypatch.setattr(canonical.Avatar, "save", half_saved)
    code, error, _ = run(tmp_path, capsys, tmp_path / "photo.png", tmp_path / "a.wav")
    assert (code, error) == (130, "stopped\n")
    assert not list(cache.iterdir())
    monkeypatch.setattr(canonical, "fit_photo", interrupt)
    assert run(tmp_path, capsys, tmp_path / "photo.png", tmp_path / "a.wav")[0] == 130
    assert not list(cache.iterdir())


def half_saved(self, folder):
    """Part of an entry, then Ctrl-C."""
    part = folder.with_name(folder.name + ".part")
    part.mkdir(parents=True)
    (part / "avatar.json").write_text("{")
    raise KeyboardInterrupt


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, capsys, monkeypatch, no_fit):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("AA_CACHE", str(tmp_path / "file" / "cache"))
    code, error, out = run(tmp_path, capsys, PORTRAIT, write_sound(tmp_path / "a.wav", tone(0.2)))
    assert code == 0
    assert "could not be kept" in error
    assert out.exists()


def test_several_writers_of_one_entry(cache, avatar):
    folder = cache / "entry"
    threads = [threading.Thread(target=talk.keep, args=(avatar, folder)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.name for p in cache.iterdir()] == ["entry"]
    assert len(canonical.Avatar.load(folder).gaussians) == len(avatar.gaussians)
    assert json.loads((folder / "avatar.json").read_text())["width"] == avatar.width


# ---------------------------------------------------------------- frames


@pytest.fixture(scope="module")
def motion():
    """A second of motion of the template body."""
    return MotionModel.load().generate(tone(1.0))


@torch.no_grad()
def test_the_fast_way_gives_the_pictures_of_the_simple_one(avatar, motion):
    transfer = talk.retarget(load_body(), avatar)
    few = motion[:: len(motion) // 4]
    means, quats = canonical.animate(avatar, transfer(few))
    player = Player(avatar, transfer, talk.backdrop(avatar, "photo"))
    poses = list(player.poses(few))
    torch.testing.assert_close(torch.stack([m for m, _ in poses]), means, atol=2e-6, rtol=0)
    torch.testing.assert_close(torch.stack([q for _, q in poses]), quats, atol=2e-6, rtol=0)
    simple = (canonical.render(avatar, means, quats) * 255 + 0.5).to(torch.uint8).numpy()
    fast = np.stack(list(talk.frames_of(avatar, [few], transfer, talk.backdrop(avatar, "photo"))))
    difference = np.abs(fast.astype(int) - simple)
    assert (difference > 1).mean() < 1e-4  # Gaussians at the same depth may change places
    assert difference.mean() < 0.01


@torch.no_grad()
def test_pieces_of_any_length_give_the_same_frames(avatar, motion):
    transfer, behind = talk.retarget(load_body(), avatar), talk.backdrop(avatar, "#204060")
    whole = list(talk.frames_of(avatar, [motion[:6]], transfer, behind))
    pieces = list(talk.frames_of(avatar, iter([motion[:1], motion[1:5], motion[5:6]]), transfer, behind))
    assert np.abs(np.stack(whole).astype(int) - np.stack(pieces)).mean() < 0.01


def test_rest_is_the_photo(avatar):
    """Without motion the avatar stands as in its photo, over the photo's background."""
    still = Deformation(*torch.zeros(2, 1, len(avatar.vertices), 3))
    (frame,) = talk.frames_of(avatar, [still], talk.retarget(load_body(), avatar), talk.backdrop(avatar, "photo"))
    photo = np.asarray(Image.open(PORTRAIT).convert("RGB").resize((avatar.width, avatar.height), Image.Resampling.BOX))
    error = np.square((frame.astype(float) - photo) / 255).mean()
    assert -10 * np.log10(error) > 19  # at 256 px, after a few steps of refinement


def check_memory(avatar, tmp_path, seconds):
    """Talk for so long; the most memory taken on top of what the first two seconds took, in MB."""
    sound, process = tone(seconds), psutil.Process()
    body = load_body()
    pictures = talk.frames_of(
        avatar, MotionModel.load().stream(sound, chunk=talk.CHUNK), talk.retarget(body, avatar), talk.backdrop(avatar, "photo")
    )
    taken = []
    with media.VideoWriter(tmp_path / "long.mp4", audio=sound) as video:
        for picture in pictures:
            video.write(picture)
            taken.append(process.memory_info().rss / 1e6)
    assert video.count == round(25 * seconds)
    return max(taken) - max(taken[:100])


def test_memory_does_not_grow_with_the_recording(avatar, tmp_path):
    """Kept motion would take 0.4 MB a frame, kept pictures 0.13 MB: 80 MB and 26 MB over this time."""
    assert check_memory(avatar, tmp_path, 12) < 20


@pytest.mark.slow
def test_a_minute_takes_no_more_memory(avatar, tmp_path):
    assert check_memory(avatar, tmp_path, 60) < 40

"""The command line: quick help, one sentence and exit code 2 for bad input, nothing left behind."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from aa import cli, course
from aa.errors import InputError

ROOT = Path(cli.__file__).resolve().parents[1]


@dataclass
class Result:
    """What `aa.talk.talk` gives back."""

    path: Path
    frames: int
    seconds: dict
    notices: list


@pytest.fixture
def talk(monkeypatch):
    """`aa.talk` replaced by one that notes what it was asked for; set `calls.fails` to make it raise."""
    module, calls = ModuleType("aa.talk"), []

    def record(image, audio, out, **options):
        calls.append((image, audio, out, options))
        if module.fails:
            raise module.fails
        return Result(out, 50, {"photo": 1.5, "render": 0.5}, ["the sound is silent"])

    module.talk, module.fails = record, None
    monkeypatch.setitem(sys.modules, "aa.talk", module)
    return calls, module


@pytest.fixture
def files(tmp_path):
    """A photo and a recording, as far as the command line looks."""
    photo, sound = tmp_path / "me.jpg", tmp_path / "hello.wav"
    photo.write_bytes(b"x")
    sound.write_bytes(b"x")
    return photo, sound


def test_help_is_there_at_once():
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "aa", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    assert "talk" in done.stdout
    assert "course" in done.stdout
    assert seconds < 2  # 0.05 s on an idle machine
    code = "import sys, aa.cli; aa.cli.parser(); assert not {'torch', 'numpy', 'av'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_talk_passes_everything_on(talk, files, tmp_path, capsys):
    out = tmp_path / "o.mp4"
    words = f"talk --image {files[0]} --audio {files[1]} --out {out} --size 512 --seed 7 --device cpu --no-cache --quiet"
    assert cli.main(words.split()) == 0
    options = {"text": None, "voice": "joe", "size": 512, "seed": 7, "device": "cpu", "background": "photo"}
    assert talk[0] == [(*files, out, options | {"cache": False, "progress": False})]
    shown = capsys.readouterr()
    assert "50 frames (2.00 s); photo 1.5 s, render 0.5 s" in shown.out
    assert shown.err == "note: the sound is silent\n"


def test_talk_speaks_a_text_instead_of_a_recording(talk, files, tmp_path):
    assert cli.main(["talk", "--image", str(files[0]), "--text", "Hello there.", "--out", str(tmp_path / "o.mp4")]) == 0
    _, audio, _, options = talk[0][0]
    assert audio is None
    assert options["text"] == "Hello there."


def test_talk_without_arguments_uses_what_is_shipped(talk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["talk"]) == 0
    image, audio, out, options = talk[0][0]
    assert image.is_file()
    assert audio.is_file()
    assert (out, options["cache"], options["device"]) == (Path("talk.mp4"), True, None)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--out {tmp}/no/o.mp4", "does not exist"),
        ("--out {tmp}", "is a folder"),
        ("--out {tmp}/o.avi", "mp4 only"),
        ("--image {tmp}/none.png --audio {sound} --out {tmp}/o.mp4", "none.png is not there"),
        ("--image {photo} --audio {tmp}/none.wav --out {tmp}/o.mp4", "none.wav is not there"),
    ],
)
def test_bad_input_is_refused_before_any_work(talk, files, tmp_path, capsys, words, sentence):
    before = sorted(tmp_path.iterdir())
    assert cli.main(["talk", *words.format(tmp=tmp_path, photo=files[0], sound=files[1]).split()]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    assert sentence in shown
    assert not talk[0]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("words", ["--size 33", "--size big", "--audio a.wav --text hello", "--device tpu"])
def test_wrong_arguments_exit_with_2(words):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["talk", *words.split()])
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [(InputError("no person in the photo."), 2, "error: no person in the photo.\n"), (KeyboardInterrupt(), 130, "stopped\n")],
)
def test_talk_failures_are_one_line(talk, files, tmp_path, capsys, failure, code, words):
    talk[1].fails = failure
    arguments = ["talk", "--image", str(files[0]), "--audio", str(files[1]), "--out", str(tmp_path / "o.mp4")]
    assert cli.main(arguments) == code
    assert capsys.readouterr().err == words


def test_course_reports_the_failing_notebook_in_one_line(monkeypatch, tmp_path, capsys):
    def fail(preset, out, only, parameters, progress):
        assert (preset, only, progress) == ("smoke", ["03"], False)
        assert parameters == {"SEED": 1, "DEVICE": "cpu", "CLIPS": 2, "NAME": "x"}
        raise course.NotebookFailed("03_embedding, cell 4: ValueError: no")

    monkeypatch.setattr(course, "run_course", fail)
    words = f"course --preset smoke --out {tmp_path} --only 03 --seed 1 --device cpu -p CLIPS 2 -p NAME x --quiet"
    assert cli.main(words.split()) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("stopped: 03_embedding, cell 4: ValueError: no")
    assert shown.count("\n") == 1


def test_version_names_the_packages(capsys):
    assert cli.main(["version"]) == 0
    assert "torch 2" in capsys.readouterr().out

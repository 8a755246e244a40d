"""What is shipped is small, and assets/README.md tells the truth about it."""

import runpy
import wave

import pytest

from aa.course import ROOT

ASSETS = ROOT / "assets"


@pytest.fixture(scope="module")
def maker():
    """The script that writes the table."""
    return runpy.run_path(str(ASSETS / "make_readme.py"))


def test_readme_lists_every_file_with_its_checksum(maker):
    text = (ASSETS / "README.md").read_text(encoding="utf-8")
    assert text == maker["with_table"](text), "run: python assets/make_readme.py"
    for path in maker["shipped"]():
        assert f"`{path.relative_to(ASSETS).as_posix()}`" in text


def test_a_file_without_a_licence_is_refused(maker, tmp_path):
    with pytest.raises(ValueError, match="licence"):
        maker["row"](ASSETS / "make_readme.py")


def test_assets_stay_small(maker):
    files = maker["shipped"]()
    assert max(path.stat().st_size for path in files) <= 20e6
    assert sum(path.stat().st_size for path in files) <= 60e6


def test_default_speech_is_plain_wav_of_some_seconds():
    with wave.open(str(ASSETS / "speech" / "hello.wav")) as sound:
        assert (sound.getnchannels(), sound.getframerate(), sound.getsampwidth()) == (1, 16000, 2)
        assert 5 < sound.getnframes() / 16000 < 8

"""The README keeps its promises: its files exist, its commands are understood, nothing in it is left open."""

import re
import shlex

import pytest

from aa import cli
from aa.course import ROOT, notebooks

READMES = ("README.md", "assets/README.md")


@pytest.mark.parametrize("name", READMES)
def test_links_lead_to_files_and_nothing_is_left_open(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "TODO" not in text
    for words, target in re.findall(r"!?\[([^\]]*)\]\(([^)#\s]+)[^)]*\)", text):
        assert words.strip(), f"no words for {target}"
        if "://" not in target:
            assert (ROOT / name).parent.joinpath(target).exists(), target


def test_talk_command_names_shipped_files_and_is_understood():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^    (pip install .*python -m aa talk .*)$", text, re.M)
    given = cli.parser().parse_args(shlex.split(line.split("python -m aa ")[1]))
    assert (ROOT / given.image).is_file()
    assert (ROOT / given.audio).is_file()
    assert given.out.suffix == ".mp4"


def test_every_notebook_is_in_the_table():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in notebooks():
        assert f"| [{path.stem}](notebooks/{path.name}) |" in text


def test_environment_is_python_and_the_requirements():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert "python=3.11" in text
    assert "-r requirements.txt" in text
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        assert not line or line.startswith("#") or re.fullmatch(r"[a-z0-9-]+==[0-9.post]+  # .+", line), line

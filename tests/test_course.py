"""Running notebooks: parameters are checked, a failure names its cell, results are finite and complete."""

import json

import nbformat
import pytest

from aa import course
from aa.errors import InputError

SETUP = 'from aa.course import setup\nrun = setup(PRESET, SEED, DEVICE, RUN_DIR, "03_embedding")'
METRICS = "run.metrics(" + "".join(f"{key}=0.5, " for key in course.METRICS["03_embedding"].split()) + "extra=EXTRA)"


def write(folder, stem, *sources, parameters="EXTRA = None  # more"):
    """A small notebook with the generated cells."""
    make = nbformat.v4
    cells = [
        make.new_markdown_cell("stale", metadata={"tags": ["header"]}),
        make.new_code_cell("stale = 1", metadata={"tags": ["bootstrap"]}),
        make.new_code_cell(course.PARAMETERS + "\n" + parameters, metadata={"tags": ["parameters"]}),
        *[make.new_code_cell(source) for source in sources],
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = folder / f"{stem}.ipynb"
    nbformat.write(make.new_notebook(cells=cells, metadata=kernel), path)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of notebooks in place of the repository's."""
    monkeypatch.setattr(course, "NOTEBOOKS", tmp_path / "notebooks")
    course.NOTEBOOKS.mkdir()
    return course.NOTEBOOKS


def test_course_runs_in_order_and_stops_at_the_failing_cell(folder, tmp_path, capfd):
    write(folder, "03_embedding", SETUP, METRICS)
    write(folder, "04_motion_diffusion", "1 + 1", "raise ValueError('no\\nluck')")
    write(folder, "06_rendering", "open('never', 'w')")
    course.refresh()
    with pytest.raises(course.NotebookFailed, match=r"^04_motion_diffusion, cell 5: ValueError: no luck$"):
        course.run_course("smoke", tmp_path / "out", parameters={"EXTRA": 2.5}, progress=False)
    numbers = json.loads((tmp_path / "out/03_embedding/metrics.json").read_text())
    assert numbers["extra"] == 2.5
    assert numbers["recall1_frame"] == 0.5
    assert (tmp_path / "out/03_embedding.ipynb").exists()
    assert not (tmp_path / "out/06_rendering.ipynb").exists()


@pytest.mark.parametrize(
    ("only", "parameters", "words"),
    [
        ([], {"SEEED": 1}, "no parameter SEEED; it has PRESET"),
        (["9"], {}, "no notebook 09; there are 03_embedding"),
    ],
)
def test_what_cannot_run_is_refused_before_any_work(folder, tmp_path, only, parameters, words):
    write(folder, "03_embedding", SETUP)
    with pytest.raises(InputError, match=words):
        course.run_course("smoke", tmp_path / "out", only, parameters, progress=False)
    assert not (tmp_path / "out").exists()


def test_results_need_a_folder_that_can_be_made(folder, tmp_path):
    write(folder, "03_embedding", SETUP)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        course.run_course("smoke", tmp_path / "file" / "out", progress=False)


def test_parameters_must_be_literals(folder):
    path = write(folder, "03_embedding", parameters="EXTRA = [1, 2]")
    assert course.read_parameters(path)["EXTRA"] == [1, 2]
    with pytest.raises(ValueError, match="NAME = literal"):
        course.read_parameters(write(folder, "03_embedding", parameters="EXTRA = 2 * SEED"))
    with pytest.raises(ValueError, match="NAME = literal"):
        course.read_parameters(write(folder, "03_embedding", parameters="import os"))


def test_refresh_links_the_notebooks_that_exist(folder):
    first = write(folder, "03_embedding", SETUP)
    write(folder, "06_rendering", SETUP)
    assert course.refresh() == ["03_embedding", "06_rendering"]
    assert course.refresh() == []
    header, bootstrap = (cell.source for cell in nbformat.read(first, 4).cells[:2])
    assert header.startswith("# 03 · ")
    assert "[Rendering →](06_rendering.ipynb)" in header
    assert "←" not in header
    assert f"github/{course.REPO}/blob/{course.BRANCH}/notebooks/03_embedding.ipynb" in header
    assert bootstrap == course.bootstrap_source()


def test_bootstrap_is_short_and_finds_the_root_from_below(monkeypatch):
    source = course.bootstrap_source()
    assert len(source.splitlines()) <= 12
    monkeypatch.chdir(course.ROOT / "tests")
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    names = {}
    exec(source.replace("%pip install -q {need}", "pass"), names)
    assert names["ROOT"] == course.ROOT
    monkeypatch.chdir("/")
    with pytest.raises(AssertionError, match="inside the repository"):
        exec(source.replace("%pip install -q {need}", "pass"), {})


def test_colab_installs_only_what_is_missing_and_never_torch(monkeypatch):
    monkeypatch.setattr(course.importlib.util, "find_spec", lambda name: None if name in ("av", "gsplat") else 1)
    wanted = course.missing_packages()
    assert wanted.startswith('"av>=')
    assert wanted.count('"') == 4
    assert not {"torch", "numpy"} & set(course.COLAB)


def test_setup_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(InputError, match="PRESET"):
        course.setup("fast", 0, "cpu", str(tmp_path), "03_embedding")
    with pytest.raises(InputError, match="DEVICE"):
        course.setup("smoke", 0, "tpu", str(tmp_path), "03_embedding")


def test_run_is_seeded_and_refuses_incomplete_metrics(tmp_path, capsys):
    import torch

    run = course.setup("smoke", 3, "cpu", str(tmp_path), "03_embedding")
    first = torch.rand(2), torch.rand(2, generator=run.generator)
    run = course.setup("smoke", 3, "cpu", str(tmp_path), "03_embedding")
    torch.testing.assert_close((torch.rand(2), torch.rand(2, generator=run.generator)), first)
    assert "torch" in capsys.readouterr().out
    assert run.pick(1, 2, 3) == 1
    assert run.earlier("02_gaussian_fitting", "dg.safetensors") is None
    complete = dict.fromkeys(course.METRICS["03_embedding"].split(), 1)
    with pytest.raises(ValueError, match="recall1_patch"):
        run.metrics(**{k: v for k, v in complete.items() if k != "recall1_patch"})
    with pytest.raises(ValueError, match="not finite: recon_lip_mm"):
        run.metrics(**complete | {"recon_lip_mm": float("nan")})
    assert not (run.folder / "metrics.json").exists()
    run.metrics(**complete | {"recon_lip_mm": None, "recall1_frame": torch.tensor(0.25)})
    assert json.loads((run.folder / "metrics.json").read_text())["recall1_frame"] == 0.25

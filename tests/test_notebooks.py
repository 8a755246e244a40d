"""Every notebook runs, measures what it should, and is in the form the course keeps.

They run in order and share one run folder, as `python -m aa course` does it. `-m slow` runs each from `assets/` alone,
`-m gpu` runs them with the quick preset on CUDA.
"""

import json
import math
import re

import nbformat
import pytest

from aa import course

BOOKS = {path.stem: path for path in course.notebooks()}
MACHINE_PATH = re.compile(r"(?<![\w.])(?:/(?:work|root|tmp|home|Users|usr|opt)/|[A-Z]:\\\\)")
LIMIT = 1_000_000  # bytes of a notebook without its videos
VIDEO = re.compile(r"data:video/mp4;base64,([A-Za-z0-9+/=]+)")
PACKED = re.compile(r"base64,[A-Za-z0-9+/=]+")

each = pytest.mark.parametrize("stem", BOOKS)


def test_the_course_is_complete_so_far():
    assert list(BOOKS) == [stem for stem in course.TITLES if stem in BOOKS]
    assert {"00_start_here", "01_data_synthesis", "02_gaussian_fitting", "03_embedding"} <= set(BOOKS)
    assert {"04_motion_diffusion", "06_rendering"} <= set(BOOKS)


# ---------------------------------------------------------------- running


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The run folder that all notebooks share."""
    return tmp_path_factory.mktemp("runs")


def check_run(stem, folder, record, preset="smoke", device="cpu"):
    """Run one notebook into `folder` and look at its numbers."""
    given = {"PRESET": preset, "DEVICE": device, "RUN_DIR": str(folder), "SHOW_WIDGETS": False}
    seconds = course.run_notebook(BOOKS[stem], folder / f"{stem}.ipynb", given, timeout=600)
    record("seconds", round(seconds, 1))
    print(f"{stem}: {seconds:.1f} s")
    numbers = json.loads((folder / stem / "metrics.json").read_text())
    assert set(course.METRICS.get(stem, "").split()) <= set(numbers)
    for name, value in numbers.items():
        assert value is None or math.isfinite(value), name
        low, high = allowed(name)
        assert value is None or low <= value <= high, f"{name} = {value} is outside [{low}, {high}]"


def allowed(name):
    """The range a measured number of this name can have at all."""
    if "corr" in name:
        return -1, 1
    if re.search(r"recall|iou|_rate|closure|agreement|p_value", name):
        return 0, 1
    if "psnr" in name:
        return 0, 100
    return (-math.inf if "offset" in name else 0), math.inf


@each
def test_runs(stem, shared, record_property):
    check_run(stem, shared, record_property)


@pytest.mark.slow
@each
def test_runs_from_assets_alone(stem, tmp_path, record_property):
    check_run(stem, tmp_path, record_property)


@pytest.mark.gpu
@each
def test_runs_on_cuda(stem, tmp_path_factory, record_property):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    folder = tmp_path_factory.getbasetemp() / "cuda"
    folder.mkdir(exist_ok=True)
    check_run(stem, folder, record_property, "quick", "cuda")


# ---------------------------------------------------------------- form


@pytest.fixture
def book(stem):
    """The notebook as committed."""
    return nbformat.read(BOOKS[stem], as_version=4)


def code_cells(book):
    """Its code cells, in order."""
    return [cell for cell in book.cells if cell.cell_type == "code"]


def shown(book):
    """(mime type, text, metadata) of all outputs."""
    for cell in code_cells(book):
        for output in cell.outputs:
            if output.output_type == "stream":
                yield "text/plain", output.text, {}
            for kind, value in output.get("data", {}).items():
                yield kind, value if isinstance(value, str) else json.dumps(value), output.metadata.get(kind, output.metadata)


@each
def test_begins_with_the_generated_cells(stem, book):
    header, box, bootstrap, parameters = book.cells[:4]
    refresh = "run `python -m aa course --refresh-nav`"
    assert header.source == course.header_source(stem, list(BOOKS)), refresh
    assert bootstrap.source == course.bootstrap_source(), refresh
    assert box.cell_type == "markdown"
    assert re.search(r"!\[[^\]]+\]\(|<img [^>]*alt=", box.source), "cell 1 has a picture with alternative text"
    assert parameters.metadata.tags == ["parameters"]
    assert parameters.source.startswith(course.PARAMETERS)
    for line in parameters.source.splitlines():
        assert "#" in line, f"no comment on {line}"
    assert f'"{stem}"' in book.cells[4].source
    assert "setup(PRESET, SEED, DEVICE, RUN_DIR" in book.cells[4].source


@each
def test_parameters_are_literals_and_quick_is_the_default(stem):
    values = course.read_parameters(BOOKS[stem])
    assert (values["PRESET"], values["RUN_DIR"], values["DEVICE"]) == ("quick", "", "auto")


@each
def test_code_is_short_and_ends_with_the_metrics(stem, book):
    cells = code_cells(book)
    for cell in cells:
        assert len(cell.source.splitlines()) <= 40, cell.source[:80]
        assert "../" not in cell.source, cell.source[:80]
    assert "run.metrics(" in cells[-1].source
    assert stem.startswith("00") or "<details" in "".join(c.source for c in book.cells), "no exercise with a folded solution"


@each
def test_was_run_once_from_top_to_bottom_without_errors(stem, book):
    assert [cell.execution_count for cell in code_cells(book)] == list(range(1, len(code_cells(book)) + 1))
    assert "error" not in {output.output_type for cell in code_cells(book) for output in cell.outputs}
    kinds = {kind for kind, _, _ in shown(book)}
    assert "text/plain" in kinds
    assert {"image/png", "image/jpeg"} & kinds


@each
def test_metadata_is_clean(stem, book):
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    assert "widgets" not in book.metadata
    assert "papermill" not in book.metadata
    for cell in book.cells:
        assert not {"papermill", "execution"} & set(cell.metadata)
        assert "injected-parameters" not in cell.metadata.get("tags", [])
    assert "application/vnd.jupyter.widget-view+json" not in {kind for kind, _, _ in shown(book)}


@each
def test_names_no_machine(stem, book):
    texts = [cell.source for cell in book.cells]
    texts += [PACKED.sub("", text) for kind, text, _ in shown(book) if not kind.startswith("image/")]
    for text in texts:
        found = MACHINE_PATH.search(text)
        assert not found, text[max(0, found.start() - 40) : found.end() + 40]


@each
def test_is_small_enough_for_github(stem, book):
    videos = sum(len(data) * 3 // 4 for _, text, _ in shown(book) for data in VIDEO.findall(text))
    assert videos <= 2_000_000
    assert BOOKS[stem].stat().st_size - videos * 4 // 3 <= LIMIT


@each
def test_pictures_have_words_and_plotly_has_pictures(stem, book):
    for kind, _, metadata in shown(book):
        if kind in ("image/png", "image/jpeg"):
            assert metadata.get("alt", "").strip(), "show figures with aa.viz.alt(figure, text)"
    cells = code_cells(book)
    for cell, following in zip(cells, [*cells[1:], None]):
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        near = kinds | {k for output in (following.outputs if following else []) for k in output.get("data", {})}
        if "application/vnd.plotly.v1+json" in kinds:
            assert {"image/png", "image/jpeg"} & near, "a static picture belongs beside the plotly figure"


@each
def test_links_to_files_that_exist(stem, book):
    for cell in book.cells:
        if cell.cell_type == "markdown":
            for words, target in re.findall(r"(!?\[[^\]]*)\]\(([^)#\s]+)[^)]*\)", cell.source):
                assert words != "![", "a picture without alternative text"
                if "://" not in target and not target.startswith(("data:", "attachment:")):
                    assert (course.NOTEBOOKS / target).exists(), target

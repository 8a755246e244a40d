"""`python -m aa bench`: what it counts is right, its tables are whole, its files too; how fast anything is, is not tested."""

import json
import math

import pytest
import torch

from aa import bench, bench_limit, bench_scaling, cli
from aa.bench_memory import peak_megabytes
from aa.bench_scenes import PHASES, Size, build, make_steps, parse_size
from aa.errors import InputError
from aa.raster import rasterize, rasterize_torch
from aa.raster_numba import ALPHA_MAX, T_STOP, TILE_H
from aa.raster_project import ALPHA_MIN
from aa.raster_simd import TILE_W

TINY = Size(300, 48)


def brute_force(inputs, width: int, height: int):
    """Pairs, groups and starts of one camera from the whole (n, H, W) stack of alphas in float64."""
    inputs = [x.double() for x in inputs]
    meta = rasterize_torch(*inputs, width, height)[2]
    seen = (meta["radii"][0, :, 0] > 0).nonzero()[:, 0]
    seen = seen[meta["depths"][0, seen].argsort(stable=True)]
    x, y = (torch.arange(s, dtype=torch.float64) + 0.5 for s in (width, height))
    dx = x - meta["means2d"][0, seen, 0, None, None]
    dy = y[:, None] - meta["means2d"][0, seen, 1, None, None]
    a, b, d = meta["conics"][0, seen, :, None, None].unbind(1)
    alpha = (inputs[3][seen, None, None] * torch.exp(-0.5 * (a * dx**2 + d * dy**2) - b * dx * dy)).clamp(max=ALPHA_MAX)
    alpha = torch.where(alpha < ALPHA_MIN, 0, alpha)
    after = torch.cumprod(1 - alpha, 0)
    blended = (alpha > 0) & (after > T_STOP)
    stopping = (alpha > 0) & ~blended & (torch.cumsum((after <= T_STOP) & (alpha > 0), 0) == 1)
    used = torch.nn.functional.pad(blended | stopping, (0, -width % TILE_W, 0, -height % TILE_H))
    groups = used.unflatten(-1, (-1, TILE_W)).any(-1)
    tiles = groups.unflatten(1, (-1, TILE_H)).any(2)
    return {"pairs": int(blended.sum()), "groups": int(groups.sum()), "starts": int(tiles.sum())}


def test_pairs_groups_and_starts_are_those_of_a_brute_force_count():
    inputs = build(Size(600, 45))
    inputs[2], inputs[3] = 8 * inputs[2], inputs[3].clamp(min=0.7)  # deep enough for pixels to stop
    assert rasterize(*inputs, 45, 45)[1].max() > 0.999
    work = bench_limit.count_work(inputs, rasterize, 45, 45)
    assert work == brute_force(inputs, 45, 45)
    twice = [*inputs[:5], *(x.expand(2, -1, -1) for x in inputs[5:])]
    assert bench_limit.count_work(twice, rasterize, 45, 45) == {name: 2 * value for name, value in work.items()}


def test_scenes_are_seeded_finite_and_visible():
    for size in (TINY, Size(300, 48, frames=3), parse_size("avatar-10k-64")):
        inputs = build(size)
        assert all(torch.equal(a, b) for a, b in zip(inputs, build(size)))
        steps = make_steps(inputs, size.pixels)
        images, grads = steps["forward"](), steps["forward+backward"]()
        assert images.shape == (size.frames, size.pixels, size.pixels, 3)
        assert images.mean() > 0.01
        assert [g.shape for g in grads] == [x.shape for x in inputs[:6]]
        assert all(g.isfinite().all() for g in grads)


def test_kernels_are_clocked_and_the_rates_are_rates():
    step = make_steps(build(TINY), 48)["forward+backward"]
    with bench_limit.kernel_clock() as seconds:
        step()
    count = len(seconds)
    assert count >= 2
    assert min(seconds) > 0
    step()
    assert len(seconds) == count  # outside of the block nothing is clocked
    for threads in (1, 2):
        rates = bench_limit.calibrate(threads, passes=50)
        assert set(rates) == {"mix", "fma"}
        assert all(math.isfinite(rate) and rate > 0 for rate in rates.values())
    both, forward = (bench_limit.limit_seconds({"groups": 100, "starts": 10}, phase, 1e9) for phase in reversed(PHASES))
    assert both > 2 * forward > 0


def test_memory_of_a_fresh_process_grows_with_the_picture():
    small, large = peak_megabytes([TINY, Size(300, 1024)])
    for phase in PHASES:
        assert 12 < large[phase] - small[phase] < 400  # the picture alone: 1024 x 1024 x 3 float32 are 12.6 MB


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A run of the command on a tiny scene: what it printed comes by --markdown, what it wrote as json."""
    out = tmp_path_factory.mktemp("bench") / "bench.json"
    words = f"bench --sizes 300-48 200-32 --threads 2 1 --repeats 2 --out {out} --markdown --quiet".split()
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *lines, **options: printed.extend(lines))
        before = torch.get_num_threads()
        assert cli.main(words) == 0
        assert torch.get_num_threads() == before
    return out, "\n".join(printed)


def test_report_has_all_rows_and_numbers(report):
    out, _ = report
    assert [path.name for path in out.parent.iterdir()] == ["bench.json"]  # no temporary file left
    value = json.loads(out.read_text(encoding="utf-8"))
    rows = value["rows"]
    keys = [(row["scene"], row["threads"], row["phase"]) for row in rows]
    assert keys == [(scene, threads, phase) for scene in ("300-48", "200-32") for threads in (1, 2) for phase in PHASES]
    for row in rows:
        numbers = {name: number for name, number in row.items() if name not in ("scene", "phase", "vector_rates")}
        assert all(math.isfinite(number) and number >= 0 for number in numbers.values()), numbers
        assert row["fastest_ms"] <= row["ms"]
        assert row["ns_per_pair"] == pytest.approx(1e6 * row["ms"] / row["pairs"])
        assert row["frames_per_second"] == pytest.approx(1e3 / row["ms"])
        assert row["ratio"] == pytest.approx(row["reference_ms"] / row["ms"])
        assert row["limit_ratio"] > 0


def test_tables_show_every_row_and_column(report):
    out, printed = report
    value = json.loads(out.read_text(encoding="utf-8"))
    markdown = bench.table(value, markdown=True)
    assert markdown in printed
    assert bench.footer(value) in printed
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    assert lines[0] == ["Gaussians, picture", *bench.COLUMNS.values()]
    assert [line[:2] for line in lines[2:]] == [[name, n] for name in ("300, 48 x 48", "200, 32 x 32") for n in "12"]
    assert {len(line) for line in lines} == {len(bench.COLUMNS) + 1}
    assert all(cell.count(" / ") == 1 for line in lines[2:] for cell in line[2:])
    plain = bench.table(value).splitlines()
    assert len(plain) == 5
    assert len({len(line) for line in plain}) == 1
    value["rows"][0]["ratio"] = None
    assert "– / " in bench.table(value)


def test_curves_and_their_picture():
    result = bench_scaling.scaling({"gaussians": (100, 200), "frames": (1, 2)}, threads=1, repeats=1, progress=False)
    assert result["curves"]["frames"]["x"] == [1, 2]
    for found in result["curves"].values():
        for phase in PHASES:
            assert all(value > 0 for value in found[phase]["ms"])
            assert len(found[phase]["memory_mb"]) == 2
    assert result == json.loads(json.dumps(result))
    figure = bench_scaling.plot(result)
    assert len(figure.axes) == 4
    assert all(ax.get_xscale() == ax.get_yscale() == "log" for ax in figure.axes)
    assert bench_scaling.text(result).count("\n") == 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--sizes 20k", "is not a size"),
        ("--sizes 20k-512 big-512", "'big-512' is not a size"),
        ("--sizes 20k-0", "between 1 and 8192"),
        ("--sizes 9000k-64", "between 1 and 2000000"),
        ("--sizes avatar-20k-512", "10k and 40k"),
        ("--threads 0", "--threads 0"),
        ("--repeats 0", "--repeats 0"),
        ("--out {tmp}/none/bench.json", "does not exist"),
        ("--out {tmp}", "is a folder"),
        ("--scaling --out {tmp}/curves.txt", "does not end in .json"),
        ("--scaling --sizes 20k-512", "its own sizes"),
        ("--scaling --threads -1", "--threads -1"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(monkeypatch, capsys, tmp_path, words, sentence):
    monkeypatch.setattr(bench, "run", None)
    monkeypatch.setattr(bench_scaling, "scaling", None)
    assert cli.main(["bench", *words.format(tmp=tmp_path).split()]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    assert sentence in shown
    assert not list(tmp_path.iterdir())


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="sees no CUDA device"):
        bench.check([1], 1, "cuda")

"""The rasteriser: closed forms for the PyTorch reference, then the numba kernels against the reference."""

import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aa import raster
from aa.bench_scenes import avatar
from aa.bench_scenes import scene as random_scene
from aa.errors import InputError
from aa.raster import MODES, rasterize, rasterize_torch, spherical_harmonics

NAMES = ("means", "quats", "scales", "opacities", "colors", "viewmats")
SIZE = 40, 36  # not multiples of the tile size


def scene(n=60, cameras=1, depth=3, dtype=torch.float32, seed=0):
    """Random splats in front of cameras that look along +z, as the first seven arguments of rasterize."""
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(n, 3, generator=g) * 0.6
    scales = torch.exp(0.5 * torch.randn(n, 3, generator=g) - 2)
    opacities = 0.05 + 0.95 * torch.rand(n, generator=g)
    quats, colors = torch.randn(n, 4, generator=g), torch.rand(n, depth, generator=g)
    viewmats = torch.eye(4).repeat(cameras, 1, 1)
    viewmats[:, :2, 3] = 0.2 * torch.randn(cameras, 2, generator=g)
    viewmats[:, 2, 3] = 4
    Ks = torch.tensor([[50.0, 0, 21], [0, 47, 17], [0, 0, 1]]).repeat(cameras, 1, 1)
    return [x.to(dtype) for x in (means, quats, scales, opacities, colors, viewmats, Ks)]


def camera(distance=4.0, dtype=torch.float64, width=9, height=9, focal=20.0):
    """One camera on the z axis whose principal point is the centre of the middle pixel."""
    viewmat = torch.eye(4, dtype=dtype)[None].clone()
    viewmat[:, 2, 3] = distance
    K = torch.tensor([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]], dtype=dtype)
    return viewmat, K, width, height


def run(render, inputs, size=SIZE, **options):
    """Renders, alphas, and the gradients of a random weighting of both for NAMES, backgrounds and means2d."""
    leaves = [x.clone().requires_grad_() for x in inputs[:6]]
    g = torch.Generator().manual_seed(1)
    backgrounds = torch.rand(len(inputs[5]), inputs[4].shape[-1], generator=g).to(inputs[0].dtype).requires_grad_()
    renders, alphas, meta = render(*leaves, inputs[6], *size, backgrounds=backgrounds, **options)
    meta["means2d"].retain_grad()
    weight = torch.randn(renders.shape, generator=g).to(renders.dtype)
    ((renders * weight).sum() + (alphas * weight[..., :1].flip(1)).sum()).backward()
    grads = {name: x.grad for name, x in zip(NAMES, leaves)}
    return renders, alphas, meta, grads | {"backgrounds": backgrounds.grad, "means2d": meta["means2d"].grad}


def assert_same(ours, reference, image=1e-3, grad=1e-3):
    torch.testing.assert_close(ours[0], reference[0], atol=image, rtol=0, check_dtype=False)
    torch.testing.assert_close(ours[1], reference[1], atol=image, rtol=0, check_dtype=False)
    assert torch.equal(ours[2]["radii"], reference[2]["radii"])
    for name, expected in reference[3].items():
        if expected is None:  # colours in the depth modes
            assert ours[3][name] is None or not ours[3][name].any(), name
            continue
        error = (ours[3][name] - expected).norm() / expected.norm().clamp(min=1e-12)
        assert error <= grad, f"gradient of {name}: relative error {error:.2e}"


# ------------------------------------------------------------------------------- the reference against closed forms


@pytest.mark.parametrize("render", [rasterize, rasterize_torch])
def test_one_isotropic_gaussian_has_its_closed_form(render):
    viewmat, K, width, height = camera()
    opacity, scale, color = 0.8, 0.3, torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    quat = torch.tensor([[2.0, 0, 0, 0]], dtype=torch.float64)  # not normalised on purpose
    image, alpha, meta = render(
        torch.zeros(1, 3, dtype=torch.float64), quat, torch.full((1, 3), scale, dtype=torch.float64),
        torch.tensor([opacity], dtype=torch.float64), color[None], viewmat, K, width, height,
    )  # fmt: skip
    variance = (20.0 * scale / 4.0) ** 2 + 0.3  # (focal scale / depth)^2 + eps2d; centred, so the Jacobian is diagonal
    offset = torch.arange(width, dtype=torch.float64) - width // 2
    expected = opacity * torch.exp(-(offset[None] ** 2 + offset[:, None] ** 2) / (2 * variance))
    expected = torch.where(expected < 1 / 255, 0, expected)
    torch.testing.assert_close(alpha[0, ..., 0], expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(image[0], expected[..., None] * color, atol=1e-12, rtol=0)
    assert meta["means2d"][0, 0].tolist() == [4.5, 4.5]
    assert meta["conics"][0, 0].tolist() == pytest.approx([1 / variance, 0, 1 / variance])
    extent = min(3.33, math.sqrt(2 * math.log(255 * opacity)))
    assert meta["radii"][0, 0].tolist() == [math.ceil(extent * math.sqrt(variance))] * 2


@pytest.mark.parametrize("render", [rasterize, rasterize_torch])
def test_three_gaussians_are_composited_front_to_back(render):
    viewmat, K, width, height = camera()
    means = torch.tensor([[0, 0, 1.0], [0, 0, -1.0], [0, 0, 0.0]], dtype=torch.float64)  # the second is in front
    opacities = torch.tensor([0.9, 0.5, 0.7], dtype=torch.float64)
    colors = torch.eye(3, dtype=torch.float64)
    background = torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64)
    quats = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64).expand(3, 4)
    arguments = means, quats, torch.full_like(means, 0.2), opacities, colors, viewmat, K, width, height
    image, alpha, _ = render(*arguments, backgrounds=background)
    weights = torch.tensor([0.5 * 0.3 * 0.9, 0.5, 0.5 * 0.7], dtype=torch.float64)
    torch.testing.assert_close(image[0, 4, 4], weights + (1 - weights.sum()) * background[0])
    assert alpha[0, 4, 4].item() == pytest.approx(weights.sum().item())
    depths = torch.tensor([5.0, 3.0, 4.0], dtype=torch.float64)
    total = (weights * depths).sum().item()
    for mode, expected in (("D", total), ("ED", total / weights.sum().item())):
        assert render(*arguments, render_mode=mode)[0][0, 4, 4].tolist() == pytest.approx([expected])


@pytest.mark.parametrize("render", [rasterize, rasterize_torch])
def test_a_pixel_stops_before_it_becomes_opaque_and_alpha_is_clamped(render):
    viewmat, K, width, height = camera()
    means = torch.tensor([[0, 0, 0.0], [0, 0, 0.1], [0, 0, 0.2]], dtype=torch.float64)
    opacities = torch.tensor([1.0, 0.95, 0.5], dtype=torch.float64)
    quats = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64).expand(3, 4)
    image, alpha, _ = render(
        means, quats, torch.full_like(means, 0.2), opacities, torch.eye(3, dtype=torch.float64), viewmat, K, width, height
    )
    # 0.999 leaves T = 1e-3; the second would leave 5e-5 <= 1e-4, so it and everything behind it is left out
    assert image[0, 4, 4].tolist() == pytest.approx([0.999, 0, 0])
    assert alpha[0, 4, 4].item() == pytest.approx(0.999)


# ------------------------------------------------------------------------------------ numba against the reference


@pytest.mark.parametrize("mode", MODES)
def test_numba_equals_the_reference_in_every_mode(mode):
    inputs = scene(cameras=2)
    assert_same(run(rasterize, inputs, render_mode=mode), run(rasterize_torch, inputs, render_mode=mode))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 9, 32])
def test_any_number_of_channels(depth):
    inputs = scene(n=40, depth=depth)
    assert_same(run(rasterize, inputs), run(rasterize_torch, inputs))


@pytest.mark.parametrize("size", [(1, 1), (8, 16), (64, 33), (7, 90)])
def test_any_image_size(size):
    inputs = scene()
    assert_same(run(rasterize, inputs, size=size), run(rasterize_torch, inputs, size=size))


def test_dense_and_thin_splats():
    """Many layers, so that pixels stop early, and needles that cross many tiles."""
    inputs = scene(n=1500)
    inputs[2] = inputs[2] * torch.tensor([4.0, 0.05, 0.5])
    inputs[3] = inputs[3].clamp(min=0.6)
    ours, reference = run(rasterize, inputs, size=(96, 80)), run(rasterize_torch, inputs, size=(96, 80))
    # a pixel may stop one Gaussian earlier or later by rounding: 1e-4 of light, but a jump in some gradients
    assert_same(ours, reference, grad=5e-3)


@pytest.mark.parametrize("degrees", [0, 45, 75, 83, 88, 90])
def test_a_tilted_needle_in_float32(degrees):
    """Its alpha underflows float32 a few pixels beside the line, and must come back where the line crosses the column."""
    angle = math.radians(degrees) / 2
    inputs = scene(n=1)
    inputs[0], inputs[1] = torch.zeros(1, 3), torch.tensor([[math.cos(angle), 0, 0, math.sin(angle)]])
    inputs[2], inputs[3] = torch.tensor([[2.0, 1e-4, 1e-4]]), torch.ones(1)
    ours, exact = run(rasterize, inputs, size=(64, 64)), run(rasterize_torch, [x.double() for x in inputs], size=(64, 64))
    assert exact[1].sum() > 30
    assert_same(ours, exact, image=1e-4, grad=1e-2)  # far along the line the conic cancels in float32


def test_float32_is_close_to_float64():
    double = run(rasterize, scene(dtype=torch.float64))
    assert_same(run(rasterize, scene()), [x if i > 1 else x.float() for i, x in enumerate(double)])


def gradient_inputs(cameras=1):
    """Four overlapping splats, none of whose pixels lies near the kinks of alpha (1/255, 0.999, the early stop)."""
    inputs = scene(n=4, cameras=cameras, depth=2, dtype=torch.float64, seed=3)
    inputs[0] = inputs[0] * torch.tensor([0.05, 0.05, 0.6])
    inputs[2] = 0.5 + 0.5 * inputs[2]  # wide: alpha stays above 1/255 in the whole picture
    inputs[3] = 0.2 + 0.3 * inputs[3]
    inputs[6] = torch.tensor([[9.0, 0, 3.2], [0, 8, 3.6], [0, 0, 1]], dtype=torch.float64).repeat(cameras, 1, 1)
    return inputs


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    inputs, at = gradient_inputs(cameras=2), NAMES.index(name)
    backgrounds = torch.rand(2, 2, dtype=torch.float64)

    def image(x):
        arguments = [x if i == at else y for i, y in enumerate(inputs)]
        renders, alphas, meta = rasterize(*arguments, 7, 6, render_mode="RGB+ED", backgrounds=backgrounds)
        return renders, alphas, meta["means2d"], meta["conics"], meta["depths"]

    assert torch.autograd.gradcheck(image, (inputs[at].requires_grad_(),), eps=1e-6, atol=1e-6, rtol=1e-4)


def test_gradient_where_the_jacobian_is_clamped():
    inputs = scene(n=20)
    inputs[0][:, 0] += 2.4  # centres beyond the right border by more than 15% of the width
    inputs[2] *= 6
    ours, reference = run(rasterize, inputs), run(rasterize_torch, inputs)
    assert (ours[2]["means2d"][..., 0] > 1.15 * SIZE[0]).any()
    assert_same(ours, reference)


# -------------------------------------------------------------------------------------------------------- properties


def test_input_order_does_not_matter():
    inputs = scene(n=200)
    mixed = torch.randperm(200, generator=torch.Generator().manual_seed(5))
    first = run(rasterize, inputs)
    second = run(rasterize, [x[mixed] for x in inputs[:5]] + inputs[5:])
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[3]["means"][mixed], second[3]["means"])


def test_culled_gaussians_change_nothing_and_get_no_gradient():
    inputs = scene(n=50)
    inputs[0][0] = torch.tensor([0, 0, -5.0])  # behind the camera
    inputs[0][1] = torch.tensor([9.0, 0, 0])  # off the screen
    inputs[0][2] = torch.tensor([0, 0, 20.0])  # beyond the far plane
    inputs[3][3] = 0.001  # too transparent to show
    renders, _, meta, grads = run(rasterize, inputs, far_plane=10.0)
    assert not meta["radii"][0, :4].any()
    for name in NAMES[:5]:
        assert not grads[name][:4].any(), name
    kept = run(rasterize, [x[4:] for x in inputs[:5]] + inputs[5:], far_plane=10.0)
    assert torch.equal(renders, kept[0])


@pytest.mark.parametrize("name", [*NAMES, "Ks"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_numbers_are_refused_by_name(name, value):
    inputs = dict(zip((*NAMES, "Ks"), scene()))
    inputs[name].flatten()[1] = value
    with pytest.raises(InputError, match=f"{name} holds 1 values that are NaN or infinite"):
        rasterize(**inputs, width=8, height=8)


@pytest.mark.parametrize("render", [rasterize, rasterize_torch])
def test_no_gaussians_give_the_background(render):
    inputs = [x[:0] for x in scene()[:5]] + scene()[5:]
    inputs[0].requires_grad_()
    background = torch.tensor([[0.1, 0.2, 0.3]])
    renders, alphas, meta = render(*inputs, *SIZE, backgrounds=background)
    assert torch.equal(renders, background.expand(1, SIZE[1], SIZE[0], 3))
    assert not alphas.any()
    assert meta["means2d"].shape == (1, 0, 2)
    renders.sum().backward()


@pytest.mark.parametrize("render", [rasterize, rasterize_torch])
def test_cameras_in_a_batch_equal_separate_calls(render):
    inputs = scene(cameras=3)
    inputs[4] = torch.stack([inputs[4], 1 - inputs[4], inputs[4] ** 2])  # colours per camera
    background = torch.rand(3, 3)
    together, alphas, meta = render(*inputs, *SIZE, backgrounds=background, render_mode="RGB+D")
    for c in range(3):
        one = slice(c, c + 1)
        alone = render(
            *inputs[:4], inputs[4][c], inputs[5][one], inputs[6][one], *SIZE,
            backgrounds=background[one], render_mode="RGB+D",
        )  # fmt: skip
        torch.testing.assert_close(together[one], alone[0], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(alphas[one], alone[1], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(meta["means2d"][one], alone[2]["means2d"])


def test_frames_in_a_batch_equal_separate_calls():
    """Means and quaternions per frame, the rest shared: gradients of the shared ones are summed over the frames."""
    inputs = scene(cameras=3)
    g = torch.Generator().manual_seed(2)
    inputs[0] = inputs[0] + 0.1 * torch.randn(3, 60, 3, generator=g)
    inputs[1] = inputs[1] + 0.1 * torch.randn(3, 60, 4, generator=g)
    leaves = [x.clone().requires_grad_() for x in inputs[:6]]
    weight = torch.randn(3, SIZE[1], SIZE[0], 3, generator=g)
    together, _, _ = rasterize(*leaves, inputs[6], *SIZE)
    expected = torch.autograd.grad((together * weight).sum(), leaves)
    images = [
        rasterize(leaves[0][c], leaves[1][c], *leaves[2:5], leaves[5][c : c + 1], inputs[6][c : c + 1], *SIZE)[0] for c in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(images), atol=1e-6, rtol=1e-6)
    for a, b in zip(torch.autograd.grad((torch.cat(images) * weight).sum(), leaves), expected):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_results_repeat_bit_for_bit_for_any_number_of_threads():
    inputs, threads = scene(n=400, cameras=2), torch.get_num_threads()
    try:
        results = []
        for count in (1, 1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(rasterize, inputs, size=(64, 96)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0])
        for name, grad in results[0][3].items():
            if name != "backgrounds":  # summed by torch, whose order depends on its threads
                assert torch.equal(grad, other[3][name]), name


def test_many_threads_may_render_at_once():
    inputs = scene(n=200)
    expected, images = rasterize(*inputs, *SIZE)[0], [None] * 6

    def work(k):
        images[k] = run(rasterize, inputs)[0] if k % 2 else rasterize(*inputs, *SIZE)[0]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(image, expected) for image in images[::2])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_can_render():
    """Data loaders fork after the parent has rendered with threads; in a process of its own, as pytest has threads."""
    code = """
import os, torch
from aa.raster import rasterize
torch.set_num_threads(2)
def picture():
    means, ones = torch.randn(300, 3, generator=torch.Generator().manual_seed(0)), torch.ones(300, 4)
    viewmat, K = torch.eye(4)[None].clone(), torch.tensor([[[40.0, 0, 20], [0, 40, 20], [0, 0, 1]]])
    viewmat[:, 2, 3] = 6
    return rasterize(means, ones, 0.1 * ones[:, :3], ones[:, 0], ones[:, :3], viewmat, K, 40, 90)[0]
expected = picture()
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(picture(), expected) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, timeout=120, check=False)
    assert result.returncode == 0


def test_inputs_need_not_be_contiguous():
    inputs = scene()
    expected = run(rasterize, inputs)
    strided = [x.mT.contiguous().mT if x.ndim > 1 else torch.stack([x, x], 1)[:, 0] for x in inputs]
    assert torch.equal(expected[0], run(rasterize, strided)[0])
    renders, _, _ = rasterize(strided[0].requires_grad_(), *strided[1:], *SIZE)
    renders.sum().backward()  # hands an expanded, zero-stride gradient to the backward pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quats": torch.zeros(60, 3)}, "quats has shape"),
        ({"opacities": torch.zeros(60, 1)}, "opacities has shape"),
        ({"colors": torch.zeros(2, 60, 3)}, "colors has shape"),
        ({"viewmats": torch.eye(4)}, "viewmats"),
        ({"Ks": torch.zeros(1, 4, 4)}, "Ks has shape"),
        ({"means": torch.zeros(60, 3, dtype=torch.int64)}, "means is torch.int64"),
        ({"scales": torch.zeros(60, 3, dtype=torch.float64)}, "scales is torch.float64"),
        ({"backgrounds": torch.zeros(3)}, "backgrounds has shape"),
        ({"render_mode": "rgb"}, "render_mode"),
        ({"sh_degree": 4}, "sh_degree is 4"),
        ({"sh_degree": 2, "colors": torch.zeros(60, 4, 3)}, r"colors has shape \(60, 4, 3\); expected \(60, 9, 3\)"),
        ({"means": [[0.0, 0.0, 1.0]]}, "means is list"),
        ({"viewmats": torch.eye(4)[None].numpy()}, "viewmats is ndarray"),
        ({"colors": torch.zeros(60, 0)}, "colors has shape"),
        ({"width": 0}, "image size"),
    ],
)
def test_bad_input_is_named_in_one_sentence(change, message):
    arguments = dict(zip((*NAMES, "Ks"), scene())) | {"width": 8, "height": 8} | change
    with pytest.raises(InputError, match=message) as error:
        rasterize(**arguments)
    assert isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------- spherical harmonics, batch axes


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_spherical_harmonics_equal_those_of_gsplat(degree):
    """Against gsplat's own PyTorch version, which runs on the CPU."""
    from gsplat.cuda._torch_impl import _spherical_harmonics

    g = torch.Generator().manual_seed(degree)
    directions, coefficients = torch.randn(50, 3, generator=g).double(), torch.randn(50, 16, 3, generator=g).double()
    torch.testing.assert_close(
        spherical_harmonics(degree, directions, coefficients), _spherical_harmonics(degree, directions, coefficients)
    )


@pytest.mark.parametrize("render", [rasterize, rasterize_torch])
def test_colours_from_spherical_harmonics(render):
    """The picture is that of the colours max(0, 0.5 + SH(direction)), for each of two cameras, and has gradients."""
    inputs, g = scene(cameras=2, dtype=torch.float64), torch.Generator().manual_seed(1)
    inputs[5][1] = torch.tensor([[0.0, 0, -1, 0], [0, 1, 0, 0], [1, 0, 0, 4], [0, 0, 0, 1]])  # from the side
    inputs[4] = torch.randn(60, 12, 3, generator=g).double()  # more coefficients than degree 2 needs
    leaves = [x.clone().requires_grad_() for x in inputs[:6]]
    image, _, _ = render(*leaves, inputs[6], *SIZE, sh_degree=2)
    eyes = torch.linalg.inv(leaves[5])[:, :3, 3]
    colors = (spherical_harmonics(2, leaves[0] - eyes[:, None], leaves[4]) + 0.5).clamp(min=0)
    expected, _, _ = render(*leaves[:4], colors, leaves[5], inputs[6], *SIZE)
    torch.testing.assert_close(image, expected)
    for one, two in zip(torch.autograd.grad(image.sum(), leaves), torch.autograd.grad(expected.sum(), leaves)):
        torch.testing.assert_close(one, two)
    depth, _, _ = render(*inputs, *SIZE, sh_degree=2, render_mode="D")
    assert depth.shape == (2, SIZE[1], SIZE[0], 1)


@pytest.mark.parametrize("render", [rasterize, rasterize_torch])
@pytest.mark.parametrize("own_colors", [False, True])
def test_leading_batch_axes(render, own_colors):
    """As in gsplat: (B, N, ...) Gaussians seen by (B, C) cameras equal B separate calls, gradients of means2d included."""
    one = scene(n=30, cameras=2)
    batch = [torch.stack([x, y]) for x, y in zip(one, scene(n=30, cameras=2, seed=5))]
    if own_colors:
        batch[4] = torch.stack([batch[4], 1 - batch[4]], 1)  # (B, C, N, D)
    backgrounds = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(3))
    batch[0].requires_grad_()
    renders, alphas, meta = render(*batch, *SIZE, backgrounds=backgrounds, render_mode="RGB+ED")
    assert renders.shape == (2, 2, SIZE[1], SIZE[0], 4)
    assert meta["conics"].shape == (2, 2, 30, 3)
    (renders**2).sum().backward()
    for b in range(2):
        means = batch[0][b].detach().requires_grad_()
        alone = render(means, *[x[b] for x in batch[1:]], *SIZE, backgrounds=backgrounds[b], render_mode="RGB+ED")
        torch.testing.assert_close(renders[b], alone[0])
        torch.testing.assert_close(alphas[b], alone[1])
        (alone[0] ** 2).sum().backward()
        torch.testing.assert_close(batch[0].grad[b], means.grad)
        torch.testing.assert_close(meta["means2d"].grad[b], alone[2]["means2d"].grad)


# ------------------------------------------------------------------------------------------------ hypothesis: anything


def splats(value):
    return st.lists(value, min_size=0, max_size=6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    where=splats(st.tuples(*[st.floats(-3, 3, width=32)] * 3)),
    sizes=st.lists(st.sampled_from([1e-30, 1e-9, 1e-3, 0.05, 1.0, 30.0, 1e6]), min_size=18, max_size=18),
    opacities=st.lists(st.sampled_from([0.0, 1e-6, 1 / 255, 0.3, 1.0]), min_size=6, max_size=6),
    quat=st.sampled_from([(1.0, 0, 0, 0), (0.0, 0, 0, 0), (1e-20, 1e-20, 0, 0), (3.0, -4, 5, 1e3)]),
    size=st.sampled_from([(1, 1), (9, 7), (33, 50)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_scene_gives_a_finite_picture_and_finite_gradients(where, sizes, opacities, quat, size, dtype):
    """Gaussians behind, around and on the camera, flat, huge, invisible, unrotatable, or none at all; the camera is at 0."""
    n = len(where)
    means = torch.tensor(where, dtype=dtype).reshape(n, 3)
    scales, quats = torch.tensor(sizes, dtype=dtype).reshape(6, 3)[:n], torch.tensor(quat, dtype=dtype).expand(n, 4)
    colors = torch.linspace(0, 1, 2 * n, dtype=dtype).reshape(n, 2)
    K = torch.tensor([[[30.0, 0, size[0] / 2], [0, 30, size[1] / 2], [0, 0, 1]]], dtype=dtype)
    inputs = means, quats, scales, torch.tensor(opacities, dtype=dtype)[:n], colors, torch.eye(4, dtype=dtype)[None]
    leaves = [x.clone().requires_grad_() for x in inputs]
    renders, alphas, meta = rasterize(*leaves, K, *size, render_mode="RGB+ED")
    assert renders.isfinite().all()
    for share in (alphas, renders[..., :2]):
        assert share.min() >= 0
        assert share.max() <= 1 + 1e-5
    assert all(meta[name].isfinite().all() for name in ("means2d", "depths", "conics"))
    (renders.sum() + alphas.sum()).backward()
    for name, leaf in zip(NAMES, leaves):
        assert leaf.grad is None or leaf.grad.isfinite().all(), name


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6), n=st.integers(0, 80), spread=st.floats(0.02, 3), width=st.floats(-5, 0.5), depth=st.integers(1, 5)
)
def test_any_random_scene_equals_the_reference(seed, n, spread, width, depth):
    """Needles, specks and blobs in float64, where no pixel comes to lie on the other side of a threshold."""
    inputs, g = scene(n=n, depth=depth, dtype=torch.float64, seed=seed), torch.Generator().manual_seed(seed)
    inputs[0] *= spread
    inputs[2] = (width + 1.5 * torch.randn(n, 3, generator=g)).exp().double()
    ours, reference = run(rasterize, inputs), run(rasterize_torch, inputs)
    assert_same(ours, reference, image=1e-9, grad=1e-7)


# ------------------------------------------------------------------------------------------------- float32, to the bound


def errors(ours, exact):
    """Largest error of the image, and per input the relative L2 error of its gradient."""
    grads = {name: ((x - exact[3][name]).norm() / exact[3][name].norm()).item() for name, x in ours[3].items()}
    return (ours[0] - exact[0]).abs().max().item(), grads


def test_float32_on_a_random_scene():
    inputs = random_scene(3000, 128)
    image, grads = errors(run(rasterize, inputs, (128, 128)), run(rasterize_torch, [x.double() for x in inputs], (128, 128)))
    assert image <= 1e-3
    assert max(grads.values()) <= 2e-4, grads


def test_float32_on_the_avatar():
    """Ten thousand Gaussians in a small picture: pixels that stop at another Gaussian by rounding make gradients jump.

    PyTorch in float32 has the same jumps, so the kernels may be as far from float64 as it is.
    """
    inputs, size = avatar(10_000, 128), (128, 128)
    exact = run(rasterize_torch, [x.double() for x in inputs], size)
    image, grads = errors(run(rasterize, inputs, size), exact)
    image_torch, grads_torch = errors(run(rasterize_torch, inputs, size), exact)
    assert image <= max(1e-3, 1.5 * image_torch)
    for name, error in grads.items():
        assert error <= max(2e-4, 1.5 * grads_torch[name]), (name, error, grads_torch[name])


# --------------------------------------------------------------------------------------------------------------- GPU


@pytest.mark.parametrize("own", [(), ("means",), ("quats", "opacities"), ("means", "quats", "scales", "opacities", "colors")])
@pytest.mark.parametrize("sh_degree", [None, 1])
def test_the_call_of_gsplat(own, sh_degree, monkeypatch):
    """On any machine: gsplat's place is taken by the reference, which is strict about gsplat's shapes as it knows batch axes."""
    inputs = dict(zip((*NAMES, "Ks"), scene(cameras=2)))
    if sh_degree:
        inputs["colors"] = torch.randn(60, 4, 3, generator=torch.Generator().manual_seed(0))
    for name in own:
        inputs[name] = torch.stack([inputs[name], 0.9 * inputs[name]])
    backgrounds = torch.rand(2, 3)

    def stand_in(means, quats, scales, opacities, colors, viewmats, Ks, width, height, packed, **options):
        assert not packed
        batch = means.shape[:-2]
        assert viewmats.shape[:-3] == batch
        for x, last in ((quats, 2), (scales, 2), (opacities, 1)):
            assert x.shape[:-last] == batch
        return rasterize_torch(means, quats, scales, opacities, colors, viewmats, Ks, width, height, **options)

    monkeypatch.setattr(raster, "_gsplat", lambda: stand_in)
    options = {"width": SIZE[0], "height": SIZE[1], "backgrounds": backgrounds, "render_mode": "RGB+ED", "sh_degree": sh_degree}
    expected = rasterize_torch(**inputs, **options)
    monkeypatch.setattr(raster, "_render_best", raster._render_gsplat)
    ours = rasterize(**inputs, **options)
    torch.testing.assert_close(ours[:2], expected[:2])
    for name in ("means2d", "depths", "conics", "radii"):
        torch.testing.assert_close(ours[2][name], expected[2][name])


def on_gsplat(*arguments, backgrounds, **options):
    """gsplat called directly on the GPU, results on the CPU."""
    gsplat = pytest.importorskip("gsplat")
    width, height = arguments[7:]
    arguments = [x.cuda() for x in arguments[:7]]
    renders, alphas, meta = gsplat.rasterization(*arguments, width, height, backgrounds=backgrounds.cuda(), packed=False, **options)
    meta["radii"] = meta["radii"].cpu()
    return renders.cpu(), alphas.cpu(), meta


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mode", MODES)
def test_numba_and_reference_equal_gsplat(mode):
    inputs = scene(n=300, cameras=2)
    expected = run(on_gsplat, inputs, render_mode=mode)
    expected[3]["means2d"] = expected[3]["means2d"].cpu()
    assert_same(run(rasterize, inputs, render_mode=mode), expected, grad=2e-3)
    assert_same(run(rasterize_torch, inputs, render_mode=mode), expected, grad=2e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("inputs", [random_scene(20_000, 512), avatar(10_000, 512)], ids=["random", "avatar"])
def test_numba_equals_gsplat_on_whole_pictures(inputs, record_property):
    """By rounding a pixel may stop at another Gaussian or skip one at alpha 1/255: at most one value in ten thousand."""
    ours, expected = run(rasterize, inputs, (512, 512)), run(on_gsplat, inputs, (512, 512))
    off = (ours[0] - expected[0]).abs()
    record_property("largest error of the image", off.max().item())
    assert (off > 1e-3).float().mean() <= 1e-4
    assert off.max() <= 0.01
    for name, grad in expected[3].items():
        error = ((ours[3][name] - grad.cpu()).norm() / grad.norm().cpu()).item()
        record_property(f"relative error of the gradient of {name}", error)
        assert error <= 5e-3, name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("render", [rasterize, rasterize_torch])
def test_cuda_tensors_give_the_same_picture(render):
    """Whatever back-end CUDA tensors take; frames with their own means too."""
    inputs = scene(n=300, cameras=2)
    inputs[0] = torch.stack([inputs[0], inputs[0] + 0.05])
    expected, _, _ = rasterize(*inputs, *SIZE, render_mode="RGB+ED")
    image, _, _ = render(*[x.cuda() for x in inputs], *SIZE, render_mode="RGB+ED")
    torch.testing.assert_close(image.cpu(), expected, atol=2e-3, rtol=1e-3)

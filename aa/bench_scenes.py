"""What the renderer is timed on: random balls of splats, the shipped avatar layout, and one step of work on either."""

import re
from dataclasses import dataclass, replace

import torch

from aa.errors import InputError
from aa.raster import rasterize

LIMITS = {"Gaussians": (1, 2_000_000), "pixels": (1, 8192)}  # beyond these a typing error is likelier than a wish
PHASES = ("forward", "forward+backward")


@dataclass(frozen=True)
class Size:
    """One scene: N Gaussians in pictures of pixels x pixels; `frames` of them in one call, each with its own positions."""

    gaussians: int
    pixels: int
    frames: int = 1
    avatar: bool = False

    @property
    def name(self) -> str:
        n = f"{self.gaussians // 1000}k" if self.gaussians % 1000 == 0 else str(self.gaussians)
        return f"{'avatar-' if self.avatar else ''}{n}-{self.pixels}"


SIZES = (
    Size(10_000, 256), Size(20_000, 512), Size(50_000, 512), Size(100_000, 1024),
    Size(10_000, 512, avatar=True), Size(40_000, 512, avatar=True),
)  # fmt: skip


def parse_size(text: str) -> Size:
    """ "20k-512" (Gaussians, pixels of a side) or "avatar-40k-512" as a Size; InputError for anything else."""
    match = re.fullmatch(r"(avatar-)?(\d+)(k?)-(\d+)", text)
    if match is None:
        names = ", ".join(size.name for size in SIZES)
        raise InputError(f"{text!r} is not a size: write Gaussians and pixels as in 20k-512 (the usual ones are {names}).")
    size = Size(int(match[2]) * (1000 if match[3] else 1), int(match[4]), avatar=bool(match[1]))
    for (what, (low, high)), value in zip(LIMITS.items(), (size.gaussians, size.pixels)):
        if not low <= value <= high:
            raise InputError(f"size {text} has {value} {what}: choose between {low} and {high}.")
    if size.avatar and size.gaussians not in (10_000, 40_000):
        raise InputError(f"size {text}: the avatar is shipped with 10k and 40k Gaussians only.")
    return size


def scene(n: int, size: int, seed: int = 0):
    """A ball of small, elongated splats that covers about three quarters of the picture.

    Returns the first seven arguments of `rasterize`: means, quats, scales, opacities, colors, viewmats, Ks.
    """
    g = torch.Generator().manual_seed(seed)
    means, quats = 0.5 * torch.randn(n, 3, generator=g), torch.randn(n, 4, generator=g)
    scales = 1.5 * torch.exp(0.5 * torch.randn(n, 3, generator=g) - 4.5)
    opacities, colors = 0.1 + 0.9 * torch.rand(n, generator=g), torch.rand(n, 3, generator=g)
    viewmats = torch.eye(4)[None].clone()
    viewmats[:, 2, 3] = 4
    K = torch.tensor([[[1.5 * size, 0, size / 2], [0, 1.5 * size, size / 2], [0, 0, 1]]])
    return means, quats, scales, opacities, colors, viewmats, K


def avatar(n: int, size: int):
    """The shipped body at ease, seen from the front, as n discs shaded by their normals; the same seven tensors."""
    from aa.body import load_body
    from aa.gaussians import intrinsics, load_layout, look_at
    from aa.performer import at_ease

    body = load_body()
    layout, (vertices, _) = load_layout(body, n), body.pose(rotvecs=at_ease(body))
    shade = 0.5 + 0.4 * (layout.frames(vertices)[..., 2] @ torch.tensor([0.3, -0.8, 0.5]))
    splats = layout.gaussians(vertices, shade[:, None].expand(-1, 3).contiguous())
    view, K = look_at((0.0, -3.2, 0.5), (0.0, 0.0, 0.5)), intrinsics(2.6 * size, size, size)
    return splats.means, splats.quats, splats.scales, splats.opacities, splats.colors, view[None], K[None]


def build(size: Size, device="cpu"):
    """The seven tensors of a Size on a device; of several frames, each has positions of its own, 5 mm from the others'."""
    inputs = list((avatar if size.avatar else scene)(size.gaussians, size.pixels))
    if size.frames > 1:
        moved = torch.randn(size.frames, size.gaussians, 3, generator=torch.Generator().manual_seed(1))
        inputs[0] = inputs[0] + 0.005 * moved
        inputs[5], inputs[6] = (x.expand(size.frames, -1, -1).contiguous() for x in inputs[5:])
    return [x.detach().to(device) for x in inputs]


def make_steps(inputs, pixels: int, render=rasterize) -> dict:
    """One call per phase: render the picture; render it and take the gradient of all tensors but the intrinsics."""
    leaves = [x.clone().requires_grad_() for x in inputs[:6]]
    weight = torch.rand(len(inputs[5]), pixels, pixels, 3, generator=torch.Generator().manual_seed(2)).to(inputs[0].device)

    def forward():
        with torch.no_grad():
            return render(*inputs, pixels, pixels)[0]

    def both():
        return torch.autograd.grad(render(*leaves, inputs[6], pixels, pixels)[0], leaves, weight)

    return dict(zip(PHASES, (forward, both)))


def tiny(size: Size) -> Size:
    """A scene of the same kind that takes no time: it warms up kernels, thread pools and allocators."""
    return replace(size, gaussians=100, pixels=32, avatar=False)

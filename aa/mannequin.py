"""The template person as a plain figure, to look at motion before there is any avatar: skin, lips, eyes, teeth in even colours."""

from dataclasses import replace

import numpy as np
import torch

from aa.body import REGIONS, Body
from aa.gaussians import Gaussians, Layout, intrinsics, load_layout, look_at
from aa.transfer import Deformation

SKIN, CLOTH = (0.80, 0.66, 0.57), (0.42, 0.50, 0.58)
COLOURS = {
    "lips": (0.70, 0.44, 0.41), "mouth": (0.30, 0.10, 0.11), "tongue": (0.62, 0.30, 0.31), "teeth": (0.93, 0.92, 0.88),
    "eye": (0.88, 0.88, 0.86), "iris": (0.22, 0.24, 0.26), "torso": CLOTH, "upperarm": CLOTH, "leg": (0.28, 0.32, 0.40),
    "scalp": (0.36, 0.27, 0.22),
}  # fmt: skip
# Eye and target relative to the mouth (m), focal length over the picture's height, width over height.
VIEWS = {
    "mouth": ((0.12, -0.70, 0.02), (0.0, 0.0, 0.0), 7.6, 1.4),
    "face": ((0.10, -0.90, 0.03), (0.0, 0.0, 0.035), 3.0, 0.85),
    "body": ((0.35, -3.0, -0.10), (0.0, 0.0, -0.33), 2.45, 0.8),
}
IRIS = -0.88  # where an eye looks ahead
REACH = {"mouth": 0.09, "face": 0.30, "body": 9.0}  # m around the mouth: farther particles are left out of the view


class Mannequin:
    """Pictures of motion dG on the template at rest (V, 3): `draw` one frame, `film` some of them."""

    def __init__(self, body: Body, rest: torch.Tensor, particles: int = 40_000):
        self.layout: Layout = load_layout(body, particles)
        self.mouth = rest[body.region_vertices("lips")].mean(0)
        colours = torch.tensor([COLOURS.get(name, SKIN) for name in REGIONS])[self.layout.region]
        normal = self.layout.frames(rest)[..., 2]
        eye = self.layout.region == REGIONS.index("eye")
        colours[eye & (normal[:, 1] < IRIS)] = torch.tensor(COLOURS["iris"])
        light = torch.nn.functional.normalize(torch.tensor([0.4, -0.8, 0.55]), dim=0)
        shade = 0.55 + 0.45 * (normal @ light).clamp_min(0)  # goes with the skin: enough to see shape
        self.figure = self.layout.gaussians(rest, (colours * shade[:, None]).clamp(0, 1))
        self.near = (self.figure.means - self.mouth).norm(dim=1)

    def draw(self, motion: Deformation, frame: int, view: str = "face", height: int = 160) -> np.ndarray:
        """Frame of dG (T, V, 3) in one of VIEWS -> picture (height, width, 3) uint8, sides of even length."""
        eye, target, focal, wide = VIEWS[view]
        width, pick = 2 * round(height * wide / 2), (self.near < REACH[view]).nonzero()[:, 0]
        part = Gaussians(*(x[pick] for x in vars(self.figure).values()))
        layout = replace(self.layout, corners=self.layout.corners[pick], bary=self.layout.bary[pick])
        means, quats = motion[frame : frame + 1].read(layout).apply(part)
        posed = replace(part, means=means[0], quats=quats[0])
        camera = look_at(self.mouth + torch.tensor(eye), self.mouth + torch.tensor(target))
        K = intrinsics(focal * height, width, height)
        image, _, _ = posed.render(camera[None], K[None], width, height, torch.ones(1, 3))
        return (255 * image[0].detach().clamp(0, 1)).round().to(torch.uint8).cpu().numpy()

    def film(self, motion: Deformation, frames=None, view: str = "face", height: int = 160) -> np.ndarray:
        """Pictures (n, height, width, 3) uint8 of some frames, of all by default."""
        return np.stack([self.draw(motion, int(t), view, height) for t in (range(len(motion)) if frames is None else frames)])

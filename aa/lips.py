"""Lips that meet: the neutral mouth of a fitted person is closed to the same seam as the template's, neither open nor crossed."""

import torch

from aa.body import Body

UPPER, LOWER = 0.35, 0.65  # share of the jaw's movement below which a vertex belongs to the upper lip, above which to the lower
SEAM_MM = 3.0  # lips of the template are this near where they meet
ACROSS_MM, AROUND_MM = 6.0, 14.0  # smoothing along the mouth; fall-off of the correction away from the seam


def jaw_share(body: Body) -> torch.Tensor:
    """How far each vertex (V,) goes with the jaw, from 0 (upper lip, skull) to 1 (lower lip, chin)."""
    moved = body.action_dirs[body.action("jawOpen")].norm(dim=1)
    return (moved / moved[body.region_vertices("lips")].max()).clamp(0, 1)


def open_actions(body: Body) -> torch.Tensor:
    """Action coefficients (A,) of a mouth as wide open as in speech."""
    return torch.tensor([0.5 if name == "jawOpen" else 0.0 for name in body.action_names])


def lip_seam(body: Body) -> tuple[torch.Tensor, torch.Tensor]:
    """Vertices (P,) of the upper and (P,) of the lower lip that touch each other on the template, from corner to corner."""
    share, lips = jaw_share(body), body.region_vertices("lips", "mouth")
    upper, lower = lips[share[lips] < UPPER], lips[share[lips] > LOWER]
    distance = torch.cdist(body.v_template[upper], body.v_template[lower])
    near, partner = distance.min(1)
    mutual = distance.argmin(0)[partner] == torch.arange(len(upper), device=upper.device)
    keep = mutual & (near < SEAM_MM / 1000)
    return upper[keep], lower[partner[keep]]


def close_lips(body: Body, vertices: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Posed neutral vertices (V, 3) with the gap along the lips set to the template's.

    A photo of a smile, of pressed or parted lips leaves the neutral mouth a millimetre or two open or crossed, and motion adds to
    that: a mouth that never shuts, or hardly opens. Each lip takes half of the correction, along the head's own vertical.

    Args: vertices (V, 3) m; rotations (V, 3, 3) of the posture. Returns (V, 3).
    """
    upper, lower = lip_seam(body)
    up = torch.nn.functional.normalize(rotations[upper, :, 2].mean(0), dim=0)
    gap = (vertices[upper] - vertices[lower]) @ up
    wrong = gap - (body.v_template[upper] - body.v_template[lower])[:, 2]
    rest = body.v_template
    seam = 0.5 * (rest[upper] + rest[lower])
    along = torch.softmax(-(((rest[:, None, 0] - seam[None, :, 0]) / (ACROSS_MM / 1000)) ** 2) / 2, 1)
    away = torch.cdist(rest, seam).amin(1) / (AROUND_MM / 1000)
    amount = (along @ wrong) * torch.exp(-(away**2) / 2)
    return vertices + (amount * (jaw_share(body) - 0.5))[:, None] * up

"""The motion model's gestures on a person in the posture of their photo: how much of them."""

import torch

from aa.body import Body, matrix_to_rotvec
from aa.gestures import at_ease
from aa.lips import jaw_share
from aa.transfer import Transfer

# Share of the arms' rotations that is kept, from arms at ease down to arms raised in the photo: gestures start from arms at ease,
# so raised ones have less room, and their unseen side should not turn to the camera.
MOST_GAIN, LEAST_GAIN, RAISED = 0.8, 0.3, 1.4  # RAISED: radians from ease at which the least is reached
# The lips of the motion model's performer part by 3 % of the height of the face in the median, those of two real speakers by 5.6 %
# (aa.motion_metrics.real_mouth); and drawn lips, which have a thickness, hide about 3 mm of a gap.
MOUTH = 2.0


def retarget(body: Body, avatar) -> Transfer:
    """The transfer of motion from the template body at ease to an avatar in the posture of its photo."""
    with torch.no_grad():
        source, _ = body.pose(rotvecs=torch.as_tensor(at_ease(body), dtype=torch.float32, device=body.device))
    return Transfer(body, source, avatar.vertices, avatar.turn, gesture_gain(body, avatar), open=mouth_gain(body))


def mouth_gain(body: Body) -> torch.Tensor:
    """Factor (V,) of what moves with the jaw: a closed mouth stays closed, an open one opens as far as a person's."""
    return 1 + (MOUTH - 1) * jaw_share(body)


def gesture_gain(body: Body, avatar) -> torch.Tensor:
    """Share (V,) of arm rotations to keep: gestures start from arms at ease, so arms already raised in the photo get less."""
    gain = torch.ones(len(avatar.vertices), device=avatar.vertices.device)
    angle = matrix_to_rotvec(avatar.turn).norm(dim=1)
    for side in (-1, 1):
        mine = body.v_template[:, 0] * side > 0
        forearm = torch.zeros_like(mine)
        forearm[body.region_vertices("forearm")] = True
        raised = float(angle[forearm & mine].median())
        arm = torch.stack([body.weights[:, j] for j, n in enumerate(body.joint_names) if _on_arm(n, side)]).sum(0)
        keep = MOST_GAIN + (LEAST_GAIN - MOST_GAIN) * min(1.0, raised / RAISED)
        gain = gain - arm * (1 - keep)
    return gain


def _on_arm(joint: str, side: int) -> bool:
    """Whether a joint belongs to the left (+1) or right (-1) arm or hand."""
    arm = ("clavicle", "shoulder", "upperarm", "lowerarm", "wrist", "finger", "metacarpal")
    return joint.startswith(arm) and joint.endswith(".L" if side > 0 else ".R")

"""Makes assets/landmarks.json: where MediaPipe's 478 face landmarks lie on the body. Needs warp-lang; two minutes.

Random people are painted (skin, lips, brows, irises, hair), MediaPipe finds their landmarks, each landmark is cast back to the
surface, and over all pictures the hit nearest to the others is kept. `--check` measures the error on people not used for it.
"""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
import warp as wp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from aa.body import REGIONS, load_body, load_people
from aa.detect import LEFT_IRIS, RIGHT_IRIS, Models, detect, find_faces, quiet
from aa.landmarks import BOUNDARY, load_landmarks, posed_joints

OUT = Path(__file__).resolve().parent / "landmarks.json"
SIZE, DISTANCE, SPAN = 768, 1.4, 0.36  # px, m from the head, m across the picture at the head
PEOPLE, VIEWS = 10, (0.0, 0.0, -20.0, 20.0)  # identities, degrees of head turn
WORST = 7.0  # mm; a landmark that scatters more is called unreliable
FACING = 0.3  # least cosine between the surface and the camera: nearer to the outline a landmark slides
SKIN = ("face", "lips", "eyelid", "scalp", "ear", "neck")  # what a landmark other than an iris may lie on
UPPER_LIP = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
UPPER_LIP += (76, 184, 74, 73, 72, 11, 302, 303, 304, 408, 306, 62, 183, 42, 41, 38, 12, 268, 271, 272, 407, 292)
LOWER_LIP = (146, 91, 181, 84, 17, 314, 405, 321, 375, 95, 88, 178, 87, 14, 317, 402, 318, 324)
LOWER_LIP += (77, 90, 180, 85, 16, 315, 404, 320, 307, 96, 89, 179, 86, 15, 316, 403, 319, 325)


@wp.kernel
def cast(mesh: wp.uint64, origin: wp.vec3, rays: wp.array(dtype=wp.vec3), face: wp.array(dtype=int), uv: wp.array(dtype=wp.vec3)):
    i = wp.tid()
    hit = wp.mesh_query_ray(mesh, origin, rays[i], 100.0)
    face[i] = -1
    if hit.result:
        face[i] = hit.face
        uv[i] = wp.vec3(hit.u, hit.v, 1.0 - hit.u - hit.v)  # weights of the three corners


class Scene:
    """One posed body before a camera that looks along +y."""

    def __init__(self, body, betas, actions, rotvecs, centre=None, distance=DISTANCE, span=SPAN):
        vertices = body.pose(betas, rotvecs, actions)[0]
        centre = vertices[body.region_vertices("face")].mean(0).numpy() if centre is None else np.float32(centre)
        self.body, self.v = body, vertices.numpy()
        self.joints = posed_joints(body, betas, rotvecs)
        self.origin = centre + np.float32([0, -distance, 0])
        self.focal = SIZE * distance / span

    def project(self, points):
        """Points (..., 3) to px (..., 2)."""
        d = points - self.origin
        return np.stack([d[..., 0], -d[..., 2]], -1) / d[..., 1:2] * self.focal + SIZE / 2

    def cast(self, keep, pixels):
        """First hit of rays through pixels (n, 2) with the triangles `keep` (m,): triangle (n,), -1 for none; weights (n, 3)."""
        tri = self.body.faces.numpy()[keep]
        mesh = wp.Mesh(wp.array(self.v, dtype=wp.vec3), wp.array(tri.astype(np.int32).ravel(), dtype=int))
        rays = np.concatenate([(pixels - SIZE / 2) / self.focal, np.ones((len(pixels), 1))], 1)
        rays = (rays * [1, -1, 1])[:, [0, 2, 1]].astype(np.float32)
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        face, uv = wp.zeros(len(rays), dtype=int), wp.zeros(len(rays), dtype=wp.vec3)
        wp.launch(cast, len(rays), [mesh.id, wp.vec3(*map(float, self.origin)), wp.array(rays, dtype=wp.vec3), face, uv])
        face = face.numpy()
        return np.where(face >= 0, keep[face], -1), uv.numpy()


def grid(factor=1):
    y, x = np.mgrid[: SIZE * factor, : SIZE * factor]
    return (np.stack([x, y], -1).reshape(-1, 2) + 0.5) / factor


def colours(body, rng):
    """Colour of each triangle in the rest pose, (F, 3) in [0, 1]."""
    skin = np.array([0.82, 0.64, 0.54]) * rng.uniform(0.55, 1.1)
    colour = np.tile(skin, (len(body.faces), 1))
    hair = rng.uniform(0.05, 0.3) * np.array([1, 0.8, 0.6])
    paint = {("lips",): skin * [0.85, 0.55, 0.55], ("torso", "upperarm"): rng.uniform(0.2, 0.8, 3), ("teeth",): [0.9, 0.88, 0.84]}
    paint |= {("mouth", "eye_cavity"): skin * 0.3, ("tongue",): [0.7, 0.35, 0.35]}
    for names, value in paint.items():
        colour[body.region_faces(*names)] = value
    centre = body.v_template[body.faces].mean(1)
    scalp = body.region_faces("scalp")
    colour[scalp[centre[scalp, 2] > body.joint_template[body.joint("head"), 2]]] = hair
    for side in ("L", "R"):
        ball = body.region_faces("eye")
        ball = ball[centre[ball, 0] > 0] if side == "L" else ball[centre[ball, 0] < 0]
        ray = centre[ball] - body.joint_template[body.joint(f"eye.{side}")]
        angle = np.degrees(np.arccos((-ray[:, 1] / ray.norm(dim=1)).numpy().clip(-1, 1)))[:, None]
        iris = rng.uniform(0.1, 0.5, 3)
        colour[ball] = np.where(angle < 11, 0.03, np.where(angle < 28, iris, 0.93))
    return colour, hair


def paint(scene, rng):
    """Picture (SIZE, SIZE, 3) uint8: smooth normals, one light, brows painted per pixel."""
    body, tri = scene.body, scene.body.faces.numpy()
    keep = np.flatnonzero(~np.isin(body.face_region.numpy(), [REGIONS.index(n) for n in ("lash", "hair", "tights")]))
    face, weight = scene.cast(keep, grid(2))
    flat = np.cross(scene.v[tri[:, 1]] - scene.v[tri[:, 0]], scene.v[tri[:, 2]] - scene.v[tri[:, 0]])
    normals = np.zeros_like(scene.v)
    for corner in range(3):
        np.add.at(normals, tri[keep, corner], flat[keep])
    n = (normals[tri[face]] * weight[..., None]).sum(1)
    n /= np.linalg.norm(n, axis=1, keepdims=True) + 1e-12
    light = np.array([rng.uniform(-0.6, 0.6), -0.8, rng.uniform(0.1, 0.6)])
    colour, hair = colours(body, rng)
    rest = (body.v_template.numpy()[tri[face]] * weight[..., None]).sum(1)
    image = colour[face]
    eyes = body.joint_template[[body.joint("eye.L"), body.joint("eye.R")]].mean(0).numpy()
    x, z = abs(rest[:, 0] - eyes[0]), rest[:, 2] - eyes[2]
    arch = 0.0195 + 0.004 * np.sin(np.pi * np.clip((x - 0.012) / 0.045, 0, 1) ** 0.8)
    brow = (
        (x > 0.012) & (x < 0.052) & (abs(z - arch) < 0.0035 * np.clip((0.056 - x) / 0.03, 0.2, 1)) & (rest[:, 1] < eyes[1] + 0.03)
    )
    image = np.where(brow[:, None], 0.35 * image + 0.65 * hair, image)
    shaded = image * (0.45 + 0.6 * np.clip(n @ (light / np.linalg.norm(light)), 0, 1))[:, None]
    picture = np.where((face >= 0)[:, None], shaded, rng.uniform(0.3, 0.8, 3)).reshape(2 * SIZE, 2 * SIZE, 3)
    picture = cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA) + rng.normal(0, 0.01, (SIZE, SIZE, 3))
    return (picture.clip(0, 1) * 255).astype(np.uint8)


def allowed(body):
    """For each landmark the triangles it may lie on: {kind: (m,)} and the kind of each landmark."""
    region = body.face_region.numpy()
    skin = np.isin(region, [REGIONS.index(n) for n in SKIN])
    lips = region == REGIONS.index("lips")
    drop = body.action_dirs[body.action("jawOpen")].norm(dim=1)[body.faces].mean(1).numpy()
    low = drop > 0.4 * np.percentile(drop[lips], 95)
    eye = region == REGIONS.index("eye")
    left = body.v_template[body.faces].mean(1)[:, 0].numpy() > 0
    kinds = {"skin": skin, "upper": skin & ~low, "lower": skin & low, "left": eye & left, "right": eye & ~left}
    of = np.array(["skin"] * 478, dtype="<U5")
    of[list(UPPER_LIP)], of[list(LOWER_LIP)], of[468:473], of[473:478] = "upper", "lower", "right", "left"
    return {k: np.flatnonzero(v) for k, v in kinds.items()}, of


def hits(scene, face, kinds, of):
    """Triangle (478,) and weights (478, 3) under each landmark px (478, 2); the nearest allowed and visible pixel where the ray
    itself misses, within 5 mm, else -1."""
    skin = np.flatnonzero(
        np.isin(scene.body.face_region.numpy(), [REGIONS.index(n) for n in (*SKIN, "mouth", "eye", "eye_cavity")])
    )
    buffer, weights = scene.cast(skin, grid())
    tri, bary = np.full(478, -1), np.zeros((478, 3))
    for kind, keep in kinds.items():
        ids = np.flatnonzero(of == kind)
        if kind in ("left", "right"):  # the lids hide part of the iris: only the eyeball counts
            tri[ids], bary[ids] = scene.cast(keep, face[ids])
            continue
        direct, weight = scene.cast(skin, face[ids])
        good = np.isin(direct, keep)
        tri[ids[good]], bary[ids[good]] = direct[good], weight[good]
        pixels = np.flatnonzero(np.isin(buffer, keep))
        for i in ids[~good]:
            distance = np.linalg.norm(grid()[pixels] - face[i], axis=1)
            near = distance.argmin()
            if distance[near] < 0.005 * SIZE / SPAN:
                tri[i], bary[i] = buffer[pixels[near]], weights[pixels[near]]
    corners = scene.v[scene.body.faces.numpy()[tri]]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    towards = scene.origin - corners.mean(1)
    facing = (normal * towards).sum(1) / (np.linalg.norm(normal, axis=1) * np.linalg.norm(towards, axis=1) + 1e-12)
    return np.where((facing > FACING) | np.isin(of, ("left", "right", "upper", "lower")), tri, -1), bary


def pictures(body, people, rng):
    """Yields (scene, picture, landmarks px (478, 2), turn) for each of the people (n, S), with closed and slightly open mouths."""
    with quiet(), contextlib.ExitStack() as stack:
        import mediapipe as mp

        models = Models(mp.solutions, stack)
        for betas in people:
            for turn in VIEWS:
                actions = torch.zeros(len(body.action_names))
                actions[body.action("jawOpen")] = float(rng.uniform(0, 0.3))
                rotvecs = torch.zeros(len(body.parents), 3)
                angles = rng.uniform(-3, 3), rng.uniform(-2, 2), turn + rng.uniform(-4, 4)  # nod, tilt, turn
                rotvecs[body.joint("head")] = torch.tensor(np.radians(angles), dtype=torch.float32)
                scene = Scene(body, betas, actions, rotvecs)
                picture = paint(scene, rng)
                faces, _ = find_faces(models, picture)
                if faces:
                    yield scene, picture, faces[0][0][:, :2].astype(float), turn


def medoids(body, tri, bary, frontal):
    """Of hits (n, 478) and (n, 478, 3) the one nearest to the others on the mean body: triangle, weights, spread in mm. Frontal
    pictures (n,) decide where at least half of them see the landmark, else all (the sides of the face)."""
    corners = body.v_template[body.faces].numpy()
    points = (corners[tri] * bary[..., None]).sum(2)  # (n, 478, 3)
    result = []
    for i in range(478):
        ok = np.flatnonzero((tri[:, i] >= 0) & frontal)
        if len(ok) < 0.5 * frontal.sum():
            ok = np.flatnonzero(tri[:, i] >= 0)
        if len(ok) < 0.2 * len(tri):
            result.append((-1, [0.0, 0.0, 0.0], -1.0))
            continue
        gap = np.linalg.norm(points[ok, i][:, None] - points[ok, i][None], axis=2)
        best = gap.sum(1).argmin()
        result.append((int(tri[ok[best], i]), bary[ok[best], i].tolist(), float(np.median(gap[best]) * 1000)))
    return result


def make():
    body, people = load_body(), load_people()[0]
    kinds, of = allowed(body)
    rng = np.random.default_rng(0)
    chosen = people[rng.permutation(300)[:PEOPLE]]  # the second half of the 600 is kept for the check
    found = [(*hits(scene, face, kinds, of), turn == 0) for scene, _, face, turn in pictures(body, chosen, rng)]
    tri, bary, frontal = (np.stack(part) for part in zip(*found))
    rows = medoids(body, tri, bary, frontal)
    spread = [r[2] if r[2] < WORST else -1.0 for r in rows]
    vertices = [body.faces[r[0]].tolist() if s >= 0 else [-1, -1, -1] for r, s in zip(rows, spread)]
    data = {
        "what": "MediaPipe face landmark -> vertices of assets/body.safetensors, their weights, spread in mm (-1: unreliable)",
        "vertices": vertices,
        "weights": [[round(float(w), 4) for w in r[1]] for r in rows],
        "spread_mm": [round(s, 2) for s in spread],
    }
    temporary = OUT.with_suffix(".tmp")
    temporary.write_text(json.dumps(data, separators=(",", ":")) + "\n")
    os.replace(temporary, OUT)
    kept = [s for s in spread if s >= 0]
    print(f"{len(found)} pictures, {len(kept)} landmarks kept, median spread {np.median(kept):.2f} mm, worst {max(kept):.1f} mm")


def report(marks, errors, title):
    """Print errors (n, 478) in percent of the eye distance by group of landmarks."""
    groups = {"all": range(478), "inside": [i for i in range(478) if i not in BOUNDARY], "outline": BOUNDARY}
    groups |= {"lips": sorted({*UPPER_LIP, *LOWER_LIP}), "irises": range(468, 478)}
    for name, ids in groups.items():
        e = errors[:, [i for i in ids if marks.reliable[i]]]
        print(
            f"{title} {name:8s} median {np.median(e):.1f} mean {e.mean():.1f} 95% {np.percentile(e, 95):.1f} % of the eye distance"
        )


def check(save=None):
    """Print the distance between found and projected landmarks on people that were not used for the correspondence."""
    body, people = load_body(), load_people()[0]
    marks = load_landmarks(body)
    rng = np.random.default_rng(1)
    people = people[300 + rng.permutation(300)[:5]]
    errors, turns = [], []
    for k, (scene, picture, face, turn) in enumerate(pictures(body, people, rng)):
        mine = scene.project(marks.face(torch.from_numpy(scene.v)).numpy())
        eyes = np.linalg.norm(mine[LEFT_IRIS] - mine[RIGHT_IRIS])
        errors.append(100 * np.linalg.norm(mine - face, axis=1) / eyes)
        turns.append(turn)
        draw(picture, face, mine, save and f"{save}/check_{k}.png")
    errors, turns = np.stack(errors), np.array(turns)
    report(marks, errors[turns == 0], "frontal")
    report(marks, errors[turns != 0], "turned ")
    check_pose(body, marks, people, rng, save)


def draw(picture, found, mine, path):
    if path:
        for points, colour in ((found, (0, 255, 0)), (mine, (255, 0, 0))):
            for x, y in points:
                cv2.circle(picture, (round(float(x)), round(float(y))), 1, colour, -1)
        cv2.imwrite(path, picture[..., ::-1])


def check_pose(body, marks, people, rng, save=None):
    """Print, for each pose landmark, mean offset (image x, y) and mean error in % of the shoulder width."""
    rows, hands = [], []
    for k, betas in enumerate(people):
        rotvecs = torch.zeros(len(body.parents), 3)
        for side, sign in (("L", 1), ("R", -1)):
            rotvecs[body.joint(f"upperarm01.{side}"), 1] = sign * float(rng.uniform(-0.3, 0.6))
            rotvecs[body.joint(f"lowerarm01.{side}"), 0] = float(rng.uniform(-1.2, 0))
        centre = (0, 0, float(body.joints(betas)[body.joint("head"), 2]) - 0.45)
        scene = Scene(body, betas, torch.zeros(len(body.action_names)), rotvecs, centre, 3.0, 1.5)
        picture = paint(scene, rng)
        person = detect(picture)
        v = torch.from_numpy(scene.v)
        mine = scene.project(marks.pose(v, scene.joints).numpy())
        width = np.linalg.norm(mine[11] - mine[12])
        rows.append(100 * (person.pose2d - mine) / width)
        for side, hand in person.hands.items():
            if hand is not None:
                points = marks.hand(v, scene.joints, side).numpy()
                palm = np.linalg.norm(points[9] - points[0]) * scene.focal / (points[0] - scene.origin)[1]  # px, not foreshortened
                hands.append(np.linalg.norm(hand[0] - scene.project(points), axis=1) / palm)
        draw(picture, person.pose2d, mine, save and f"{save}/pose_{k}.png")
    rows = np.stack(rows)
    for i in range(25):  # the picture ends above the knees
        (x, y), error = rows[:, i].mean(0), np.linalg.norm(rows[:, i], axis=1).mean()
        print(f"pose {i:2d} offset {x:6.1f} {y:6.1f} error {error:.1f} % of the shoulder width")
    if hands:
        print(
            f"{len(hands)} of {2 * len(people)} hands found, mean error by landmark in % of the palm",
            (100 * np.mean(hands, 0)).round(),
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="measure on new people instead of making the file")
    parser.add_argument("--save", help="folder for the pictures of the check")
    args = parser.parse_args()
    wp.config.quiet = True
    if args.check:
        check(args.save)
    else:
        make()

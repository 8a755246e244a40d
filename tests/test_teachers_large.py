"""Large teachers, offline: the real classes of diffusers and transformers in tiny random sizes, and what is said before loading."""

import json
import socket

import numpy as np
import pytest
import torch

from aa.errors import InputError
from aa.teacher_files import LARGE, PRESETS, check_memory, estimate, fitting, load_large, locate, missing, report
from aa.teachers import load_teacher, sample_clip

SOUND = (0.1 * np.random.default_rng(0).standard_normal(16000)).astype(np.float32)


def wan_parts(layers=6):
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )  # fmt: skip
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16, text_dim=32,
        freq_dim=32, ffn_dim=32, num_layers=layers, cross_attn_norm=True, rope_max_seq_len=32,
    )  # fmt: skip
    ears = Wav2Vec2Model(
        Wav2Vec2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, conv_dim=(8,) * 7,
            num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        )
    )  # fmt: skip
    return transformer, vae, ears


def omniavatar_state(layers=6, width=24, columns=64, rank=4, ffn=32):
    """The published file's names and shapes, for a tiny model."""
    g = torch.Generator().manual_seed(1)
    r = lambda *shape: 0.3 * torch.randn(shape, generator=g)  # noqa: E731
    state = {"audio_proj.proj.weight": r(8, 4 * columns), "audio_proj.proj.bias": r(8)}
    state |= {"audio_proj.norm_out.weight": torch.ones(8), "audio_proj.norm_out.bias": r(8)}
    for k in range(layers // 2 - 1):
        state |= {f"audio_cond_projs.{k}.weight": r(width, 8), f"audio_cond_projs.{k}.bias": r(width)}
    state |= {"patch_embedding.weight": r(width, 33, 1, 2, 2), "patch_embedding.bias": r(width)}
    for k in range(layers):
        for name in ("self_attn.q", "self_attn.o", "cross_attn.v", "ffn.0", "ffn.2"):
            into, out = (width, ffn) if name == "ffn.0" else (ffn, width) if name == "ffn.2" else (width, width)
            state[f"blocks.{k}.{name}.lora_A.default.weight"] = r(rank, into)
            state[f"blocks.{k}.{name}.lora_B.default.weight"] = r(out, rank)
    return state


@pytest.fixture(scope="module")
def wan():
    from aa.teacher_wan import WanTeacher, apply_omniavatar

    transformer, vae, ears = wan_parts()
    pack = apply_omniavatar(transformer, omniavatar_state())
    prompts = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))
    return WanTeacher(transformer, vae, pack, ears, prompts, 9, 32, 32)


@pytest.fixture(scope="module")
def ltx2():
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2VideoTransformer3DModel

    from aa.teacher_ltx2 import LTX2Teacher

    torch.manual_seed(0)
    vae = AutoencoderKLLTX2Video(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 16, 32), layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 4, decoder_causal=False, spatial_compression_ratio=32, temporal_compression_ratio=8,
    )  # fmt: skip
    audio_vae = AutoencoderKLLTX2Audio(base_channels=8, ch_mult=(1, 1, 1), num_res_blocks=1, latent_channels=2, mel_bins=16)
    transformer = LTX2VideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24, audio_in_channels=8,
        audio_out_channels=8, audio_num_attention_heads=2, audio_attention_head_dim=8, audio_cross_attention_dim=16, num_layers=2,
        caption_channels=12,
    )  # fmt: skip
    g = torch.Generator().manual_seed(2)
    prompts = torch.randn(1, 4, 12, generator=g), torch.randn(1, 4, 12, generator=g), torch.ones(1, 4)
    return LTX2Teacher(transformer, vae, audio_vae, prompts, 9, 64, 64)


@pytest.fixture(params=["wan", "ltx2"])
def teacher(request):
    return request.getfixturevalue(request.param)


def conditions(teacher, batch=1):
    g = torch.Generator().manual_seed(3)
    image = torch.rand(batch, teacher.height, teacher.width, 3, generator=g)
    frames = torch.rand(batch, teacher.frames, teacher.height, teacher.width, 3, generator=g)
    return frames, teacher.cut(teacher.hear(SOUND), [0] * batch), teacher.look(image)


def test_shapes_and_gradients_to_the_frames(teacher):
    frames, audio, image = conditions(teacher, 2)
    frames.requires_grad_()
    z = teacher.encode(frames)
    assert z.shape == teacher.latent_shape(2)
    v = teacher.velocity(teacher.add_noise(z, 0.5, torch.randn_like(z)), 0.5, audio, image)
    assert v.shape == z.shape
    v.square().mean().backward()
    assert torch.isfinite(frames.grad).all()
    assert frames.grad[:, 1:].abs().amax((0, 2, 3, 4)).min() > 0, "every frame gets a gradient"
    assert all(p.grad is None for p in teacher.parameters()), "a teacher is not taught"
    assert teacher.decode(z.detach()).shape == frames.shape


def test_gradients_do_not_depend_on_checkpointing(teacher):
    frames, audio, image = conditions(teacher)
    grads = []
    for on in (False, True):
        teacher.checkpointing(on)
        x = frames.clone().requires_grad_()
        z = teacher.encode(x)
        teacher.velocity(0.6 * z + 0.4, 0.4, audio, image, audio_guidance=3.0).square().mean().backward()
        grads.append(x.grad)
    teacher.checkpointing(False)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-7)


@torch.no_grad()
def test_guidance_is_the_sum_it_says(teacher):
    frames, audio, image = conditions(teacher)
    z, s = teacher.encode(frames), torch.tensor([0.7])
    full, deaf, null = (teacher.predict(z, s, a, i) for a, i in ((audio, image), (None, image), (None, None)))
    guided = teacher.velocity(z, s, audio, image, audio_guidance=4.0, image_guidance=2.0)
    torch.testing.assert_close(guided, null + 2 * (deaf - null) + 4 * (full - deaf), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(teacher.velocity(z, s, audio, image), full)
    torch.testing.assert_close(teacher.audio_direction(z, s, audio, image), full - deaf)


@torch.no_grad()
def test_the_sound_is_heard_where_it_sounds(teacher):
    frames, audio, image = conditions(teacher)
    z, s = teacher.encode(frames), torch.tensor([0.7])
    other = teacher.cut(teacher.hear(SOUND[::-1].copy()), [0])
    assert audio.shape[1] == teacher.frames, "a row for each 1/25 s"
    assert (teacher.predict(z, s, audio, image) - teacher.predict(z, s, other, image)).abs()[:, :, 1:].max() > 1e-6
    rows = teacher.hear(SOUND)
    torch.testing.assert_close(teacher.cut(rows, [3])[0, 0], rows[3])
    torch.testing.assert_close(teacher.cut(rows, [-4])[0, 0], rows[0]), "before the beginning lies its first row"


@torch.no_grad()
def test_the_first_frame_is_the_image(teacher):
    frames, audio, image = conditions(teacher)
    z, s = teacher.encode(frames), torch.tensor([0.7])
    x0 = teacher.x0_hat(z, s, teacher.velocity(z, s, audio, image))
    torch.testing.assert_close(x0[:, :, :1], image, rtol=1e-4, atol=1e-4)


def test_samples_depend_on_the_seed_alone(teacher):
    picture = np.random.default_rng(4).integers(0, 255, (teacher.height, teacher.width, 3), np.uint8)
    a, b, c = (sample_clip(teacher, picture, SOUND, seed, steps=2) for seed in (0, 0, 1))
    assert np.array_equal(a.frames, b.frames)
    assert not np.array_equal(a.frames, c.frames)
    assert (a.source, a.fps, len(a.frames)) == (teacher.name, 25, teacher.frames)
    assert len(a.audio) == round(teacher.frames / 25 * 16000)
    with pytest.raises(InputError, match="crop and resize"):
        sample_clip(teacher, picture[:16], SOUND, 0)


@torch.no_grad()
def test_omniavatar_adds_to_the_blocks_that_hear():
    from aa.teacher_wan import apply_omniavatar

    state, (transformer, *_), (plain, *_) = omniavatar_state(), wan_parts(), wan_parts()
    pack = apply_omniavatar(transformer, state, alpha=2.0)
    low, high = (state[f"blocks.1.self_attn.o.lora_{x}.default.weight"] for x in "AB")
    change = transformer.blocks[1].attn1.to_out[0].weight - plain.blocks[1].attn1.to_out[0].weight
    torch.testing.assert_close(change, 2.0 / 4 * high @ low)
    torch.testing.assert_close(transformer.blocks[3].attn2.to_k.weight, plain.blocks[3].attn2.to_k.weight)
    assert transformer.config.in_channels == 33
    audio = torch.randn(1, 9, 64)
    added = pack(audio)
    assert [a.shape for a in added] == [(1, 3, 24)] * 2
    audio[:, 5:] = 0
    assert torch.equal(pack(audio)[0][:, :2], added[0][:, :2]), "latent frame k hears frames 4 k - 3 .. 4 k"


@pytest.mark.parametrize("spoil", ["audio_cond_projs.1.bias", "lora", "width"])
def test_weights_of_another_model_are_refused(spoil):
    from aa.teacher_wan import apply_omniavatar

    state = omniavatar_state(width=48) if spoil == "width" else omniavatar_state()
    state = {k: v for k, v in state.items() if spoil not in k}
    with pytest.raises(InputError, match="OmniAvatar"):
        apply_omniavatar(wan_parts()[0], state)


def test_published_files_are_read(tmp_path, capsys):
    """A folder laid out like the downloads, from tiny models: the same code that loads the large ones."""
    from safetensors.torch import save_file

    from aa.teacher_wan import load_wan

    transformer, vae, ears = wan_parts()
    base, omni, wav = (tmp_path / p.repo.split("/")[1] for p in LARGE["wan-1.3b"].parts)
    transformer.save_pretrained(base / "transformer", max_shard_size="20KB")
    vae.save_pretrained(base / "vae")
    (base / "text_encoder").mkdir()
    (base / "tokenizer").mkdir()
    for empty in ("text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"):
        (base / empty).touch()
    save_file({"prompts": torch.zeros(2, 5, 32)}, base / "prompts.safetensors")
    ears.save_pretrained(wav)
    with pytest.raises(InputError, match=r"lacks files of OmniAvatar/OmniAvatar-1.3B \(0.3 GB\): pytorch_model.pt"):
        locate("wan-1.3b", tmp_path)
    omni.mkdir()
    torch.save(omniavatar_state(), omni / "pytorch_model.pt")
    (omni / "config.json").write_text(json.dumps({"lora_alpha": 64}))
    parts = locate("wan-1.3b", tmp_path)
    teacher = load_wan(parts, "wan-1.3b", torch.float32, frames=9, height=32, width=32)
    _, audio, image = conditions(teacher)
    assert teacher.sample(image, audio, 0, steps=1).shape == (1, 9, 32, 32, 3)
    shard = sorted((base / "transformer").glob("*-of-*.safetensors"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    with pytest.raises(InputError, match="cannot be read"):
        load_wan(parts, "wan-1.3b", torch.float32)
    shard.unlink()
    assert missing(base, LARGE["wan-1.3b"].parts[0]) == [f"transformer/{shard.name}"]


def test_without_files_or_network_one_sentence_says_what_is_missing(monkeypatch, tmp_path):
    def none(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", none)
    monkeypatch.setattr(socket, "getaddrinfo", none)
    for name in LARGE:
        with pytest.raises(InputError, match=r'GB.*use the teacher "tiny"'):
            locate(name, tmp_path)
    with pytest.raises(InputError, match="could not be downloaded"):
        locate("wan-1.3b", tmp_path, download=True)
    with pytest.raises(InputError, match='use the teacher "tiny"'):
        load_teacher("wan-1.3b", device="cpu")
    with pytest.raises(InputError, match="no preset"):
        load_large("wan-1.3b", preset="huge")
    with pytest.raises(InputError, match="choose one of tiny"):
        load_teacher("sora")


def test_memory_is_estimated_before_loading_and_the_preset_that_fits_is_named():
    for name in LARGE:
        needs = [estimate(name, *PRESETS[p]).gpu for p in ("small", "medium", "full")]
        assert needs == sorted(needs)
        assert estimate(name, *PRESETS["small"], offload=True).gpu < needs[0]
        assert all(p.licence in report(name, "small", False) for p in LARGE[name].parts)
    # Published for OmniAvatar 14B, 30 000 tokens on an A800: 16 s a step of two passes, 8 GB with all weights outside.
    e = estimate("wan-14b", 77, 480, 832)
    assert 8 < e.scoring < 32
    assert e.gpu > 28
    with pytest.raises(InputError, match=r'what fits is teacher "wan-14b", preset="(small|medium)", offload=True'):
        check_memory("wan-14b", "full", False, 12.0)
    with pytest.raises(InputError, match='use the teacher "tiny"'):
        check_memory("wan-1.3b", "small", False, 1.0)
    check_memory("wan-1.3b", "small", False, 24.0)
    assert fitting(24.0)[0][0] == "wan-14b"

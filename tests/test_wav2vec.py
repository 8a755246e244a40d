"""Sound features from wav2vec 2.0 and HuBERT weights, tiny and random here: width, phase, long sound, and what is said without."""

import json

import numpy as np
import pytest

from aa import wav2vec
from aa.audio import PROSODY, feature_dim, features
from aa.errors import InputError

TINY = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16, "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 1, "num_conv_pos_embedding_groups": 1, "feat_extract_norm": "layer", "do_stable_layer_norm": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of random weights of each kind."""
    import torch
    from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    out = {}
    for name, config, model in (("wav2vec2", Wav2Vec2Config, Wav2Vec2Model), ("hubert", HubertConfig, HubertModel)):
        out[name] = str(tmp_path_factory.mktemp(name))
        model(config(**TINY)).save_pretrained(out[name])
    return out


def noise(samples: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (0.1 * rng.standard_normal(samples) * np.sin(np.arange(samples) / 2000) ** 2).astype(np.float32)


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
def test_any_such_weights_give_rows_of_their_width(folders, kind):
    assert feature_dim(folders[kind]) == 16 + PROSODY
    for samples in (1, 1600, 40000):
        rows = features(noise(samples), kind=folders[kind])
        assert (rows.shape, rows.dtype) == ((max(1, round(samples / 640)), 19), np.float32)
        assert np.isfinite(rows).all()
    np.testing.assert_array_equal(rows[:, -PROSODY:], features(noise(40000), kind="mel")[:, -PROSODY:])


def test_states_lie_symmetrically_around_the_frame(folders, monkeypatch):
    monkeypatch.setattr(wav2vec, "DEPTH", 0)  # before attention, which looks everywhere
    sound = noise(640 * 20)
    before = wav2vec.hidden_states(sound, folders["wav2vec2"])

    def changed(sample):
        other = sound.copy()
        other[sample] += 0.5
        return np.flatnonzero(np.abs(wav2vec.hidden_states(other, folders["wav2vec2"]) - before).max(1) > 1e-6).tolist()

    assert changed(10 * 640 + 45) == changed(10 * 640 + 320) == changed(10 * 640 + 594) == [10]
    assert changed(10 * 640 + 20) == [9, 10]  # 25 ms windows every 20 ms: they overlap by 5
    assert changed(10 * 640 + 620) == [10, 11]


def test_long_sound_goes_through_in_windows(folders):
    sound = noise(640 * 25 * 40)
    rows = wav2vec.hidden_states(sound, folders["hubert"])
    assert rows.shape == (1000, 16)
    alone = wav2vec.hidden_states(sound[: 12 * 16000], folders["hubert"])
    np.testing.assert_allclose(rows[: 10 * 25], alone[: 10 * 25], atol=1e-5)


def test_without_weights_one_sentence_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match='or choose the sound features "phones" or "mel"'):
        features(noise(1600), kind=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    with pytest.raises(InputError, match=r"no wav2vec 2\.0 or HuBERT weights"):
        feature_dim(str(tmp_path / "."))


def test_configuration_without_weights(tmp_path):
    from transformers import HubertConfig

    HubertConfig(**TINY).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"weights of .* cannot be read"):
        features(noise(1600), kind=str(tmp_path))

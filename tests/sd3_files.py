"""Writes the embedded model in the file formats of the released Stable Diffusion 3 checkpoints.

The names and layouts are those of the public files (fused qkv, channels-first convolutions, CLIP
as Hugging Face exports it, a hub cache folder): the inverse of DiffusionKit's key mapping.
"""

import io
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from taqdit.models.tiny import WEIGHTS
from taqdit.models.tiny import config as tiny_config

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIFFUSION = "model.diffusion_model."
DECODER = "first_stage_model.decoder."


def rename(name, *pairs):
    for old, new in pairs:
        name = name.replace(old, new)
    return name


def transformer(weights):
    """MMDiT tensors by their names in the released file."""
    out, qkv = {}, {}
    for key, value in weights.items():
        name = rename(
            key,
            ("multimodal_transformer_blocks", "joint_blocks"),
            ("image_transformer_block", "x_block"),
            ("text_transformer_block", "context_block"),
            (".layers.", "."),
            ("o_proj", "proj"),
            ("x_pos_embedder.pos_embed.weight", "pos_embed"),
        )
        if name == "pos_embed":
            value = value[None]
        if name == "x_embedder.proj.weight":
            value = value.transpose(0, 3, 1, 2)
        block, _, rest = name.rpartition("attn.")
        if block and rest[:7] in ("q_proj.", "k_proj.", "v_proj."):
            qkv.setdefault(f"{block}attn.qkv.{rest[7:]}", {})[rest[0]] = value
        else:
            out[name] = value
    for name, part in qkv.items():
        key_part = part.get("k", np.full_like(part["q"], 7))  # a key bias exists and is dropped
        out[name] = np.concatenate([part["q"], key_part, part["v"]])
    return {DIFFUSION + name: value for name, value in out.items()}


def decoder(weights):
    """VAE decoder tensors by their names in the released file."""
    out = {}
    for key, value in weights.items():
        name = rename(
            key,
            ("up_blocks", "up"),
            ("resnets", "block"),
            ("conv_shortcut", "nin_shortcut"),
            ("mid_blocks.0", "mid.block_1"),
            ("mid_blocks.1", "mid.attn_1"),
            ("mid_blocks.2", "mid.block_2"),
            ("group_norm", "norm"),
            ("query_proj", "q"),
            ("key_proj", "k"),
            ("value_proj", "v"),
            ("out_proj", "proj_out"),
            ("conv_norm_out", "norm_out"),
            ("upsample.", "upsample.conv."),
        )
        if value.ndim == 4:
            value = value.transpose(0, 3, 1, 2)
        elif value.ndim == 2:  # linears here are 1 x 1 convolutions there
            value = value[:, :, None, None]
        out[DECODER + name] = value
    return out


def checkpoint_tensors():
    vae = load_file(WEIGHTS / "vae.safetensors")
    decoding = {k.removeprefix("decoder."): v for k, v in vae.items() if k.startswith("decoder.")}
    return transformer(load_file(WEIGHTS / "mmdit.safetensors")) | decoder(decoding)


def clip(weights):
    """CLIP text tensors by Hugging Face's names, with the buffer that older exports carry."""
    out = {"text_model.embeddings.position_ids": np.arange(4, dtype=np.int64)[None]}
    for key, value in weights.items():
        name = rename(
            key,
            ("attention.query_proj", "self_attn.q_proj"),
            ("attention.key_proj", "self_attn.k_proj"),
            ("attention.value_proj", "self_attn.v_proj"),
            ("attention.out_proj", "self_attn.out_proj"),
            ("linear1", "mlp.fc1"),
            ("linear2", "mlp.fc2"),
        )
        if name.startswith("layers."):
            name = f"text_model.encoder.{name}"
        elif name.endswith("_embedding.weight"):
            name = f"text_model.embeddings.{name}"
        elif name.startswith("final_layer_norm"):
            name = f"text_model.{name}"
        out[name] = value
    return out


def clip_config(name):
    sizes = tiny_config()[name]
    return {
        "architectures": ["CLIPTextModelWithProjection"],
        "num_hidden_layers": sizes["num_layers"],
        "hidden_size": sizes["model_dims"],
        "num_attention_heads": sizes["num_heads"],
        "max_position_embeddings": sizes["max_length"],
        "vocab_size": tiny_config()["vocab_size"],
        "projection_dim": sizes["projection_dim"],
        "hidden_act": sizes["hidden_act"],
    }


def contiguous(tensors):
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()}


def repository(cache, repo):
    """The snapshot folder of a repository in a hub cache."""
    folder = Path(cache) / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return snapshot


def write_checkpoint(path, tensors=None):
    save_file(contiguous(checkpoint_tensors() if tensors is None else tensors), path)


def write_text_side(cache):
    """CLIP encoders and tokenizers where the hub's cache would have them."""
    snapshot = repository(cache, "argmaxinc/stable-diffusion")
    for letter in "lg":
        folder = snapshot / f"clip_{letter}"
        folder.mkdir()
        weights = clip(load_file(WEIGHTS / f"clip_{letter}.safetensors"))
        save_file(contiguous(weights), folder / "model.fp16.safetensors")
        (folder / "config.json").write_text(json.dumps(clip_config(f"clip_{letter}")))
        tokens = snapshot / f"tokenizer_{letter}"
        tokens.mkdir()
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(WEIGHTS / name, tokens / name)


T5 = {
    "model_type": "t5",
    "d_model": 4096,  # the width of the tokens that the transformer takes
    "d_ff": 8,
    "d_kv": 4,
    "num_heads": 2,
    "num_layers": 1,
    "vocab_size": 64,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "decoder_start_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def t5_tensors(seed=0):
    """A random T5 encoder of one small layer by Hugging Face's names."""
    draw = np.random.default_rng(seed)
    width, inner = T5["d_model"], T5["d_kv"] * T5["num_heads"]
    layer = "encoder.block.0.layer"
    shapes = {
        "shared.weight": (T5["vocab_size"], width),
        f"{layer}.0.SelfAttention.q.weight": (inner, width),
        f"{layer}.0.SelfAttention.k.weight": (inner, width),
        f"{layer}.0.SelfAttention.v.weight": (inner, width),
        f"{layer}.0.SelfAttention.o.weight": (width, inner),
        f"{layer}.0.SelfAttention.relative_attention_bias.weight": (32, T5["num_heads"]),
        f"{layer}.0.layer_norm.weight": (width,),
        f"{layer}.1.DenseReluDense.wi_0.weight": (T5["d_ff"], width),
        f"{layer}.1.DenseReluDense.wi_1.weight": (T5["d_ff"], width),
        f"{layer}.1.DenseReluDense.wo.weight": (width, T5["d_ff"]),
        f"{layer}.1.layer_norm.weight": (width,),
        "encoder.final_layer_norm.weight": (width,),
    }
    tensors = {
        name: draw.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes.items()
    }
    return tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"]}


def write_t5(cache):
    """A small T5 encoder and a sentencepiece tokenizer where the hub's cache would have them."""
    import sentencepiece

    folder = repository(cache, "argmaxinc/stable-diffusion") / "t5"
    folder.mkdir()
    save_file(t5_tensors(), folder / "t5xxl.safetensors")
    google = repository(cache, "google/t5-v1_1-xxl")
    (google / "config.json").write_text(json.dumps(T5))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red circle", "the blue star and a green ring"] * 20),
        model_writer=model,
        vocab_size=30,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (google / "spiece.model").write_bytes(model.getvalue())

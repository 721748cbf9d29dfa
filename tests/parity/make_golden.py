"""Writes tests/golden/hf_parity.npz: inputs and results of Hugging Face's VideoMAEForPreTraining on random weights.

    python tests/parity/make_golden.py

Needs tests/parity/requirements.txt. transformers differs from the official code in its LayerNorm eps (1e-12 in the
blocks, 1e-5 in the decoder's norm, 1e-6 officially), so eps is set to 1e-6 in every LayerNorm here. transformers before
5.18 loads the q and v biases as zero. test_parity.py uses the functions below for its live comparison.
"""

import pathlib

import numpy as np
import torch
import transformers

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "hf_parity.npz"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet; HF's loss undoes them
SMALL = {"image_size": 32, "patch_size": 8, "num_frames": 8, "tubelet_size": 2, "hidden_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 4, "intermediate_size": 64, "decoder_hidden_size": 24, "decoder_num_hidden_layers": 2,
         "decoder_num_attention_heads": 3, "decoder_intermediate_size": 48}
# 8 x 7 x 7 tokens: an odd grid, and another head dimension in the encoder (64) than in the decoder (32).
MEDIUM = {"image_size": 112, "patch_size": 16, "num_frames": 16, "tubelet_size": 2, "hidden_size": 192, "num_hidden_layers": 3,
          "num_attention_heads": 3, "intermediate_size": 768, "decoder_hidden_size": 96, "decoder_num_hidden_layers": 2,
          "decoder_num_attention_heads": 3, "decoder_intermediate_size": 384}
GRADIENTS = ("videomae.encoder.layer.0.attention.attention.query.weight", "videomae.encoder.layer.1.attention.attention.value.bias",
             "videomae.embeddings.patch_embeddings.projection.bias", "videomae.encoder.layer.0.intermediate.dense.weight",
             "encoder_to_decoder.weight", "mask_token", "decoder.norm.weight")


def build(sizes: dict[str, int], /, *, seed: int) -> transformers.VideoMAEForPreTraining:
    """A model whose every parameter is random: no zero bias, no unit scale; eps 1e-6 in every LayerNorm.

    Values are rounded to bfloat16, so that the float32 file compresses.
    """
    config = transformers.VideoMAEConfig(**sizes, layer_norm_eps=1e-6, use_mean_pooling=False)
    model = transformers.VideoMAEForPreTraining(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 1:  # biases, and scales around 1
                value = 0.3 * noise + float("norm" in name and name.endswith("weight"))
            else:
                value = noise * p[0].numel() ** -0.5
            p.copy_(value.to(torch.bfloat16).to(torch.float32))
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    return model


def clips(sizes: dict[str, int], /, *, batch: int, seed: int) -> np.ndarray:
    """Random frames u8 [B T H W C]."""
    shape = (batch, sizes["num_frames"], sizes["image_size"], sizes["image_size"], 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def tube(sizes: dict[str, int], /, *, batch: int, seed: int, ratio: float = 0.75) -> np.ndarray:
    """Tube mask bool [B N], True = masked, another one in every row."""
    side = sizes["image_size"] // sizes["patch_size"]
    rng = np.random.default_rng(seed)
    hidden = np.stack([rng.permutation(side * side) < int(ratio * side * side) for _ in range(batch)])
    return np.tile(hidden, (1, sizes["num_frames"] // sizes["tubelet_size"]))


def reference(model: transformers.VideoMAEForPreTraining, video: np.ndarray, masked: np.ndarray, /, *, normalise: bool) -> dict[str, np.ndarray]:
    """`tokens` after the encoder's norm, `predictions`, `loss` and the gradient of every parameter as "grad/NAME".

    `video` is u8 [B T H W C]; Hugging Face takes normalised frames [B T C H W].
    """
    model.config.norm_pix_loss = normalise
    unit = torch.from_numpy(video.astype(np.float32) / np.float32(255))
    pixels = ((unit - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 1, 4, 2, 3).contiguous()
    model.zero_grad()
    out = model(pixels, bool_masked_pos=torch.from_numpy(masked))
    out.loss.backward()
    with torch.no_grad():
        tokens = model.videomae(pixels, bool_masked_pos=torch.from_numpy(masked)).last_hidden_state
    gradients = {f"grad/{name}": p.grad.numpy().copy() for name, p in model.named_parameters()}
    return {"tokens": tokens.numpy(), "predictions": out.logits.detach().numpy(), "loss": out.loss.detach().numpy()} | gradients


def main() -> None:
    """Writes the file and prints its size."""
    torch.set_num_threads(1)
    model = build(SMALL, seed=0)
    video, masked = clips(SMALL, batch=2, seed=1), tube(SMALL, batch=2, seed=2)
    arrays = {f"weight/{name}": value.numpy() for name, value in model.state_dict().items()}
    arrays |= {"video": video, "masked": masked, "versions": np.array([f"torch {torch.__version__}", f"transformers {transformers.__version__}"])}
    for label, normalise in (("normalised", True), ("raw", False)):
        result = reference(model, video, masked, normalise=normalise)
        arrays |= {f"{label}/loss": result["loss"]} | {f"{label}/grad/{name}": result[f"grad/{name}"] for name in GRADIENTS}
    arrays |= {"tokens": result["tokens"], "predictions": result["predictions"][:, ::2]}  # every second target keeps the file small
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **arrays)
    print(f"{GOLDEN}: {GOLDEN.stat().st_size / 1000:.0f} kB, losses {arrays['normalised/loss']:.6f} {arrays['raw/loss']:.6f}")


if __name__ == "__main__":
    main()

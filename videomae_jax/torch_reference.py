"""Hugging Face's VideoMAEForPreTraining as a rival of `bench step`: the same sizes, loss and optimiser in PyTorch.

Imported by the benchmark only; needs the libraries of tests/parity/requirements.txt.
"""

import contextlib
import gc
import math
import os
from collections.abc import Callable
from typing import Any

from videomae_jax.assembly import Assembly
from videomae_jax.errors import UserError

try:
    import torch
    import transformers
except ImportError as error:
    raise UserError(f"--against=torch needs PyTorch and transformers ({error}); install tests/parity/requirements.txt") from error

ATTENTION = ("sdpa", "eager")


class Step:
    """Forward, backward and AdamW of VideoMAEForPreTraining on one batch; `about` says how it runs.

    float32 parameters; bfloat16 means autocast. The batch holds normalised float frames, as its processor hands them out.
    """

    name = "Hugging Face VideoMAEForPreTraining (PyTorch)"

    def __init__(self, objective: Any, /, *, clips: int, dtype: str, attention: str, device: str) -> None:
        torch.manual_seed(0)
        self._model = transformers.VideoMAEForPreTraining._from_config(settings(objective), attn_implementation=attention)
        self._model.to(device).train()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
        self._cast = torch.autocast(device, dtype=torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()
        self._device = device
        encoder, tokens = objective.encoder, objective.cost().tokens
        self._pixels = torch.randn((clips, encoder.frames, encoder.channels, encoder.size, encoder.size)).to(device)
        grid = encoder.grid
        hidden = torch.rand((clips, grid.slice)).argsort(1) >= tokens["visible"] // grid.t
        self._masked = hidden.repeat(1, grid.t).to(device)
        self.loss = math.nan
        trained = sum(p.numel() for p in self._model.parameters() if p.requires_grad)
        self.about = {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}, "attention": attention,
                      "dtype": dtype, "threads": torch.get_num_threads(), "device": device, "optimizer": "AdamW, fused", "parameters": trained}

    def __call__(self, steps: int, /) -> None:
        """Runs `steps` training steps and waits for the last."""
        for _ in range(steps):
            self._optimizer.zero_grad(set_to_none=True)
            with self._cast:
                loss = self._model(self._pixels, bool_masked_pos=self._masked).loss
            loss.backward()
            self._optimizer.step()
        if self._device == "cuda":
            torch.cuda.synchronize()
        self.loss = float(loss.detach())
        if not math.isfinite(self.loss):
            raise UserError(f"the loss of {self.name} is {self.loss}; its figures would mean nothing")


def settings(objective: Any, /) -> Any:
    """Their config of our model; raises UserError where theirs cannot be the same."""
    encoder, decoder = getattr(objective, "encoder", None), getattr(objective, "decoder", None)
    normalise = getattr(getattr(objective, "target", None), "normalise", None)
    if decoder is None or normalise not in ("channel", "none"):
        raise UserError(f"--against=torch needs an encoder and a decoder of pixels; {type(objective).__name__} is something else")
    tokens = objective.cost().tokens
    if tokens["visible"] + tokens["decoded"] != tokens["all"] or tokens["visible"] % encoder.grid.t:
        raise UserError(f"--against=torch needs a tube mask and a decoder of all hidden tokens; this one sees {tokens['visible']} and decodes "
                        f"{tokens['decoded']} of {tokens['all']}")
    if encoder.patch[1] != encoder.patch[2]:
        raise UserError(f"--against=torch needs square patches; these are {encoder.patch[1]}x{encoder.patch[2]}")
    return transformers.VideoMAEConfig(
        image_size=encoder.size, patch_size=encoder.patch[1], num_channels=encoder.channels, num_frames=encoder.frames,
        tubelet_size=encoder.patch[0], hidden_size=encoder.width, num_hidden_layers=encoder.depth, num_attention_heads=encoder.heads,
        intermediate_size=encoder.hidden, decoder_num_attention_heads=decoder.heads, decoder_hidden_size=decoder.width,
        decoder_num_hidden_layers=decoder.depth, decoder_intermediate_size=decoder.hidden, layer_norm_eps=1e-6,
        norm_pix_loss=normalise == "channel", use_mean_pooling=False)


def fastest(run: Assembly, /, *, dtype: str, say: Callable[[str], None]) -> Step:
    """The rival with whichever attention implementation takes less time for one step after a first one."""
    from videomae_jax import benchmarks

    platform = next(iter(run.mesh.devices.flat)).platform
    device = "cuda" if platform in ("gpu", "cuda") else "cpu"
    if platform not in ("cpu", "gpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise UserError(f"--against=torch: this PyTorch ({torch.__version__}) does not run on {platform}")
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

    def build(attention: str) -> Step:
        return Step(run.objective, clips=run.clips * run.draws, dtype=dtype, attention=attention, device=device)

    seconds = {}
    for attention in ATTENTION:
        trial = build(attention)
        trial(1)
        seconds[attention] = benchmarks.lap(trial, steps=1).wall
        say(f"torch with {attention} attention: {1e3 * seconds[attention]:.0f} ms a step")
        del trial
        gc.collect()
    return build(min(seconds, key=seconds.get))

"""Hugging Face's VideoMAEForPreTraining as a rival of `bench step`: the same sizes, loss and optimiser in PyTorch, and VideoMAE V2 on its blocks.

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

COMPILED = ("none", "blocks", "whole")  # what torch.compile gets: nothing, every transformer block (one kind of block compiles once), the loss
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels, which their processor takes off


class Dual(torch.nn.Module):
    """VideoMAE V2 on the parts of VideoMAEForPreTraining: its decoder gets and predicts the tokens that a second mask selects.

    The loss is the mean over those of them that the encoder did not see (arXiv 2303.16727, section 3.2).
    """

    def __init__(self, model: Any, /) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor, masked: torch.Tensor, selected: torch.Tensor) -> torch.Tensor:
        """The loss of normalised frames [B T C H W]; `masked` and `selected` bool [B N] have as many True in every row."""
        m, rows = self.model, len(pixels)
        tokens = m.encoder_to_decoder(m.videomae(pixels, bool_masked_pos=masked).last_hidden_state)
        places = m.position_embeddings.expand(rows, -1, -1).to(tokens)
        seen, asked = (places[chosen].reshape(rows, -1, places.shape[-1]) for chosen in (~masked, selected))
        logits = m.decoder(torch.cat([tokens + seen, m.mask_token + asked], 1), asked.shape[1]).logits
        labels, weight = targets(pixels, m.config)[selected].reshape(logits.shape), masked[selected].reshape(rows, -1)
        return ((logits - labels).square().mean(-1) * weight).sum() / weight.sum()


@torch.no_grad()
def targets(pixels: torch.Tensor, config: Any, /) -> torch.Tensor:
    """Patches [B N P] of normalised frames [B T C H W], in [0, 1] or with mean 0 and deviation 1 in every patch and channel."""
    mean, std = (torch.tensor(values, device=pixels.device).view(1, 1, 3, 1, 1) for values in (MEAN, STD))
    rows, frames, channels, height, width = pixels.shape
    t, s = config.tubelet_size, config.patch_size
    cut = (pixels * std + mean).view(rows, frames // t, t, channels, height // s, s, width // s, s).permute(0, 1, 4, 6, 2, 5, 7, 3)
    cut = cut.reshape(rows, -1, t * s * s, channels)
    if config.norm_pix_loss:
        cut = (cut - cut.mean(2, keepdim=True)) / (cut.var(2, keepdim=True).sqrt() + 1e-6)
    return cut.flatten(2)


class Exhausted(UserError):
    """A step of the rival does not fit into the memory that is left."""


class Step:
    """Forward, backward and AdamW of VideoMAEForPreTraining, or of `Dual`, on one batch of `clips`; `about` says how it runs.

    float32 parameters; bfloat16 means autocast. The batch holds normalised float frames, as its processor hands them out.
    """

    def __init__(self, objective: Any, /, *, clips: int, dtype: str, attention: str, device: str, compiled: str = "none") -> None:
        torch.manual_seed(0)
        self._model = transformers.VideoMAEForPreTraining._from_config(settings(objective), attn_implementation=attention)
        self._model.to(device).train()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
        self._cast = torch.autocast(device, dtype=torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()
        self._device, self.clips = device, clips
        encoder, tokens = objective.encoder, objective.cost().tokens
        self._pixels = torch.randn((clips, encoder.frames, encoder.channels, encoder.size, encoder.size)).to(device)
        grid = encoder.grid
        hidden = torch.rand((clips, grid.slice)).argsort(1) >= tokens["visible"] // grid.t
        self._masked = hidden.repeat(1, grid.t).to(device)
        dual = tokens["visible"] + tokens["decoded"] != tokens["all"]
        self.name = f"{'VideoMAE V2 on the blocks of ' if dual else ''}Hugging Face VideoMAEForPreTraining (PyTorch)"
        if dual:  # which tokens the mask takes costs nothing, so any do
            model, selected = Dual(self._model), (torch.rand((clips, grid.tokens)).argsort(1) < tokens["decoded"]).to(device)
            self._loss = lambda: model(self._pixels, self._masked, selected)
        else:
            self._loss = lambda: self._model(self._pixels, bool_masked_pos=self._masked).loss
        if compiled == "whole":
            self._loss = torch.compile(self._loss)
        elif compiled == "blocks":
            for block in (*self._model.videomae.encoder.layer, *self._model.decoder.decoder_layers):
                block.compile()
        self.loss = math.nan
        trained = sum(p.numel() for p in self._model.parameters() if p.requires_grad)
        self.about = {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}, "attention": attention, "compiled": compiled,
                      "dtype": dtype, "threads": torch.get_num_threads(), "device": device, "optimizer": "AdamW, fused", "parameters": trained}

    def __call__(self, steps: int, /) -> None:
        """Runs `steps` training steps and waits for the last; raises Exhausted where memory is too small."""
        try:
            for _ in range(steps):
                self._optimizer.zero_grad(set_to_none=True)
                with self._cast:
                    loss = self._loss()
                loss.backward()
                self._optimizer.step()
            if self._device == "cuda":
                torch.cuda.synchronize()
        except RuntimeError as error:
            if not too_large(error):
                raise
            raise Exhausted(f"{self.clips} clips a step of {self.name} do not fit into the device's memory; use a smaller --batch or --torch-batch") from error
        self.loss = float(loss.detach())
        if not math.isfinite(self.loss):
            raise UserError(f"the loss of {self.name} is {self.loss}; its figures would mean nothing")


def too_large(error: Exception, /) -> bool:
    """Whether PyTorch says that memory is too small; of a CPU's it has no type of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def settings(objective: Any, /) -> Any:
    """Their config of our model; raises UserError where theirs cannot be the same."""
    encoder, decoder = getattr(objective, "encoder", None), getattr(objective, "decoder", None)
    normalise = getattr(getattr(objective, "target", None), "normalise", None)
    if decoder is None or normalise not in ("channel", "none"):
        raise UserError(f"--against=torch needs an encoder and a decoder of pixels; {type(objective).__name__} is something else")
    tokens = objective.cost().tokens
    if tokens["visible"] % encoder.grid.t:
        raise UserError(f"--against=torch needs a tube mask; this one sees {tokens['visible']} of {tokens['all']} tokens, not the same in each of {encoder.grid.t} slices")
    if encoder.patch[1] != encoder.patch[2]:
        raise UserError(f"--against=torch needs square patches; these are {encoder.patch[1]}x{encoder.patch[2]}")
    return transformers.VideoMAEConfig(
        image_size=encoder.size, patch_size=encoder.patch[1], num_channels=encoder.channels, num_frames=encoder.frames,
        tubelet_size=encoder.patch[0], hidden_size=encoder.width, num_hidden_layers=encoder.depth, num_attention_heads=encoder.heads,
        intermediate_size=encoder.hidden, decoder_num_attention_heads=decoder.heads, decoder_hidden_size=decoder.width,
        decoder_num_hidden_layers=decoder.depth, decoder_intermediate_size=decoder.hidden, layer_norm_eps=1e-6,
        norm_pix_loss=normalise == "channel", use_mean_pooling=False)


def batches(clips: int, device: str, /) -> tuple[int, ...]:
    """Clips a step that the rival tries where none are asked for: ours, on GPUs half and twice as many too; on CPUs every try takes long and wins little."""
    return (clips, *(n for n in (clips // 2, 2 * clips) if n)) if device == "cuda" else (clips,)


def fastest(run: Assembly, /, *, dtype: str, compiled: tuple[str, ...] = (), clips: tuple[int, ...] = (), say: Callable[[str], None]) -> Step:
    """The rival in whichever way, and with whichever batch, takes the least time a clip for one step after a first one.

    CPUs try both implementations of attention, GPUs scaled_dot_product_attention under each of `compiled`, by default all of `COMPILED`. The way that is
    best with the first of `clips` (by default `batches`) that fits is the one that is tried with the others. What does not fit into the memory that is
    left is left out.
    """
    platform = next(iter(run.mesh.devices.flat)).platform
    device = "cuda" if platform in ("gpu", "cuda") else "cpu"
    if platform not in ("cpu", "gpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise UserError(f"--against=torch: this PyTorch ({torch.__version__}) does not run on {platform}")
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    ways = [("sdpa", how) for how in compiled or COMPILED] if device == "cuda" else [(a, how) for how in compiled or ("none",) for a in ("sdpa", "eager")]

    def build(attention: str, compiled: str, clips: int) -> Step:
        return Step(run.objective, clips=clips, dtype=dtype, attention=attention, device=device, compiled=compiled)

    tried = clips or batches(run.clips * run.draws, device)
    seconds: dict[tuple[str, str, int], float] = {}
    for count in tried:
        for way in [min(seconds, key=seconds.get)[:2]] if seconds else ways:
            found = _timed(build, *way, count, say=say)
            if found is not None:
                seconds[*way, count] = found / count
            if device == "cuda":
                torch.cuda.empty_cache()
    if not seconds:
        raise UserError(f"--against=torch: no rival ran; tried {', '.join(dict.fromkeys(way[1] for way in ways))} compiled, {', '.join(map(str, tried))} clips a step")
    return build(*min(seconds, key=seconds.get))


def _timed(build: Callable[[str, str, int], Step], attention: str, compiled: str, clips: int, /, *, say: Callable[[str], None]) -> float | None:
    """Seconds of a step after a first one; None where it does not fit, or where what is compiled does not run."""
    from videomae_jax import benchmarks

    name, trial = f"torch with {attention} attention, {compiled} compiled, {clips} clips", None
    try:
        trial = build(attention, compiled, clips)
        trial(1)
        wall = benchmarks.lap(trial, steps=1).wall
        say(f"{name}: {1e3 * wall:.0f} ms a step, {clips / wall:.2f} clips/s")
        return wall
    except Exception as error:  # torch.compile needs a C compiler and more; without it the plain ones still are rivals
        if compiled == "none" and not isinstance(error, Exhausted) and not too_large(error):
            raise
        say(f"{name} is left out: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        return None
    finally:
        del trial
        gc.collect()
        torch.compiler.reset()

"""Traces are read right: nested events, kinds of work, parts of the model, kernels whose instruction only their name tells."""

import pathlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from videomae_jax import profiling
from videomae_jax.errors import UserError

PROGRAM = '''HloModule jit_traced

%fused_computation.1 (p.1: f32[8,8]) -> f32[4,8,8] {
  %dynamic-update-slice.2 = f32[4,8,8]{2,1,0} dynamic-update-slice(%p.1, %p.2), metadata={op_name="jit(traced)/jvp(Encoder)/stack/while/body/dus"}
}

ENTRY %main.9 (Arg_0.1: f32[8,8]) -> f32[8,8] {
  %loop_fusion.3 = f32[4,8,8]{2,1,0} fusion(%Arg_0.1), kind=kLoop, calls=%fused_computation.1, metadata={op_name="jit(traced)/transpose(jvp(Decoder))/stack/block/mlp/fc1/add"}
  %custom-call.4 = (bf16[8,8]{1,0}, s8[4]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(traced)/jvp(Encoder)/stack/block/attn/dot_general"}
  ROOT %add.5 = f32[8,8]{1,0} add(%a, %b), metadata={op_name="jit(traced)/add"}
}
'''


def test_a_program_says_what_its_instructions_do() -> None:
    """A fusion does what is in it; a call does what its target does; paths are kept."""
    found = profiling.operations(PROGRAM)
    assert found["loop_fusion.3"].does == "dynamic-update-slice" and found["custom-call.4"].does == "custom-call __cublas$lt$matmul"
    assert [profiling.kind(found[k].does, "") for k in ("loop_fusion.3", "custom-call.4", "add.5")] == ["stacking of layers", "matrix product", "element-wise"]
    assert profiling.part("jit(step)/jvp(Encoder)/stack/block/attn/transpose") == "encoder/attn"  # an array is transposed, not the program
    assert [profiling.part(found[k].path) for k in ("loop_fusion.3", "custom-call.4", "add.5")] == ["decoder/mlp backward", "encoder/attn", "other"]


@pytest.mark.parametrize(("does", "kernel", "kind"), [
    ("", "nvjet_sm90_tst_128x160_64x5_2x1_v_bz_NNT", "matrix product"), ("", "cudnn_generated_fort_native_sdpa_sm90_flash_fprop", "attention kernel"),
    ("", "ncclDevKernel_AllReduce_Sum_f32", "collective"), ("", "MemcpyD2D", "copy"), ("multiply reduce add", "", "reduction"), ("transpose", "", "copy"),
    ("gather", "", "other"), ("rng-bit-generator", "", "other"), ("convert multiply", "", "element-wise"), ("copy dot add", "", "matrix product")])
def test_kinds(does: str, kernel: str, kind: str) -> None:
    """Kernels of libraries by their name, instructions by what they do; a fusion with a matrix product in it is one."""
    assert profiling.kind(does, kernel) == kind


def test_kernels_of_a_cuda_graph_are_found_by_name() -> None:
    """They carry the graph's instruction, not theirs; what a library runs is said to be a library's."""
    events = [("command_buffer_1", "loop_fusion_3", 2_000_000), ("command_buffer_1", "nvjet_x", 3_000_000), ("add.5", "add.5", 1_000_000)]
    assert profiling.summed(events, PROGRAM) == pytest.approx({
        ("stacking of layers", "decoder/mlp backward"): 2e-3, ("matrix product", "library kernels"): 3e-3, ("element-wise", "other"): 1e-3})


def test_loops_count_without_what_runs_in_them() -> None:
    """Own times add up to the time that is covered, at every depth."""
    events = [(0, 100, "while"), (10, 40, "call"), (15, 25, "dot"), (50, 90, "dot"), (120, 130, "add")]
    assert sorted(profiling.own_times(events)) == [("add", 10), ("call", 20), ("dot", 10), ("dot", 40), ("while", 30)]


def test_a_trace_of_a_tpu(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events have their HLO text for a name and say no `hlo_op`; lines that tell the same once more and those of the host do not count."""
    def event(name: str, start: int, **stats: Any) -> types.SimpleNamespace:
        return types.SimpleNamespace(name=name, start_ns=start, duration_ns=1_000_000, stats=list(stats.items()))

    call = '%custom-call.4 = (bf16[8,8]{1,0}, s8[4]{0}) custom-call(%transpose.1, %b), custom_call_target="x"'
    events = [event("%loop_fusion.3 = f32[4,8,8]{2,1,0} fusion(%reduce.7), kind=kLoop", 0, hlo_category="loop fusion", tf_op="x"), event(call, 1_000_000, flops=3),
              event("%add.5 = f32[8,8]{1,0} add(%a, %b)", 2_000_000, hlo_op="add.5"), event("%copy.8 = f32[8]{0} copy(%dot.1)", 3_000_000)]
    lines = [types.SimpleNamespace(name="XLA Modules", events=[event("jit_traced(7)", 0, hlo_op="x")]), types.SimpleNamespace(name="XLA Ops", events=events)]
    planes = [types.SimpleNamespace(name="/device:TPU:0", lines=lines),
              types.SimpleNamespace(name="/host:CPU", lines=[types.SimpleNamespace(name="python", events=[event("main", 0)])])]
    (tmp_path / "a.xplane.pb").touch()
    monkeypatch.setattr(jax.profiler, "ProfileData", types.SimpleNamespace(from_file=lambda path: types.SimpleNamespace(planes=planes)))
    assert profiling.summed(profiling.read(str(tmp_path)), PROGRAM) == pytest.approx({
        ("stacking of layers", "decoder/mlp backward"): 1e-3, ("matrix product", "encoder/attn"): 1e-3, ("element-wise", "other"): 1e-3,
        ("copy", "library kernels"): 1e-3})


@pytest.mark.usefixtures("optimised")
def test_a_real_trace_adds_up(tmp_path: pathlib.Path) -> None:
    """Matrix products of a traced function are found, in more time than nothing."""
    step = jax.jit(lambda x: jnp.tanh(x @ x).sum()).lower(jnp.ones((512, 512))).compile()
    step(jnp.ones((512, 512)))
    found = profiling.profile(lambda n: [step(jnp.ones((512, 512))).block_until_ready() for _ in range(n)], step.as_text(), str(tmp_path), wall=1.0)
    assert sum(found.by(0).values()) == pytest.approx(sum(found.by(1).values())) and found.by(0)["matrix product"] > 0
    assert len(found.lines()) == 3 and "matrix product" in found.lines()[1]


def test_no_trace_is_one_line(tmp_path: pathlib.Path) -> None:
    """A folder without one is named."""
    with pytest.raises(UserError, match="no trace"):
        profiling.read(str(tmp_path))

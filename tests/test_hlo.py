"""Compiled programs read: shapes, loops, groups, products and bytes by hand, and the collectives of the real step on eight devices."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tiny

from videomae_jax import config as configs
from videomae_jax import hlo, optim, parallel, program_text, topologies
from videomae_jax.assembly import assemble

pytestmark = pytest.mark.usefixtures("optimised")

PROGRAM = """HloModule jit_step, is_scheduled=true

%fused_slice (param_0.1: f32[12,8,4], param_1.1: s32[]) -> f32[8,4] {
  %param_0.1 = f32[12,8,4]{2,1,0:T(8,128)} parameter(0)
  %param_1.1 = s32[]{:T(128)} parameter(1)
  %dynamic-slice.1 = f32[1,8,4]{2,1,0:T(8,128)} dynamic-slice(%param_0.1, %param_1.1), dynamic_slice_sizes={1,8,4}
  ROOT %bitcast.1 = f32[8,4]{1,0:T(8,128)} bitcast(%dynamic-slice.1)
}

%fused_product (param_0.2: f32[12,8,4], param_1.2: s32[], param_2.2: bf16[16,8]) -> bf16[16,4] {
  %param_0.2 = f32[12,8,4]{2,1,0:T(8,128)} parameter(0)
  %param_1.2 = s32[]{:T(128)} parameter(1)
  %param_2.2 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} parameter(2)
  %fusion.2 = f32[8,4]{1,0:T(8,128)} fusion(%param_0.2, %param_1.2), kind=kLoop, calls=%fused_slice
  ROOT %convolution.1 = bf16[16,4]{1,0:T(8,128)(2,1)} convolution(%param_2.2, %fusion.2), dim_labels=bf_io->bf
}

%fused_update (param_0.3: bf16[12,16,4], param_1.3: bf16[16,4], param_2.3: s32[]) -> bf16[12,16,4] {
  %param_0.3 = bf16[12,16,4]{2,1,0} parameter(0)
  %param_1.3 = bf16[16,4]{1,0} parameter(1)
  %bitcast.3 = bf16[1,16,4]{2,1,0} bitcast(%param_1.3)
  %param_2.3 = s32[] parameter(2)
  ROOT %dynamic-update-slice.3 = bf16[12,16,4]{2,1,0} dynamic-update-slice(%param_0.3, %bitcast.3, %param_2.3)
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.9 = f32[] add(%a, %b)
}

%condition (state.1: (s32[], f32[12,8,4], bf16[16,8], bf16[12,16,4])) -> pred[] {
  %constant.12 = s32[]{:T(128)} constant(12)
  %state.1 = (s32[]{:T(128)}, f32[12,8,4]{2,1,0:T(8,128)}, bf16[16,8]{1,0:T(8,128)(2,1)S(1)}, /*index=3*/bf16[12,16,4]{2,1,0}) parameter(0)
  %get-tuple-element.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%get-tuple-element.1, %constant.12), direction=LT
}

%body (state.2: (s32[], f32[12,8,4], bf16[16,8], bf16[12,16,4])) -> (s32[], f32[12,8,4], bf16[16,8], bf16[12,16,4]) {
  %state.2 = (s32[]{:T(128)}, f32[12,8,4]{2,1,0:T(8,128)}, bf16[16,8]{1,0:T(8,128)(2,1)S(1)}, /*index=3*/bf16[12,16,4]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state.2), index=0
  %weights = f32[12,8,4]{2,1,0:T(8,128)} get-tuple-element(%state.2), index=1
  %x = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%state.2), index=2
  %out = bf16[12,16,4]{2,1,0} get-tuple-element(%state.2), index=3
  %product = bf16[16,4]{1,0:T(8,128)(2,1)} fusion(%weights, %i, %x), kind=kOutput, calls=%fused_product
  %all-gather-start.1 = (bf16[16,4]{1,0}, bf16[64,4]{1,0}) all-gather-start(%product), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %all-gather-done.1 = bf16[64,4]{1,0} all-gather-done(%all-gather-start.1)
  %update = bf16[12,16,4]{2,1,0} fusion(%out, %product, %i), kind=kLoop, calls=%fused_update
  ROOT %tuple.2 = (s32[]{:T(128)}, f32[12,8,4]{2,1,0:T(8,128)}, bf16[16,8]{1,0:T(8,128)(2,1)S(1)}, bf16[12,16,4]{2,1,0}) tuple(%i, %weights, %x, %update)
}

ENTRY %main (state.3: (s32[], f32[12,8,4], bf16[16,8], bf16[12,16,4]), g: f32[100]) -> f32[100] {
  %state.3 = (s32[]{:T(128)}, f32[12,8,4]{2,1,0:T(8,128)}, bf16[16,8]{1,0:T(8,128)(2,1)S(1)}, bf16[12,16,4]{2,1,0}) parameter(0)
  %g = f32[100]{0} parameter(1)
  %while.1 = (s32[]{:T(128)}, f32[12,8,4]{2,1,0:T(8,128)}, bf16[16,8]{1,0:T(8,128)(2,1)S(1)}, bf16[12,16,4]{2,1,0}) while(%state.3), condition=%condition, body=%body
  %reserve = f32[9999]{0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %all-reduce.1 = f32[100]{0} all-reduce(%g), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%sum
}
"""


@pytest.fixture(scope="module")
def program() -> hlo.Program:
    """A stack of twelve layers in a loop, as a TPU's compiler writes it."""
    return hlo.Program(PROGRAM, devices=8)


def of(program: hlo.Program, computation: str, name: str) -> tuple[Any, Any]:
    """An instruction and its computation."""
    return program.computations[computation][name], program.computations[computation]


def test_loops_are_counted_as_often_as_they_run(program: hlo.Program) -> None:
    """The limit stands in the condition, or where XLA has noted it."""
    assert program.entry == "main"
    assert {(i.name, times) for i, _, times, loop in program.runs() if loop and i.op == "fusion"} == {("product", 12), ("update", 12)}
    noted = hlo.Program(PROGRAM.replace("condition=%condition, body=%body", 'condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}'), devices=8)
    assert noted.trips(noted.computations["main"]["while.1"]) == 5


def test_products_by_hand(program: hlo.Program) -> None:
    """2 M N K, within fusions too."""
    assert program.flops(*of(program, "body", "product")) == 2 * 16 * 8 * 4
    assert sum(program.flops(i, body) * times for i, body, times, _ in program.runs()) == 12 * 2 * 16 * 8 * 4


@pytest.mark.parametrize(("name", "results", "products"), [
    ("splash_mha_fwd_segmented_residuals.1", "bf16[4,16,256,88]", 2), ("splash_mha_dq_segmented_no_residuals.7", "bf16[4,16,256,88]", 3),
    ("splash_mha_dkv_segmented_no_residuals.1", "(bf16[4,16,128,88], bf16[4,16,128,88])", 4),
    ("splash_mha_dkv_segmented_no_residuals.2", "(bf16[4,1,16,256,88], bf16[4,16,128,88], bf16[4,16,128,88])", 5), ("other", "bf16[4,16,256,88]", 0)])
def test_attention_kernels_count_their_products(name: str, results: str, products: int) -> None:
    """A kernel is a call that the text says nothing about: each product is of 256 queries and 128 keys of 88 channels."""
    text = f"""ENTRY %main (m: s8[1,1,1], q: bf16[4,16,88,256], k: bf16[4,16,88,128]) -> f32[1] {{
  %m = s8[1,1,1] parameter(0)
  %q = bf16[4,16,88,256] parameter(1)
  %k = bf16[4,16,88,128] parameter(2)
  ROOT %{name} = {results} custom-call(%m, %q, %k, %k), custom_call_target="tpu_custom_call"
}}"""
    found = hlo.Program(text, devices=1)
    assert found.flops(*of(found, "main", name)) == products * 2 * 4 * 16 * 256 * 128 * 88


def test_what_goes_to_the_host_takes_its_time() -> None:
    """One layer of twelve out and one back: the slice counts, not the stack, and it hides behind what is computed meanwhile."""
    text = """ENTRY %main (kept: bf16[12,16,4], x: bf16[1,16,4], i: s32[]) -> bf16[1,16,4] {
  %kept = bf16[12,16,4]{2,1,0:T(8,128)S(5)} parameter(0)
  %x = bf16[1,16,4]{2,1,0:T(8,128)} parameter(1)
  %i = s32[]{:T(128)} parameter(2)
  %out = ((bf16[12,16,4]{2,1,0:T(8,128)S(5)}, bf16[1,16,4]{2,1,0:T(8,128)}, s32[]{:T(128)}), bf16[12,16,4]{2,1,0:T(8,128)S(5)}, u32[]{:S(2)}) dynamic-update-slice-start(%kept, %x, %i)
  %done = bf16[12,16,4]{2,1,0:T(8,128)S(5)} dynamic-update-slice-done(%out)
  %back = ((bf16[12,16,4]{2,1,0:T(8,128)S(5)}, s32[]{:T(128)}), bf16[1,16,4]{2,1,0:T(8,128)}, u32[]{:S(2)}) dynamic-slice-start(%done, %i)
  ROOT %y = bf16[1,16,4]{2,1,0:T(8,128)} dynamic-slice-done(%back)
}"""
    found = hlo.Program(text, devices=1)
    time = found.time(hlo.Rates(1.0, 1e9, lambda one: 0.0, host=128.0))
    assert time.host == time.step == 2.0 and time.memory == pytest.approx(2 * 128 / 1e9) and time.exposed == pytest.approx(2.0)
    fast = found.time(hlo.Rates(1.0, 128.0, lambda one: 0.0, host=256.0))
    assert fast.host == 1.0 and fast.step == fast.memory == 2.0 and fast.exposed == 0


@pytest.mark.parametrize(("line", "flops"), [
    ("dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}", 2 * 6 * 5 * 7),
    ("dot(%c, %d), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}", 2 * 3 * 6 * 5 * 7),
    # A TPU writes the batch of a product as the window of a convolution, dilated by its own length.
    ("convolution(%e, %f), window={size=3x2 stride=2x1 lhs_dilate=3x2}, dim_labels=0b1f_0o1i->01bf", 2 * 3 * 2 * 6 * 5 * 7),
    ("convolution(%a, %b), window={size=1}, dim_labels=0bf_io0->0bf", 2 * 6 * 5 * 7)])
def test_forms_of_a_product(line: str, flops: float) -> None:
    """Dots with a batch, and what a TPU makes of them."""
    result = {"%a": "f32[6,7]", "%c": "f32[3,6,5]", "%e": "f32[3,2,6,5]"}[line.split("(")[1].split(",")[0]]
    text = f"""ENTRY %main (a: f32[6,5]) -> f32[1] {{
  %a = f32[6,5] parameter(0)
  %b = f32[5,7] parameter(1)
  %c = f32[3,6,5] parameter(2)
  %d = f32[3,5,7] parameter(3)
  %e = bf16[3,6,2,5] parameter(4)
  %f = bf16[3,7,2,5] parameter(5)
  ROOT %y = {result.replace("5]", "7]")} {line}
}}"""
    found = hlo.Program(text, devices=1)
    assert found.flops(*of(found, "main", "y")) == pytest.approx(flops, rel=1e-12)  # a square root lies in between


def test_bytes_by_hand(program: hlo.Program) -> None:
    """One layer of the stack is read and one written; VMEM is no traffic, nor is memory that is only reserved."""
    assert program.traffic(*of(program, "body", "product")) == 8 * 4 * 4 + 16 * 4 * 2
    assert program.traffic(*of(program, "body", "update")) == 2 * 16 * 4 * 2
    assert program.traffic(*of(program, "main", "reserve")) == program.traffic(*of(program, "main", "while.1")) == 0


def test_collectives_by_hand(program: hlo.Program) -> None:
    """Bytes, times, groups and whether they hide; a ring sends (n - 1)/n of a gathered array and twice that of a reduced one."""
    gather, reduce = program.collectives
    assert (gather.kind, gather.bytes, gather.times, gather.loop, gather.hidden) == ("all-gather", 4 * 128, 12, True, True)
    assert gather.groups == ((0, 2, 4, 6), (1, 3, 5, 7)) and gather.wire(8) == 0.75 * 512
    assert (reduce.kind, reduce.bytes, reduce.times, reduce.loop, reduce.hidden) == ("all-reduce", 400, 1, False, False)
    assert reduce.groups == ((0, 1), (2, 3), (4, 5), (6, 7)) and reduce.wire(8) == 400
    assert gather.crosses(lambda i: i // 4, 8) and not reduce.crosses(lambda i: i // 2, 8)
    everyone = dataclasses.replace(reduce, groups=())
    assert everyone.crosses(lambda i: i // 4, 8) and not everyone.crosses(lambda i: 0, 8)


@pytest.mark.parametrize(("text", "groups"), [
    ("replica_groups={{0,1},{2,3}}, x", ((0, 1), (2, 3))), ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))), ("replica_groups={}", ()),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}, use_global_device_ids=true", ((0, 2), (1, 3))),
    ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, dimensions={0}", ((0, 1, 2, 3), (4, 5, 6, 7))),
    ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, dimensions={0}", ((0, 4), (1, 5), (2, 6), (3, 7))),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),))])
def test_forms_of_groups(text: str, groups: Any) -> None:
    """All that XLA writes."""
    assert program_text.groups(text, "all-reduce") == groups


def test_an_unknown_form_of_groups_is_an_error() -> None:
    """A wrong group would be a wrong number of bytes."""
    with pytest.raises(ValueError, match="unknown form"):
        program_text.groups("replica_groups=<new>", "all-reduce")


def test_cycles_that_the_compiler_expects() -> None:
    """An instruction takes the longest of its operations, its bytes and its cycles, which a loop repeats; the roofline knows none of them."""
    text = """%body (c: (s32[], f32[64])) -> (s32[], f32[64]) {
  %c = (s32[], f32[64]) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %x = f32[64] get-tuple-element(%c), index=1
  %slow = f32[64] negate(%x), backend_config={"window_config":{"estimated_cycles":"3000"}}
  %quick = f32[64] negate(%slow), backend_config={"window_config":{"estimated_cycles":"1"}}
  ROOT %r = (s32[], f32[64]) tuple(%i, %quick)
}

%condition (c: (s32[], f32[64])) -> pred[] {
  %c = (s32[], f32[64]) parameter(0)
  %n = s32[] constant(5)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: (s32[], f32[64])) -> (s32[], f32[64]) {
  %p = (s32[], f32[64]) parameter(0)
  ROOT %loop = (s32[], f32[64]) while(%p), condition=%condition, body=%body
}"""
    bytes_ = 2 * 4 * 64
    time = hlo.Program(text, devices=1).time(hlo.Rates(flops=1e9, memory=bytes_, wire=lambda c: 0.0, cycles=1000.0))
    assert (time.step, time.roofline) == (pytest.approx(5 * (3 + 1)), pytest.approx(5 * (1 + 1)))
    assert hlo.Program(text, devices=1).time(hlo.Rates(flops=1e9, memory=bytes_, wire=lambda c: 0.0)).step == pytest.approx(10)


@pytest.mark.parametrize(("chip", "units", "side"), [("v5e", 4, 128), ("v5p", 8, 128), ("v6e", 4, 256), ("tpu7x", 8, 256)])
def test_clocks_are_those_of_the_peaks(chip: str, units: int, side: int) -> None:
    """Multiply-adds a cycle times cycles are the data sheet's peak."""
    one = topologies.CHIPS[chip]
    assert 2 * units * side**2 * one.clock == pytest.approx(one.tflops * 1e12, rel=1e-2)


def test_time_by_hand(program: hlo.Program) -> None:
    """The longer of operations and bytes for each instruction; what is issued ahead hides behind its loop, the rest adds."""
    layer = 256 / 10 + 256 / 10
    slow = program.time(hlo.Rates(flops=1e9, memory=10, wire=lambda c: 0.0))
    assert slow.step == pytest.approx(12 * layer) and slow.exposed == 0
    busy = program.time(hlo.Rates(flops=1e9, memory=10, wire=lambda c: {"all-gather": layer / 2, "all-reduce": 3.0}[c.kind]))
    assert busy.step == pytest.approx(12 * layer + 3) and busy.exposed == pytest.approx(3) and busy.wire == pytest.approx(6 * layer + 3)
    exposed = program.time(hlo.Rates(flops=1e9, memory=10, wire=lambda c: 2 * layer if c.loop else 0.0))
    assert exposed.step == pytest.approx(24 * layer)
    assert program.time(hlo.Rates(flops=1.0, memory=1e9, wire=lambda c: 0.0)).step == pytest.approx(12 * 1024)


# -- the real step on eight devices ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[(2, 4, 1), (2, 2, 2)], ids=str)
def sharded(request: pytest.FixtureRequest) -> Any:
    """configs/tiny.py with Adam, its stack of four layers the bulk of the parameters: (run, compiled step) on data x fsdp x tensor."""
    small = tiny.tiny(configs.load("configs/tiny.py"))
    small.objective.encoder.width = 32
    small.objective.encoder.depth = 4
    small.optimizers.main = configs.spec(optim.AdamW, schedule=optim.Schedule(base=1e-3, warmup="0", unit=0))
    small.mesh = dict(zip(parallel.AXES, request.param, strict=True)) | {"replicated": 1.0}
    run = assemble(small, trust=tiny.TRUST)
    return run, run.compile()


OFFLOADED = """HloModule jit_step, is_scheduled=true

%copied (param_0.1: bf16[12,16,4]) -> bf16[12,16,4] {
  %param_0.1 = bf16[12,16,4]{2,1,0:T(16,128)(2,1)} parameter(0)
  ROOT %copy.1 = bf16[12,16,4]{2,1,0:T(8,128)(2,1)} copy(%param_0.1)
}

%fused_update (param_0.3: bf16[12,16,4], param_1.3: bf16[16,4], param_2.3: s32[]) -> bf16[12,16,4] {
  %param_0.3 = bf16[12,16,4]{2,1,0} parameter(0)
  %param_1.3 = bf16[16,4]{1,0} parameter(1)
  %bitcast.3 = bf16[1,16,4]{2,1,0} bitcast(%param_1.3)
  %param_2.3 = s32[] parameter(2)
  %tiled = bf16[12,16,4]{2,1,0:T(8,128)(2,1)} fusion(%param_0.3), kind=kLoop, output_to_operand_aliasing={{}: (0, {})}, calls=%copied
  ROOT %dynamic-update-slice.3 = bf16[12,16,4]{2,1,0} dynamic-update-slice(%tiled, %bitcast.3, %param_2.3)
}

%gathered (param_0.4: bf16[100], param_1.4: token[]) -> bf16[800] {
  %param_0.4 = bf16[100]{0} parameter(0)
  %param_1.4 = token[] parameter(1)
  ROOT %all-gather.4 = bf16[800]{0} all-gather(%param_0.4), replica_groups=mesh['a'=8] {'a'}, dimensions={0}
}, execution_thread="sparsecore"

%moved (param_0.5: f32[1000]) -> f32[1000] {
  %param_0.5 = f32[1000]{0} parameter(0)
  ROOT %copy.5 = f32[1000]{0} copy(%param_0.5)
}, execution_thread="sparsecore"

ENTRY %main (stack: bf16[12,16,4], x: bf16[16,4], i: s32[], w: bf16[100], y: f32[1000]) -> bf16[12,16,4] {
  %stack = bf16[12,16,4]{2,1,0} parameter(0)
  %x = bf16[16,4]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %w = bf16[100]{0} parameter(3)
  %y = f32[1000]{0} parameter(4)
  %none = token[] after-all()
  %gather.start = ((bf16[100]{0}, token[]), bf16[800]{0}) call-start(%w, %none), async_execution_thread="sparsecore", to_apply=%gathered
  %move.start = ((f32[1000]{0}), f32[1000]{0}, u32[]{:S(8)}) call-start(%y), async_execution_thread="sparsecore", to_apply=%moved
  %update = bf16[12,16,4]{2,1,0} fusion(%stack, %x, %i), kind=kLoop, calls=%fused_update
  %gather.done = bf16[800]{0} call-done(%gather.start)
  %move.done = f32[1000]{0} call-done(%move.start)
  ROOT %out = bf16[12,16,4]{2,1,0} bitcast(%update)
}
"""


def test_what_other_cores_do_is_found_and_hides() -> None:
    """TPU7x gathers on its SparseCore: a call that the program does not wait for; an update in place through another tiling moves its slice alone."""
    program = hlo.Program(OFFLOADED, devices=8)
    (one,) = program.collectives
    assert (one.kind, one.bytes, one.hidden, one.caller, len(one.groups[0])) == ("all-gather", 8 * 100 * 2, True, "gather.start", 8)
    assert program.traffic(*of(program, "main", "update")) == 2 * (16 * 4 * 2)
    assert program.beside(program.computations["main"]["move.start"]) == 2 * 4000 and program.traffic(*of(program, "main", "move.start")) == 0
    slow = program.time(hlo.Rates(1.0, 1000.0, lambda c: 5.0))
    assert slow.memory == pytest.approx((256 + 8000) / 1000) and slow.wire == 5.0
    assert slow.step == pytest.approx(8.0), "the longest of 0.256 s of computing, 5 s of the wire and 8 s of the other core's moving"
    assert program.time(hlo.Rates(1.0, 1e6, lambda c: 5.0)).step == 5.0


CARRIED = """HloModule jit_step, is_scheduled=true

%begin (param_0.1: bf16[64,8]) -> (bf16[64,8], bf16[512,8]) {
  %param_0.1 = bf16[64,8]{1,0} parameter(0)
  %all-gather.1 = bf16[512,8]{1,0} all-gather(%param_0.1), channel_id=5, replica_groups={{0,1,2,3,4,5,6,7}}, backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %custom-call.1 = (bf16[64,8]{1,0}, bf16[512,8]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%meanwhile (param_0.2: bf16[64,8], param_1.2: bf16[512,8], param_2.2: f32[100]) -> (f32[100], bf16[64,8], bf16[512,8], bf16[512,8]) {
  %param_0.2 = bf16[64,8]{1,0} parameter(0)
  %param_1.2 = bf16[512,8]{1,0} parameter(1)
  %param_2.2 = f32[100]{0} parameter(2)
  %negate.2 = f32[100]{0} negate(%param_2.2)
  %all-gather.2 = bf16[512,8]{1,0} all-gather(%param_0.2), channel_id=5, replica_groups={{0,1,2,3,4,5,6,7}}, backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
  ROOT %tuple.2 = (f32[100]{0}, bf16[64,8]{1,0}, bf16[512,8]{1,0}, bf16[512,8]{1,0}) tuple(%negate.2, %param_0.2, %param_1.2, %all-gather.2)
}

%end (param_0.3: bf16[64,8], param_1.3: bf16[512,8]) -> bf16[512,8] {
  %param_0.3 = bf16[64,8]{1,0} parameter(0)
  %param_1.3 = bf16[512,8]{1,0} parameter(1)
  %all-gather.3 = bf16[512,8]{1,0} all-gather(%param_0.3), channel_id=5, replica_groups={{0,1,2,3,4,5,6,7}}, backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
  ROOT %custom-call.3 = bf16[512,8]{1,0} custom-call(%param_0.3, %param_1.3, %all-gather.3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (w: bf16[64,8], y: f32[100]) -> bf16[512,8] {
  %w = bf16[64,8]{1,0} parameter(0)
  %y = f32[100]{0} parameter(1)
  %async-collective-start = (bf16[64,8]{1,0}, bf16[512,8]{1,0}) fusion(%w), kind=kCustom, calls=%begin
  %shard = bf16[64,8]{1,0} get-tuple-element(%async-collective-start), index=0
  %whole = bf16[512,8]{1,0} get-tuple-element(%async-collective-start), index=1
  %step = (f32[100]{0}, bf16[64,8]{1,0}, bf16[512,8]{1,0}, bf16[512,8]{1,0}) fusion(%shard, %whole, %y), kind=kOutput, calls=%meanwhile
  %shard.2 = bf16[64,8]{1,0} get-tuple-element(%step), index=1
  %whole.2 = bf16[512,8]{1,0} get-tuple-element(%step), index=2
  ROOT %async-collective-done = bf16[512,8]{1,0} fusion(%shard.2, %whole.2), kind=kCustom, calls=%end
}
"""


def test_a_collective_that_fusions_carry_on_counts_once() -> None:
    """It stands in its start, in what computes meanwhile and in its end; its arrays are handed on there, and only the rest is read and written."""
    program = hlo.Program(CARRIED, devices=8)
    (one,) = program.collectives
    assert (one.kind, one.bytes, one.times, one.hidden, one.caller) == ("all-gather", 512 * 8 * 2, 1, True, "async-collective-start")
    traffic = {i.name: program.traffic(i, body) for i, body, _, _ in program.runs()}
    assert {name: n for name, n in traffic.items() if n} == {"step": 2 * 400}


def test_the_program_does_not_grow_with_the_depth() -> None:
    """Blocks are one loop, so that ViT-g compiles as fast as a model of few layers; unrolled they are not."""
    def operations(**fields: str) -> int:
        small = tiny.tiny(configs.load("configs/tiny.py"))
        configs.override(small, {f"objective.encoder.{k}": v for k, v in fields.items()})
        run = assemble(small, trust=tiny.TRUST, devices=jax.devices()[:1])
        text = run.jitted_step().lower(run.abstract, run.abstract_frozen, *[run.abstract_batch()] * run.draws).as_text()
        return text.count(" = ")

    few, many, unrolled = operations(depth="2"), operations(depth="24"), operations(depth="24", unroll="24")
    assert abs(many - few) < 0.02 * few and unrolled > 1.5 * few


def test_the_step_moves_what_it_must(sharded: Any) -> None:
    """No all-to-all; parameters are gathered a layer at a time; every gradient is reduced once; nothing else is large."""
    run, compiled = sharded
    program = hlo.Program(compiled.as_text(), devices=8)
    assert {c.kind for c in program.collectives} <= {"all-gather", "all-reduce", "reduce-scatter", "collective-permute"}
    params = parallel.unbox(run.abstract.params)
    stacked = [x for path, x in jax.tree_util.tree_leaves_with_path(params) if "stack" in jax.tree_util.keystr(path)]
    single = [x for path, x in jax.tree_util.tree_leaves_with_path(params) if "stack" not in jax.tree_util.keystr(path)]
    largest = max(4 * math.prod(x.shape) for x in single)
    assert max(c.bytes for c in program.collectives if c.kind == "all-gather" and not c.loop) <= largest
    assert largest < max(4 * math.prod(x.shape) for x in stacked)  # so that a stack gathered as a whole would be seen
    gathered = sum(c.bytes * c.times for c in program.collectives if c.kind == "all-gather")
    reduced = sum(c.bytes * c.times for c in program.collectives if c.kind in ("all-reduce", "reduce-scatter"))
    split = sum(4 * math.prod(x.shape) for x, s in zip(jax.tree.leaves(params), jax.tree.leaves(run.shardings.params), strict=True)
                if not s.is_fully_replicated)
    # What it was when every parameter was gathered for both passes and every gradient reduced once; a tensor axis gathers and reduces activations, too.
    known = {1: (1.846, 1.292), 2: (1.0, 1.160)}[run.mesh.shape["tensor"]]
    assert (gathered / split, reduced / split) == pytest.approx(known, rel=0.1)


def test_the_state_is_donated(sharded: Any) -> None:
    """Every byte of the new state lies where the old one lay."""
    run, compiled = sharded
    held = sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in zip(
        jax.tree.leaves(run.abstract), jax.tree.leaves(run.shardings), strict=True) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))
    assert held <= compiled.memory_analysis().alias_size_in_bytes <= held + 16  # the key's two words
    text = jax.jit(lambda x: x + 1).lower(jnp.zeros(4)).compile()
    assert text.memory_analysis().alias_size_in_bytes == 0

"""The emulator on PTX written by hand: instructions against NumPy, and every kind of fault where it is planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpu_tools.emulator.launch import launch
from gpu_tools.emulator.ptx import Code
from gpu_tools.findings import Findings

HEAD = """
.file 1 "kernel.py"
.visible .entry kernel(.param .u64 .ptr .global .align 1 in, .param .u64 .ptr .global .align 1 out, .param .u32 number)
{
.reg .pred %p<4>; .reg .b16 %rs<8>; .reg .b32 %r<16>; .reg .f32 %f<8>; .reg .b64 %rd<16>; .reg .f64 %fd<8>;
.loc 1 1 0
ld.param.b64 %rd0, [in]; ld.param.b64 %rd1, [out]; ld.param.b32 %r0, [number];
mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x;
mul.wide.u32 %rd2, %r1, 8; add.s64 %rd3, %rd0, %rd2; add.s64 %rd4, %rd1, %rd2;
mov.u32 %r3, global_smem; shl.b32 %r4, %r1, 3; add.s32 %r5, %r3, %r4;
"""


def run(
    body: str,
    given: torch.Tensor | None = None,
    warps: int = 2,
    programs: int = 1,
    shared: int = 0,
    backwards: bool = False,
) -> tuple[Findings, torch.Tensor]:
    """Runs a kernel whose threads have their own 8 bytes of `in` at %rd3, of `out` at %rd4, and of shared memory at
    %r5, their number in %r1 and the program's in %r2."""
    given = torch.arange(64, dtype=torch.float64) if given is None else given
    out, findings = torch.zeros(64, dtype=given.dtype), Findings()
    code = Code(HEAD + body + "\nret;\n}\n")
    launch(findings, "kernel", code, warps, shared, (programs, 1, 1), [given, out, 7], backwards)
    return findings, out


def computed(body: str, given: torch.Tensor) -> np.ndarray:
    """What a kernel makes of 64 numbers, without any findings."""
    findings, out = run(body, given)
    assert not findings.counts
    return out.numpy()


# --- instructions -----------------------------------------------------------------------------------------------------

INTEGERS = torch.cat([torch.arange(-31, 31), torch.tensor([2**62 + 12345, -(2**63) + 99])])
FLOATS = torch.cat([torch.linspace(-3, 3, 61), torch.tensor([float("nan"), float("inf"), -0.0])]).double()
X, F = INTEGERS.numpy(), FLOATS.numpy()
U = X.view(np.uint64)
with np.errstate(invalid="ignore"):
    QUOTIENT, ROOT = F / F, np.sqrt(F)


@pytest.mark.parametrize(
    "instruction, expected",
    [
        ("add.s64 %rd6, %rd5, -7", X - 7),
        ("mul.lo.s64 %rd6, %rd5, 3", X * 3),
        ("mad.lo.s64 %rd6, %rd5, 5, %rd5", X * 6),
        ("mul.hi.u64 %rd6, %rd5, 12345678901", [int(u) * 12345678901 >> 64 for u in U]),
        ("mul.hi.s64 %rd6, %rd5, 12345678901", [int(x) * 12345678901 >> 64 for x in X]),
        ("and.b64 %rd6, %rd5, 12", X & 12),
        ("not.b64 %rd6, %rd5", ~X),
        ("shl.b64 %rd6, %rd5, 3", X << 3),
        ("shl.b64 %rd6, %rd5, 64", 0 * X),
        ("shr.s64 %rd6, %rd5, 2", X >> 2),
        ("shr.s64 %rd6, %rd5, 99", X >> 63),
        ("shr.u64 %rd6, %rd5, 60", U >> np.uint64(60)),
        ("shr.u64 %rd6, %rd5, 64", 0 * X),
        ("div.s64 %rd6, %rd5, 4", [int(int(x) / 4) if abs(x) < 2**50 else -(-x // 4) if x < 0 else x // 4 for x in X]),
        ("rem.s64 %rd6, %rd5, 4", np.fmod(X, 4)),
        ("min.s64 %rd6, %rd5, 3", np.minimum(X, 3)),
        ("max.u64 %rd6, %rd5, 3", np.maximum(U, np.uint64(3))),
        ("bfe.s64 %rd6, %rd5, 1, 3", [((int(u) >> 1 & 7) ^ 4) - 4 for u in U]),
        ("bfe.u64 %rd6, %rd5, 1, 3", [int(u) >> 1 & 7 for u in U]),
        ("cvt.u32.u64 %r6, %rd5; cvt.s64.s32 %rd6, %r6", X.astype(np.int32)),
        ("cvt.u16.u64 %rs0, %rd5; mul.wide.s16 %r6, %rs0, 300; cvt.s64.s32 %rd6, %r6",
         X.astype(np.int16).astype(np.int64) * 300),
        ("mov.b64 {%r6, %r7}, %rd5; mov.b64 %rd6, {%r7, %r6}", (U >> np.uint64(32)) | (U << np.uint64(32))),
        ("cvt.u32.u64 %r6, %rd5; prmt.b32 %r7, %r6, 0, 0x4410; cvt.u64.u32 %rd6, %r7", U & np.uint64(0xFFFF)),
        ("popc.b64 %r6, %rd5; cvt.u64.u32 %rd6, %r6", [int(u).bit_count() for u in U]),
        ("setp.lt.s64 %p0, %rd5, 3; selp.b64 %rd6, 5, 6, %p0", np.where(X < 3, 5, 6)),
        ("setp.lt.u64 %p0, %rd5, 3; selp.b64 %rd6, 5, 6, %p0", np.where(U < 3, 5, 6)),
        ("setp.gt.s64 %p0|%p1, %rd5, 3; selp.b64 %rd6, 5, 6, %p1", np.where(X > 3, 6, 5)),
        ("setp.gt.s64 %p0, %rd5, 3; setp.lt.and.s64 %p1, %rd5, 9, !%p0; selp.b64 %rd6, 1, 0, %p1", X <= 3),
        ("setp.gt.s64 %p0, %rd5, 3; not.pred %p1, %p0; selp.b64 %rd6, 1, 0, %p1", X <= 3),
        ("mov.b64 %rd6, 1; setp.gt.s64 %p0, %rd5, 3; @%p0 mov.b64 %rd6, 2; @!%p0 add.s64 %rd6, %rd6, 7",
         np.where(X > 3, 2, 8)),
    ],
)  # fmt: skip
def test_integers(instruction: str, expected) -> None:
    found = computed(f"ld.global.b64 %rd5, [%rd3]; {instruction}; st.global.b64 [%rd4], %rd6;", INTEGERS)
    assert (found == np.array(expected).astype(np.int64)).all()


@pytest.mark.parametrize(
    "instruction, expected",
    [
        ("add.rn.f64 %fd1, %fd0, 0d3FF8000000000000", F + 1.5),
        ("fma.rn.f64 %fd1, %fd0, %fd0, %fd0", F * F + F),
        ("neg.f64 %fd1, %fd0", -F),
        ("div.rn.f64 %fd1, %fd0, %fd0", QUOTIENT),
        ("min.f64 %fd1, %fd0, 0d0000000000000000", np.fmin(F, 0)),
        ("sqrt.rn.f64 %fd1, %fd0", ROOT),
        ("copysign.f64 %fd1, %fd0, 0d3FF8000000000000", np.copysign(1.5, F)),
        ("cvt.rn.f32.f64 %f0, %fd0; ex2.approx.f32 %f1, %f0; cvt.f64.f32 %fd1, %f1", np.exp2(F.astype(np.float32))),
        ("cvt.rni.s32.f64 %r6, %fd0; cvt.rn.f64.s32 %fd1, %r6", [0, 2**31 - 1]),
        ("setp.lt.f64 %p0, %fd0, 0d0000000000000000; selp.f64 %fd1, %fd0, 0d0000000000000000, %p0",
         np.where(F < 0, F, 0)),
        ("setp.geu.f64 %p0, %fd0, 0d0000000000000000; selp.f64 %fd1, 0d0000000000000000, %fd0, %p0",
         np.where(F < 0, F, 0)),
        ("setp.ne.f64 %p0, %fd0, %fd0; selp.f64 %fd1, 0d3FF8000000000000, 0d0000000000000000, %p0", 0 * np.arange(64)),
        ("setp.nan.f64 %p0, %fd0, %fd0; selp.f64 %fd1, 0d3FF8000000000000, 0d0000000000000000, %p0",
         np.where(np.isnan(F), 1.5, 0)),
    ],
)  # fmt: skip
def test_floating_point_numbers(instruction: str, expected) -> None:
    found = computed(f"ld.global.b64 %fd0, [%rd3]; {instruction}; st.global.b64 [%rd4], %fd1;", FLOATS)
    if "cvt.rni" in instruction:
        # NaN to 0, infinity to the largest integer
        assert (found[:61] == np.rint(F[:61])).all()
        found = found[61:63]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "instruction, source",
    [
        ("shfl.sync.bfly.b32 %r7, %r6, 5, 31, -1", lambda lane: lane ^ 5),
        ("shfl.sync.idx.b32 %r7, %r6, 3, 31, -1", lambda lane: 3),
        ("shfl.sync.idx.b32 %r7, %r6, 3, 6175, -1", lambda lane: lane // 8 * 8 + 3),
        ("shfl.sync.up.b32 %r7, %r6, 4, 0, -1", lambda lane: lane - 4 if lane >= 4 else lane),
        ("shfl.sync.down.b32 %r7|%p0, %r6, 4, 31, -1", lambda lane: lane + 4 if lane < 28 else lane),
        ("redux.sync.max.s32 %r7, %r6, -1", lambda lane: 31),
        ("setp.gt.s32 %p0, %r1, 31; vote.sync.any.pred %p1, %p0, -1; selp.b32 %r7, %r6, 0, %p1", None),
        ("setp.gt.s32 %p0, %r1, 61; vote.sync.ballot.b32 %r7, %p0, -1", None),
    ],
)
def test_what_lanes_do_together(instruction: str, source) -> None:
    body = f"add.s32 %r6, %r1, 100; {instruction}; cvt.s64.s32 %rd6, %r7; st.global.b64 [%rd4], %rd6;"
    thread = np.arange(64)
    if source is not None:
        expected = np.array([t // 32 * 32 + source(t % 32) + 100 for t in thread])
    elif "ballot" in instruction:
        expected = np.where(thread < 32, 0, np.int32(np.uint32(3 << 30).view(np.int32)))
    else:
        expected = np.where(thread < 32, 0, thread + 100)
    assert (computed(body, INTEGERS) == expected).all()


def test_branches_and_loops() -> None:
    """Every thread counts as far as its own number, odd ones add a thousand, and late ones are waited for."""
    body = """
    mov.b32 %r6, 0;
$LOOP:
    setp.ge.s32 %p0, %r6, %r1;
    @%p0 bra $DONE;
    add.s32 %r6, %r6, 1;
    bra.uni $LOOP;
$DONE:
    and.b32 %r7, %r1, 1; setp.eq.s32 %p1, %r7, 0;
    @%p1 bra $EVEN;
    add.s32 %r6, %r6, 1000;
$EVEN:
    bar.sync 0;
    add.s32 %r6, %r6, %r0;
    cvt.s64.s32 %rd6, %r6; st.global.b64 [%rd4], %rd6;
    """
    thread = np.arange(64)
    assert (computed(body, INTEGERS) == thread + 7 + thread % 2 * 1000).all()


def test_some_threads_end_early() -> None:
    body = "setp.gt.s32 %p0, %r1, 9; @%p0 ret; st.global.b64 [%rd4], 5;"
    assert (computed(body, INTEGERS) == np.where(np.arange(64) > 9, 0, 5)).all()


@pytest.mark.parametrize("size, copied", [("", True), (", 0", False)])
def test_asynchronous_copies_arrive_when_they_are_waited_for(size: str, copied: bool) -> None:
    body = f"""
    st.shared.b64 [%r5], -1;
    cp.async.ca.shared.global [%r5], [%rd3], 0x8{size}; cp.async.commit_group;
    ld.shared.b64 %rd6, [%r5];
    cp.async.wait_group 0;
    ld.shared.b64 %rd7, [%r5];
    add.s64 %rd7, %rd7, %rd6; st.global.b64 [%rd4], %rd7;
    """
    findings, out = run(body, INTEGERS, shared=512)
    assert not findings.counts and (out == (INTEGERS if copied else 0) - 1).all()


def test_vectors_and_programs() -> None:
    """Two neighbours at a time, by the lower half of the threads of each of two programs."""
    body = """
    setp.gt.s32 %p0, %r1, 15; @%p0 bra $END;
    shl.b32 %r6, %r2, 4; add.s32 %r6, %r6, %r1; mul.wide.u32 %rd2, %r6, 16; add.s64 %rd3, %rd0, %rd2;
    add.s64 %rd4, %rd1, %rd2;
    ld.global.v2.b64 {%rd5, %rd6}, [%rd3]; st.global.v2.b64 [%rd4], {%rd6, %rd5};
$END:
    """
    findings, out = run(body, INTEGERS, programs=2)
    assert not findings.counts and (out.view(-1, 2).flip(1).flatten() == INTEGERS).all()


@pytest.mark.parametrize("backwards", [False, True])
def test_the_last_program_that_runs_wins(backwards: bool) -> None:
    findings, out = run("cvt.s64.s32 %rd5, %r2; st.global.b64 [%rd4], %rd5;", INTEGERS, programs=3, backwards=backwards)
    assert findings.kinds() == {"programs"} and (out == (0 if backwards else 2)).all()


def test_unknown_instructions_are_refused() -> None:
    for body, name in (("atom.global.add.f64 %fd0, [%rd3], %fd0;", "atom"), ("bar.sync 1, 32;", "bar.sync")):
        with pytest.raises(NotImplementedError, match=name):
            run(body)
    with pytest.raises(ValueError, match="no kernel"):
        Code(".version 8.0")


# --- faults -----------------------------------------------------------------------------------------------------------

# the neighbour's eight bytes, in the same warp, of shared memory at %r7 and of `out` at %rd7; and of the other warp
NEIGHBOUR = "xor.b32 %r6, %r1, 1; shl.b32 %r7, %r6, 3; add.s32 %r7, %r7, %r3; mul.wide.u32 %rd6, %r6, 8;"
NEIGHBOUR += "add.s64 %rd7, %rd1, %rd6;"
OTHER_WARP = NEIGHBOUR.replace("%r1, 1", "%r1, 32")
STORE, LOAD = "st.shared.b64 [%r5], %rd0;", "ld.shared.b64 %rd5, [%r7];"
FAULTS = {
    "nothing wrong": (f"{OTHER_WARP} {STORE} bar.sync 0; {LOAD}", set()),
    "another warp's": (f"{OTHER_WARP} {STORE} {LOAD}", {"race"}),
    "another warp's, after a barrier of warps": (f"{OTHER_WARP} {STORE} bar.warp.sync -1; {LOAD}", {"race"}),
    "another lane's": (f"{NEIGHBOUR} {STORE} {LOAD}", {"lanes"}),
    "another lane's, after a barrier of warps": (f"{NEIGHBOUR} {STORE} bar.warp.sync -1; {LOAD}", set()),
    "overwritten": (f"{OTHER_WARP} {STORE} bar.sync 0; {LOAD} {STORE}", {"race"}),
    "global, another warp's": (f"{OTHER_WARP} st.global.b64 [%rd4], 1; ld.global.b64 %rd5, [%rd7];", {"race"}),
    "one address, different numbers": ("cvt.u64.u32 %rd5, %r1; st.global.b64 [%rd1], %rd5;", {"lanes"}),
    "one address, one number": ("st.global.b64 [%rd1], 5;", set()),
    "unwritten": ("ld.shared.b64 %rd5, [%r5];", {"unwritten"}),
    "behind shared memory": ("st.shared.b64 [%r5+512], %rd0;", {"bounds"}),
    "before a tensor": ("ld.global.b64 %rd5, [%rd0+-8];", {"bounds"}),
    "behind a tensor": ("ld.global.b64 %rd5, [%rd3+8];", {"bounds"}),
    "misaligned": ("ld.global.b64 %rd5, [%rd0+4];", {"alignment"}),
    "a barrier for some": ("setp.gt.s32 %p0, %r1, 31; @%p0 bra $A; bar.sync 0; $A: mov.b32 %r6, 0; bar.sync 0;",
                           {"barrier"}),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_planted_is_found(name: str) -> None:
    body, expected = FAULTS[name]
    findings, _ = run(body, shared=512)
    assert findings.kinds() == expected


@pytest.mark.parametrize(
    "body, expected",
    [
        ("st.global.b64 [%rd4], 5;", {"programs"}),
        ("ld.global.b64 %rd5, [%rd4]; setp.eq.s32 %p0, %r2, 2; @%p0 st.global.b64 [%rd4], 5;", {"programs"}),
        ("setp.eq.s32 %p0, %r2, 0; @%p0 st.global.b64 [%rd4], 5; ld.global.b64 %rd5, [%rd4];", {"programs"}),
        ("ld.global.b64 %rd5, [%rd3]; setp.eq.s32 %p0, %r2, 1; @%p0 st.global.b64 [%rd4], 5;", set()),
    ],
    ids=["all store", "the last one stores", "the first one stores", "one stores"],
)
def test_programs_that_share_an_address(body: str, expected: set[str]) -> None:
    findings, _ = run(body, programs=3)
    assert findings.kinds() == expected


def test_findings_name_the_lines() -> None:
    findings, _ = run(f"{OTHER_WARP}\n.loc 1 20 3\n{STORE}\n.loc 1 21 5\n{LOAD}", shared=512)
    (finding,) = findings.counts
    assert (finding.where, finding.before, findings.counts[finding]) == ("kernel.py:21", "kernel.py:20", 128)


def test_neighbouring_numbers_of_16_bits_are_apart() -> None:
    """Two lanes of two warps in one word: no race."""
    body = "mul.wide.u32 %rd5, %r1, 2; add.s64 %rd6, %rd1, %rd5; st.global.b16 [%rd6], 3; bar.sync 0;"
    body += "xor.b32 %r6, %r1, 32; mul.wide.u32 %rd5, %r6, 2; add.s64 %rd6, %rd1, %rd5; ld.global.b16 %rs0, [%rd6];"
    body += "st.global.b16 [%rd6], %rs0;"
    findings, _ = run(body, torch.zeros(64, dtype=torch.int16))
    assert not findings.counts

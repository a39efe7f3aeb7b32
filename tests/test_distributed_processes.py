"""Processes that hold a share each: four of them, started once for all tests; three die or stop on the way."""

import os
import re
import signal
import subprocess
import sys

import distributed_world as world
import pytest
import torch

import ess_kernels as ek

pytestmark = pytest.mark.thorough

SURVIVES, DIES, STOPS = 0, (1, 3), 2


def run_world(folder):
    """What the processes have written, by rank."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(4):
        command = [sys.executable, world.__file__, str(rank), str(folder)]
        with open(folder / f"{rank}.log", "w") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment))
    try:
        ended = processes[SURVIVES].wait(timeout=300)
        logs = "\n".join((folder / f"{rank}.log").read_text()[-2000:] for rank in range(4))
        assert ended == 0, logs
        for rank in DIES:
            assert processes[rank].wait(timeout=30) == -signal.SIGKILL, logs
        assert processes[STOPS].poll() is None, logs
    finally:
        for process in processes:
            process.kill()
            process.wait(timeout=30)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(4)]


def whole_operators():
    """The operator of all tokens in one process, and its answers."""
    found = {}
    for name, (constructor, tensors, _) in world.subjects().items():
        op = constructor(*tensors)
        counts, certificate = ek.tolerance_ess(op, world.TOLERANCES, certificate=True)
        found[name] = op, counts, certificate, *ek.entropy_ess(op, certificate=True)
    return found


def runs(name):
    """How an operator was asked, and by how many processes."""
    found = [((name, 4, few), 4) for few in (8, 0)]
    return found + ([((name, 2, "pair"), 2)] if name in ("gla", "matrices") else [])


def check_counts_are_those_of_one_process(seen, wholes, name):
    op, expected, own, *_ = wholes[name]
    for key, size in runs(name):
        everywhere = [found[key] for found in seen[:size]]
        assert torch.equal(torch.cat([found[0] for found in everywhere]), torch.arange(1, op.length))
        for positions, counts, certificate, *_ in everywhere:
            assert torch.equal(counts, expected[..., positions - 1])
            assert not certificate.unresolved.any() and not own.unresolved.any()
            assert (certificate.width < 1e-2).all()
        redone = torch.cat([found[2].redone for found in everywhere], -1)
        assert (redone == own.redone).double().mean() > 0.9


def check_entropies_are_those_of_one_process(seen, wholes, name):
    *_, expected, sure = wholes[name]
    for key, size in runs(name):
        for positions, _, _, entropy, certificate, *_ in (found[key] for found in seen[:size]):
            far = (entropy / expected[..., positions - 1] - 1).abs()
            assert (far <= certificate.error + sure.error[..., positions - 1]).all()
            assert (far <= 4e-6).all()
            near = sure.total[..., positions - 1]
            assert ((certificate.total / near - 1).abs() <= 1e-5).all()


def check_slices_that_begin_with_a_block_have_the_entropies_of_one_process(seen):
    constructor, tensors, _ = world.subjects()["gla"]
    expected = ek.entropy_ess(constructor(*tensors), backend="torch")
    for positions, _, _, entropy, *_ in (found["gla", "aligned"] for found in seen):
        assert ((entropy / expected[..., positions - 1] - 1).abs() <= 1e-9).all()


def check_answers_are_gathered_in_their_order(seen, wholes, name):
    op, expected, _, entropy, _ = wholes[name]
    some = [90, 1, op.length - 1, 61, 62, 90]
    values = ek.singular_values(op, some)
    for key, size in runs(name):
        for found in (found[key] for found in seen[:size]):
            gathered, (counts, certificate), ess = found[5:]
            assert gathered.shape == values.shape
            assert ((gathered - values).abs() <= 1e-13 * values[..., :1]).all()
            assert torch.equal(counts, expected) and certificate.width.shape == expected.shape
            assert ((ess / entropy - 1).abs() <= 4e-6).all()


def check_chunks_from_both_ends(seen):
    constructor, tensors, axis = world.subjects()["gla"]
    op = constructor(*(x.narrow(axis, 0, 192) for x in tensors))
    expected, counts = ek.entropy_ess(op), ek.tolerance_ess(op, world.TOLERANCES, positions=[150, 3, 20, 3, 191])
    for few in (8, 0):
        for rank, (positions, entropy, gathered, length) in enumerate(found["zigzag", few] for found in seen):
            mine = [*range(24 * rank, 24 * rank + 24), *range(24 * (7 - rank), 24 * (8 - rank))]
            assert length == 192 and positions.tolist() == mine[rank == 0 :]
            assert torch.equal(gathered, counts)
            assert ((entropy / expected[..., positions - 1] - 1).abs() <= 4e-6).all()


def check_tokens_exchanged_for_heads(seen):
    generator = torch.Generator().manual_seed(5)
    q, k = (world.randn(generator, 1, heads, world.LENGTH, 8) for heads in (12, 6))
    for axis, (whole, number) in enumerate(((q, 0), (k.bfloat16(), 1))):
        assert torch.equal(torch.cat([found["heads"][number] for found in seen], 1), whole), axis
    counts = ek.tolerance_ess(ek.operators.attention(q[:, :, :30], k[:, :, :30].bfloat16().double()))
    assert torch.equal(torch.cat([found["heads"][2] for found in seen], 1), counts)
    odd = [found["heads, odd tensors"] for found in seen]
    assert torch.equal(torch.cat([own[0] for own in odd], 1), torch.complex(q, q + 1).conj().resolve_conj())
    for _, _, no_sample, no_number in odd:
        assert tuple(no_sample) == (0, 3, world.LENGTH, 8) and tuple(no_number) == (1, 3, world.LENGTH, 0)


REFUSED = {
    "partial": r"q: expected Shard or Replicate, got .*: redistribute it",
    "mixed": "q: expected a DTensor as the others are, got Tensor",
    "over the state": r"q: expected Shard over samples, heads or tokens, got .* of \[3, 40, 4, 8\]",
    "not alike": "g: expected Shard over heads as q has, got",
    "other axes": "g: expected Shard over heads as q has, got",
    "other mesh": "g: expected q's mesh .*, got",
    "numbered": "q: retention numbers its heads",
    "odd heads": "q: expected a number of heads that 4 processes divide",
    "tokens of attention": "ranks 0, 1, 2, 3: TypeError: op: Attention has no finite state",
}


def check_dtensors(seen):
    op = ek.operators.gla(*world.several())
    small = ek.operators.dense(op.dense()[..., :20, :20])
    # what each of four processes has of the axes of samples and heads
    everything = slice(None)
    halves = [slice(0, 2), slice(2, 3)]
    shares = {
        "heads": [(everything, slice(rank, rank + 1)) for rank in range(4)],
        "samples": [(halves[rank % 2], everything) for rank in range(4)],
        "samples, unevenly": [(slice(rank, rank + 1), everything) for rank in range(4)],
        "both": [(halves[rank // 2], slice(2 * (rank % 2), 2 * (rank % 2) + 2)) for rank in range(4)],
        "replicated": [(everything, everything)] * 4,
        "matrix": [(everything, slice(rank, rank + 1)) for rank in range(4)],
    }
    for name, parts in shares.items():
        whole = small if name == "matrix" else op
        counts, certificate = ek.tolerance_ess(whole, [1.0, 1e-3], certificate=True)
        expected = [counts, certificate.width, ek.entropy_ess(whole), ek.singular_values(whole, [3, 5])]
        for found, (samples, heads) in zip(seen, parts, strict=True):
            batch_shape, local, placements, gathered = found["dtensor", name]
            assert batch_shape == (3, 4)
            assert found["dtensor", name, "shapes"] == [tuple(x.shape) for x in expected]
            for number, (x, y) in enumerate(zip(local, expected, strict=True)):
                index = (everything, samples, heads) if number < 2 else (samples, heads)
                torch.testing.assert_close(x, y[index], rtol=1e-12, atol=1e-15)
                assert gathered is None or torch.allclose(gathered[number], y, rtol=1e-12, atol=1e-15)
            assert len({str(p) for p in placements}) == (1 if name == "replicated" else 2)
    counts = ek.tolerance_ess(op)
    for rank, (positions, found, kind, length) in enumerate(found["dtensor, tokens"] for found in seen):
        assert kind == "SequenceParallel" and length == 40
        assert positions.tolist() == list(range(20, 40) if rank % 2 else range(1, 20))
        assert type(found) is torch.Tensor and torch.equal(found, counts[halves[rank // 2]][..., positions - 1])
    for name, words in REFUSED.items():
        for found in seen:
            assert re.search(words, found[name]), found[name]


def check_torchmetrics_sums_over_a_group(seen):
    if seen[0]["torchmetrics"] is None:
        return
    q, k, g = (x[:1] for x in world.several())
    for pair in ((0, 1), (2, 3)):
        both = slice(pair[0], pair[1] + 1)
        op = ek.operators.gla(q[:, :, both], k[:, :, both], g[:, :, both])
        entropy, counts = ek.entropy_ess(op), ek.tolerance_ess(op, 1e-3).double()
        for rank in pair:
            found = seen[rank]["torchmetrics"]
            assert found["layer/entropy_mean"] == pytest.approx(float(entropy.mean()), rel=1e-12)
            assert found["layer/entropy_max"] == pytest.approx(float(entropy.max()), rel=1e-12)
            assert found["layer/tolerance_1e-03_mean"] == pytest.approx(float(counts.mean()), rel=1e-12)
            assert found["layer/tolerance_1e-03_std"] == pytest.approx(float(counts.std(unbiased=False)), rel=1e-9)


def check_other_functions_refuse_it(seen):
    for name in ("randomized_ess", "state_spectra"):
        for found in seen:
            assert "this process holds as a whole, got SequenceParallel" in found["refuses", name], name


def check_bad_data_mark_their_head_everywhere(seen, wholes):
    _, expected, *_ = wholes["gla"]
    for positions, counts, entropy, good in (found["bad data"] for found in seen):
        assert good.tolist() == [True, False]
        assert (counts[:, :, 1] == -1).all() and entropy[:, 1].isnan().all()
        assert torch.equal(counts[:, :, 0], expected[:, :, 0, positions - 1])
    for found in seen:  # bit for bit
        clean = found["gla", 4, 8]
        assert torch.equal(found["bad data"][2][:, 0], clean[3][:, 0])


ERRORS = {
    "zigzag, odd": "rank 0: ValueError: op: expected two chunks of equal length .* got 61 tokens; rank 1",
    "few heads": "ranks 1, 2, 3: ValueError: tensors: expected at least as many heads as the 4 ranks, got 3$",
    "cannot be cut": "^rank 2: TypeError: op: Attention has no finite state",
    "another family": r"ranks were called differently: ranks 0, 2, 3: .*diagonal.*; rank 1: .*matrix",
    "gradient": "^ranks 0, 1, 2, 3: ValueError: op: expected inputs without requires_grad",
    "another atol": r"differently: rank 0: tolerance_ess\(.*atol=0.01.*; ranks 1, 2, 3: .*atol=0.001",
    "wrong atol": "^rank 3: ValueError: atol: expected values >= 0, got -1.0$",
    "wrong position": "^ranks 0, 1, 2, 3: ValueError: positions: expected integers in 1..202, got 203$",
    "unlike metrics": "differently: rank 0: nuclear_norm.*; ranks 1, 2, 3: entropy_ess",
    "sparse on one": r"^rank 2: TypeError: tensors\[0\]: expected a strided tensor",
    "wrong tokens on one": "^rank 3: ValueError: attention_mask: expected one run of ones",
    "unlike keys": r"differently: sums of keys of the shapes \[\[1, 2, 8\], \[1, 2, 4\]",
    "a tuple on some": r"differently: rank 0: gather\(result torch.int64.*; ranks 1, 2, 3: gather\(result\[0 of 2\]",
    "no axis": "^rank 1: ValueError: dim: expected an axis of the result's 3, got None$",
    "gradient of answers": "^rank 3: ValueError: result: expected no gradient",
    "changed in place": "^rank 1: ValueError: op: its inputs were changed in place after sequence_parallel",
    "wrong shape": "rank 1: ValueError: result: expected 1 positions along axis -1",
    "no error after all": "^no error$",
}


def check_what_a_rank_alone_says(seen):
    for found in seen:
        assert set(found["positions seen once"]) == {2}
        assert found["group of others"].startswith("group: expected a group that has this process")


def check_what_is_wrong_on_one_rank_raises_on_all(seen, name):
    assert len({found[name][0] for found in seen}) == 1
    for found in seen:
        message, seconds = found[name]
        assert re.search(ERRORS[name], message), message
        assert seconds < world.TIMEOUT + 5


def check_memory_falls_with_the_ranks(seen):
    """Tokens and all that is made of them; what a call takes whatever its length is a share of the least peak."""
    for found in seen:
        quarter, half, whole = found["peaks"]
        assert whole > 64 * 2**20, found["peaks"]
        assert quarter < 0.35 * whole and half < 0.65 * whole, found["peaks"]


def check_nobody_waits_for_a_process_that_is_lost(seen):
    lost = {"killed in the middle of a scan": (0, 1, 2), "stopped": (0, 1), "killed before": (0,)}
    for name, ranks in lost.items():
        for rank in ranks:
            message, seconds = seen[rank][name]
            assert message.startswith(f"rank {rank}: another rank is gone, or has not answered in time: "), message
            assert seconds < world.TIMEOUT + 5
    assert seen[SURVIVES]["end"]


def test_four_processes(tmp_path):
    """All checks in one test: the processes are started once, however tests are spread over workers."""
    seen, wholes = run_world(tmp_path), whole_operators()
    for name in wholes:
        check_counts_are_those_of_one_process(seen, wholes, name)
        check_entropies_are_those_of_one_process(seen, wholes, name)
        check_answers_are_gathered_in_their_order(seen, wholes, name)
    check_slices_that_begin_with_a_block_have_the_entropies_of_one_process(seen)
    check_chunks_from_both_ends(seen)
    check_tokens_exchanged_for_heads(seen)
    check_dtensors(seen)
    check_torchmetrics_sums_over_a_group(seen)
    check_other_functions_refuse_it(seen)
    check_bad_data_mark_their_head_everywhere(seen, wholes)
    check_what_a_rank_alone_says(seen)
    for name in ERRORS:
        check_what_is_wrong_on_one_rank_raises_on_all(seen, name)
    check_memory_falls_with_the_ranks(seen)
    check_nobody_waits_for_a_process_that_is_lost(seen)

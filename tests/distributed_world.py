"""What the processes of `test_distributed_processes.py` do: one world of four for all checks, ever fewer at its end.

Every process writes what it has seen into a file of its own. Whoever is to die or to stop does so by itself; what the
others make of it is seen in groups that were made at the beginning, with a timeout of `TIMEOUT` seconds.
"""

import datetime
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

import ess_kernels as ek
from ess_kernels.distributed import DistributedError, gather, scan, sequence_parallel, to_heads
from ess_kernels.testing.peak_memory import _forget_peak, _status

TIMEOUT = 4.0
TOLERANCES = [1.0, 1e-3, 1e-6]
LENGTH = 203
# tokens of the sequence whose memory is measured
MEASURED = 1 << 15
# where the slices of four processes begin and end, and those of two; one process has a single token
EDGES = {4: (0, 61, 62, 128, LENGTH), 2: (0, 131, LENGTH)}
ALIGNED = (0, 64, 128, 192, LENGTH)


def randn(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def subjects():
    """By name: a constructor, its tensors, and the axis of the time."""
    generator = torch.Generator().manual_seed(7)
    q, k = (randn(generator, 1, LENGTH, 2, 16) for _ in range(2))
    gate = torch.nn.functional.logsigmoid(2 * randn(generator, 1, LENGTH, 2, 16)) / 4
    unit, rate = torch.nn.functional.normalize(k, dim=-1), gate[..., 0]
    rows = [x.transpose(1, 2) for x in (k, q)]
    one = torch.eye(16, dtype=torch.float64)
    matrices = 0.98 * (one - 0.9 * unit.transpose(1, 2)[..., None] * unit.transpose(1, 2)[..., None, :])
    A = -torch.rand(2, generator=generator, dtype=torch.float64)
    operators = ek.operators
    return {
        "gla": (operators.gla, (q, k, gate), 1),
        "mamba-2": (lambda dt, B, C: operators.ssd(dt, A, B, C), (-rate, k[:, :, :1], q[:, :, :1]), 1),
        "delta rule": (lambda q, k, g, b: operators.gated_delta_rule(q, k, g=g, beta=b), (q, unit, rate, -rate), 1),
        "matrices": (lambda A, B, C: operators.recurrence(A, B, C, diagonal=False), (matrices, *rows), 2),
        "reads before": (
            lambda A, B, C: operators.recurrence(A, B, C, diagonal=True),
            (gate.exp().transpose(1, 2), *rows),
            2,
        ),
        "normalised": (lambda q, k: operators.linear_attention(q, k, normalize=True), (q.abs(), k.abs()), 1),
    }


def several():
    """Three samples, four heads, for `gla`."""
    generator = torch.Generator().manual_seed(11)
    q, k, g = (randn(generator, 3, 40, 4, 8) for _ in range(3))
    return q, k, torch.nn.functional.logsigmoid(g) / 4


def mine(name, edges, rank):
    """The operator of this rank's tokens."""
    constructor, tensors, axis = subjects()[name]
    return constructor(*(x.narrow(axis, edges[rank], edges[rank + 1] - edges[rank]) for x in tensors))


class World:
    """One process."""

    def __init__(self, rank: int, folder: Path):
        self.rank, self.folder, self.seen = rank, folder, {}
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'store'}",
            rank=rank,
            world_size=4,
            timeout=datetime.timedelta(seconds=60),
        )
        short = datetime.timedelta(seconds=TIMEOUT)
        # every group is made by all processes, also by those that are not in it
        self.pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        self.alone = [dist.new_group([rank]) for rank in range(4)]
        self.short = [dist.new_group(list(range(count)), timeout=short) for count in (4, 3, 2)]

    def note(self, name, value):
        self.seen[name] = value
        torch.save(self.seen, self.folder / f"{self.rank}.pt")

    def raises(self, name, call):
        begin = time.monotonic()
        try:
            call()
            self.note(name, ("no error", time.monotonic() - begin))
        except DistributedError as error:
            self.note(name, (str(error), time.monotonic() - begin))

    # --- answers ------------------------------------------------------------------------------------------------------

    def answers(self, name, op, backend="auto"):
        counts, certificate = ek.tolerance_ess(op, TOLERANCES, certificate=True, backend=backend)
        entropy, sure = ek.entropy_ess(op, certificate=True, backend=backend)
        some = [90, 1, LENGTH - 1, 61, 62, 90]
        values = gather(ek.singular_values(op, some), op, some, dim=-2)
        whole = gather((counts, certificate), op)
        self.note(name, (op.positions, counts, certificate, entropy, sure, values, whole, gather(entropy, op)))

    def check_answers(self):
        for name in subjects():
            for few in (8, 0):  # by one gathering, and by a scan
                scan.FEW = few
                self.answers((name, 4, few), sequence_parallel(mine(name, EDGES[4], self.rank)))
        scan.FEW = 0
        self.answers(("gla", "aligned"), sequence_parallel(mine("gla", ALIGNED, self.rank)), "torch")
        pair = self.pairs[self.rank // 2]
        self.answers(("gla", 2, "pair"), sequence_parallel(mine("gla", EDGES[2], self.rank % 2), pair))
        scan.FEW = 8
        self.answers(("matrices", 2, "pair"), sequence_parallel(mine("matrices", EDGES[2], self.rank % 2), pair))

    def check_zigzag(self):
        constructor, tensors, axis = subjects()["gla"]
        size = 24
        chunks = [x.narrow(axis, 0, 8 * size).split(size, axis) for x in tensors]
        both = [torch.cat([chunk[self.rank], chunk[7 - self.rank]], axis) for chunk in chunks]
        for few in (8, 0):
            scan.FEW = few
            op = sequence_parallel(constructor(*both), layout="zigzag")
            some = [150, 3, 20, 3, 191]
            counts = gather(ek.tolerance_ess(op, TOLERANCES, positions=some), op, some)
            self.note(("zigzag", few), (op.positions, ek.entropy_ess(op), counts, op.length))
        scan.FEW = 8
        self.raises("zigzag, odd", lambda: sequence_parallel(mine("gla", EDGES[4], self.rank), layout="zigzag"))

    def check_heads(self):
        generator = torch.Generator().manual_seed(5)
        q, k = randn(generator, 1, 12, LENGTH, 8), randn(generator, 1, 6, LENGTH, 8)
        start, stop = EDGES[4][self.rank], EDGES[4][self.rank + 1]
        own = to_heads(q[:, :, start:stop], k[:, :, start:stop].bfloat16())
        self.note(
            "heads", (*own, ek.tolerance_ess(ek.operators.attention(own[0][:, :, :30], own[1][:, :, :30].double())))
        )
        conjugate = torch.complex(q, q + 1).conj()
        odd = (to_heads(conjugate[:, :, start:stop]), to_heads(q[:0, :, start:stop]), to_heads(q[:, :, start:stop, :0]))
        self.note("heads, odd tensors", (odd[0].resolve_conj(), *(x.shape for x in odd)))
        sparse = q[:, :, start:stop].to_sparse() if self.rank == 2 else q[:, :, start:stop]
        self.raises("sparse on one", lambda: to_heads(sparse))
        few = q[:, : 3 if self.rank else 4, start:stop]
        self.raises("few heads", lambda: to_heads(few, few))

    def check_dtensors(self):
        """Four processes as one dimension, and as two by two."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

        line, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tokens"))

        def spread(tensors, mesh, *placements):
            # every process has the whole, of which it keeps its own: no message
            found = []
            for x in tensors:
                local = x
                for number, placement in enumerate(placements):
                    if isinstance(placement, Shard):
                        chunks = list(local.chunk(mesh.size(number), placement.dim))
                        chunks += [chunks[0].narrow(placement.dim, 0, 0)] * (mesh.size(number) - len(chunks))
                        local = chunks[mesh.get_local_rank(number)]
                found.append(DTensor.from_local(local, mesh, placements, shape=x.shape, stride=x.stride()))
            return found

        def masked(mask):
            return {"attention_mask": spread((mask,), line, Shard(1))[0]}

        q, k, g = several()
        gla, ops = ek.operators.gla, {}
        ops["heads"] = gla(*spread((q, k, g), line, Shard(2)))
        ops["samples"] = gla(*spread((q, k, g), square, Replicate(), Shard(0)))
        ops["samples, unevenly"] = gla(*spread((q, k, g), line, Shard(0)))
        ops["both"] = gla(*spread((q, k, g), square, Shard(0), Shard(2)))
        ops["replicated"] = gla(*spread((q, k, g), line, Replicate()))
        T = gla(q, k, g).dense()
        ops["matrix"] = ek.operators.dense(spread([T[..., :20, :20].contiguous()], line, Shard(1))[0])
        for name, op in ops.items():
            counts, certificate = ek.tolerance_ess(op, [1.0, 1e-3], certificate=True)
            entropy, values = ek.entropy_ess(op), ek.singular_values(op, [3, 5])
            everything = [counts, certificate.width, entropy, values]
            # chunks of unlike sizes are not brought together: Gloo ends the process
            whole = [x.full_tensor() for x in everything] if "unevenly" not in name else None
            placements = [x.placements for x in everything]
            self.note(("dtensor", name), (op.batch_shape, [x.to_local() for x in everything], placements, whole))
            self.note(("dtensor", name, "shapes"), [tuple(x.shape) for x in everything])
        tokens = gla(*spread((q, k, g), square, Shard(0), Shard(1)))
        self.note("dtensor, tokens", (tokens.positions, ek.tolerance_ess(tokens), type(tokens).__name__, tokens.length))

        mask = torch.ones(3, 40, dtype=torch.bool)
        mask[1, 35] = False  # a token of the last rank
        self.raises("wrong tokens on one", lambda: gla(*spread((q, k, g), line, Shard(1)), **masked(mask)))

        def refused(name, make):
            try:
                make()
                self.note(name, "no error")
            except (TypeError, ValueError, DistributedError) as error:
                self.note(name, str(error))

        sharded = spread((q, k, g), line, Shard(2))
        partial = DTensor.from_local(q, line, [Partial()])
        refused("partial", lambda: gla(partial, *sharded[1:]))
        refused("mixed", lambda: gla(q, *sharded[1:]))
        refused("over the state", lambda: gla(*spread((q, k, g), line, Shard(3))))
        refused("not alike", lambda: gla(*sharded[:2], *spread((g,), line, Replicate())))
        refused("other axes", lambda: gla(*sharded[:2], *spread((g,), line, Shard(0))))
        refused("other mesh", lambda: gla(*sharded[:2], *spread((g,), square, Replicate(), Shard(2))))
        refused("numbered", lambda: ek.operators.retention(*sharded[:2]))
        refused("odd heads", lambda: gla(*spread((x[:, :, :3] for x in (q, k, g)), line, Shard(2))))
        refused("tokens of attention", lambda: ek.operators.attention(*spread((q, k), line, Shard(2))))

    def check_torchmetrics(self):
        """Means of the two operators that a pair of processes has, one each."""
        try:
            import torchmetrics  # noqa: F401
        except ImportError:
            self.note("torchmetrics", None)
            return
        metric = ek.analysis.ESSMetric(("layer",), atol=(1e-3,), process_group=self.pairs[self.rank // 2])
        q, k, g = (x[:1, :, self.rank : self.rank + 1] for x in several())
        metric.update(ek.operators.gla(q, k, g))
        self.note("torchmetrics", {name: float(value) for name, value in metric.compute().items()})

    # --- what goes wrong ----------------------------------------------------------------------------------------------

    def check_bad_data(self):
        constructor, tensors, axis = subjects()["gla"]
        tensors = [x.clone() for x in tensors]
        tensors[1][0, LENGTH - 2, 1, 3] = torch.nan  # on the last rank
        start, stop = EDGES[4][self.rank], EDGES[4][self.rank + 1]
        op = sequence_parallel(constructor(*(x.narrow(axis, start, stop - start) for x in tensors)))
        self.note("bad data", (op.positions, ek.tolerance_ess(op, TOLERANCES), ek.entropy_ess(op), op.good))

    def check_errors(self):
        op = mine("gla", EDGES[4], self.rank)
        wrong = ek.operators.attention(*torch.ones(2, 1, 2, 5, 4).double()) if self.rank == 2 else op
        self.raises("cannot be cut", lambda: sequence_parallel(wrong))
        other = mine("matrices" if self.rank == 1 else "gla", EDGES[4], self.rank)
        self.raises("another family", lambda: sequence_parallel(other))
        learned = ek.operators.linear_attention(*(torch.ones(1, 3, 2, 4).requires_grad_() for _ in range(2)))
        self.raises("gradient", lambda: sequence_parallel(learned))
        whole = sequence_parallel(op)
        self.raises("another atol", lambda: ek.tolerance_ess(whole, 1e-3 if self.rank else 1e-2))
        self.raises("wrong atol", lambda: ek.tolerance_ess(whole, -1.0 if self.rank == 3 else 1e-2))
        self.raises("wrong position", lambda: ek.entropy_ess(whole, [LENGTH]))
        self.raises("unlike metrics", lambda: (ek.entropy_ess if self.rank else ek.nuclear_norm)(whole))
        self.raises("wrong shape", lambda: gather(torch.zeros(1, 2, 7), whole))
        keys = torch.ones(1, 3, 2, 4 if self.rank else 8)
        unlike = ek.operators.linear_attention(keys, keys, normalize=True)
        self.raises("unlike keys", lambda: sequence_parallel(unlike))
        both = ek.tolerance_ess(whole, certificate=True)
        self.raises("a tuple on some", lambda: gather(both if self.rank else both[0], whole))
        self.raises("no axis", lambda: gather(both[0], whole, dim=None if self.rank == 1 else -1))
        counts = both[0].double().requires_grad_(self.rank == 3)
        self.raises("gradient of answers", lambda: gather(counts, whole))
        some = gather(ek.tolerance_ess(whole, positions=[90, 3], certificate=True), whole, iter([90, 3]))
        self.note("positions seen once", [x.shape[-1] for x in some[1]])
        pair = self.pairs[1 - self.rank // 2]
        try:
            sequence_parallel(op, pair)
        except ValueError as error:
            self.note("group of others", str(error))
        changed = [x.clone() for x in subjects()["gla"][1]]
        start, stop = EDGES[4][self.rank], EDGES[4][self.rank + 1]
        recent = sequence_parallel(ek.operators.gla(*(x[:, start:stop] for x in changed)))
        if self.rank == 1:
            changed[1].mul_(2)
        self.raises("changed in place", lambda: ek.entropy_ess(recent))
        for other in (ek.randomized_ess, ek.state_spectra):
            try:
                other(whole, [3])
                self.note(("refuses", other.__name__), "no error")
            except TypeError as error:
                self.note(("refuses", other.__name__), str(error))
        self.raises("no error after all", lambda: ek.entropy_ess(whole, [3]))

    def check_memory(self):
        """What the tokens of a rank and all that is made of them take, for four ranks, for two, and for one."""
        start = _forget_peak()
        peaks = []
        for count, group in ((4, None), (2, self.pairs[self.rank // 2]), (1, self.alone[self.rank])):
            generator = torch.Generator().manual_seed(self.rank)
            q, k, g = torch.randn(3, 1, MEASURED // count, 2, 16, generator=generator, dtype=torch.float64)
            op = sequence_parallel(ek.operators.gla(q, k, torch.nn.functional.logsigmoid(g) / 4), group)
            ek.tolerance_ess(op, TOLERANCES, certificate=True)
            del op, q, k, g
            peaks.append(_status("VmHWM") - start)
            dist.barrier()  # processors are few, and the next is the last one's double
        self.note("peaks", peaks)

    def check_losses(self):
        """Ranks 3, 2 and 1 are lost one after the other."""
        four, three, two = self.short
        ops = [mine("gla", (*EDGES[4][:count], LENGTH), self.rank) for count in (4, 3, 2) if self.rank < count]
        scan.FEW = 0
        if self.rank == 3:
            scan._shifted = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        self.raises("killed in the middle of a scan", lambda: sequence_parallel(ops[0], four))
        if self.rank == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        self.raises("stopped", lambda: sequence_parallel(ops[1], three))
        if self.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        self.raises("killed before", lambda: sequence_parallel(ops[2], two))
        self.note("end", True)


def main():
    torch.set_num_threads(1)
    world = World(int(sys.argv[1]), Path(sys.argv[2]))
    world.check_answers()
    world.check_zigzag()
    world.check_heads()
    world.check_dtensors()
    world.check_torchmetrics()
    world.check_bad_data()
    world.check_errors()
    world.check_memory()
    world.check_losses()
    os._exit(0)  # the groups have lost members: nobody waits for them


if __name__ == "__main__":
    main()

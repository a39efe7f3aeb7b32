"""A sequence in slices, as processes have them, but all in this one: what they would tell each other is passed on."""

from itertools import pairwise

import torch

from ess_kernels.distributed.families import cuttable
from ess_kernels.distributed.passage import Passage
from ess_kernels.distributed.sequence_parallel import Span, _piece, _summary


def cut(tensors, axes, start, stop):
    """Tokens `start..stop-1` of tensors, of which each has its own axis for the time, or None."""
    return [x if axis is None else x.narrow(axis, start, stop - start) for x, axis in zip(tensors, axes, strict=True)]


def pieces_of(ops):
    """The pieces of operators of consecutive slices of one sequence, `[Piece]`."""
    inner = [cuttable(op) for op in ops]
    sub_tokens = getattr(ops[0], "sub_tokens", 1)
    summaries = [_summary(one, (0, one.length)) for one in inner]
    good = torch.stack([finite for _, _, finite in summaries]).all(0)
    pieces, begin = [], 0
    for number, op in enumerate(ops):
        before = joined([reach for reach, _, _ in summaries[:number]])
        after = joined([observe for _, observe, _ in summaries[:number:-1]])
        span = Span(0, op.length, begin)
        pieces.append(_piece(inner[number], sub_tokens, span, good, summaries[number][:2], before, after))
        begin += op.length
    return pieces


def pieces_of_spans(op, edges):
    """The pieces of one recurrence that is cut at these tokens: for operators whose tensors are not at hand."""
    spans = [Span(start, stop, start) for start, stop in pairwise(edges)]
    summaries = [_summary(op, (span.start, span.stop)) for span in spans]
    good = torch.stack([finite for _, _, finite in summaries]).all(0)
    pieces = []
    for number, span in enumerate(spans):
        before = joined([reach for reach, _, _ in summaries[:number]])
        after = joined([observe for _, observe, _ in summaries[:number:-1]])
        pieces.append(_piece(op, 1, span, good, summaries[number][:2], before, after))
    return pieces


def joined(passages: list[Passage]) -> Passage | None:
    first = None
    for passage in passages:
        first = passage if first is None else first.then(passage)
    return first


def answers(metric, ops, dim=-1, **arguments):
    """What the slices say at all positions, one behind the other."""
    sub_tokens = getattr(ops[0], "sub_tokens", 1)
    found = [
        metric(piece.op, positions=piece.places(piece.span.positions, sub_tokens), **arguments)
        for piece in pieces_of(ops)
    ]
    if isinstance(found[0], tuple):
        return found
    return torch.cat(found, dim)

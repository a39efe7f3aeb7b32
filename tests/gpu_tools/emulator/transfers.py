"""Loads, stores and copies."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from .program import PARAMETER_BASE, Program
from .ptx import Instruction

Mask = np.ndarray | None


def _threads(p: Program, mask: Mask) -> np.ndarray:
    return p.lane if mask is None else np.nonzero(mask)[0]


def _vector(operand: Any) -> list[str]:
    return operand if isinstance(operand, list) else [operand]


def load_parameter(p: Program, x: Instruction, mask: Mask) -> None:
    """By name, or from an address that has been computed."""
    name = x.operands[1].strip("[] ")
    every = np.array(list(p.arguments.values()), np.uint64)
    if name in p.arguments:
        values = np.full(p.threads, p.arguments[name], np.uint64)
    else:
        values = every[(p.address(name) - PARAMETER_BASE) // 8]
    p.set(x.operands[0], values.astype(f"u{np.dtype(x.type).itemsize}"), mask)


def load(p: Program, x: Instruction, mask: Mask) -> None:
    if "param" in x.parts:
        load_parameter(p, x, mask)
        return
    targets, threads, size = _vector(x.operands[0]), _threads(p, mask), np.dtype(x.type).itemsize
    values = np.zeros((len(targets), p.threads), x.type)
    addresses = p.address(x.operands[1])[threads]
    for space, offsets, here in p.touch(x, addresses, threads, size * len(targets), False, "shared" in x.parts):
        numbers = space.bytes.view(x.type)
        for k, row in enumerate(values):
            row[threads[here]] = numbers[offsets // size + k]
    for target, row in zip(targets, values):
        p.set(target, row, mask)


def store(p: Program, x: Instruction, mask: Mask) -> None:
    sources, threads, size = _vector(x.operands[1]), _threads(p, mask), np.dtype(x.type).itemsize
    addresses = p.address(x.operands[0])[threads]
    for space, offsets, here in p.touch(x, addresses, threads, size * len(sources), True, "shared" in x.parts):
        bits = space.bytes.view(f"u{size}")
        for k, source in enumerate(sources):
            value, at = p.value(source, x.type).view(bits.dtype)[threads[here]], offsets // size + k
            bits[at] = value
            # lanes that store the same number at one address are replicas
            different = bits[at] != value
            if different.any():
                place = "shared" if space.shared else "global"
                what = f"lanes store different numbers at one {place} address"
                p.report("lanes", x.source, "", what, int(different.sum()))


def copy(p: Program, x: Instruction, mask: Mask) -> None:
    """`cp.async`: from global to shared memory; it reads when it is issued, and is there when it is waited for."""
    if "commit_group" in x.parts:
        p.copies.append([])
    elif "wait_group" in x.parts or "wait_all" in x.parts:
        done = max(0, len(p.copies) - 1 - (int(x.operands[0], 0) if x.operands else 0))
        for issued, threads, addresses, size, values in chain.from_iterable(p.copies[:done]):
            for space, offsets, here in p.touch(issued, addresses, threads, size, True, True):
                space.bytes[offsets[:, None] + np.arange(size)] = values[here]
        del p.copies[:done]
    else:
        size, threads = int(x.operands[2], 0), _threads(p, mask)
        target, source = (p.address(operand)[threads] for operand in x.operands[:2])
        # with a fourth operand of 0 nothing is read, and zeros are written
        read = np.ones(len(threads), bool)
        if len(x.operands) > 3:
            read = p.value(x.operands[3], np.uint32)[threads] > 0
        values, readers = np.zeros((len(threads), size), np.uint8), np.nonzero(read)[0]
        for space, offsets, here in p.touch(x, source[read], threads[read], size, False, False):
            values[readers[here]] = space.bytes[offsets[:, None] + np.arange(size)]
        p.copies[-1].append((x, threads, target, size, values))


def tiles16(p: Program, x: Instruction, mask: Mask) -> None:
    """`ldmatrix` and `stmatrix`: tiles of 8 x 8 numbers of 16 bits, to whose rows lanes hold the addresses."""
    count = 4 if "x4" in x.parts else 2 if "x2" in x.parts else 1
    loading = x.parts[0] == "ldmatrix"
    registers, place = x.operands if loading else x.operands[::-1]
    addresses = p.address(place)
    lane, first_of_warp = p.lane % 32, p.lane // 32 * 32
    for k, register in zip(range(count), _vector(registers)):
        value = np.zeros((p.threads, 2), np.uint16)
        if not loading:
            value = p.value(register, np.uint32).copy().view(np.uint16).reshape(-1, 2)
        for half in range(2):
            row, column = lane // 4, lane % 4 * 2 + half
            if "trans" in x.parts:
                row, column = column, row
            at = addresses[first_of_warp + k * 8 + row] + 2 * column
            for space, offsets, here in p.touch(x, at, p.lane, 2, not loading, True):
                numbers = space.bytes.view(np.uint16)
                if loading:
                    value[here, half] = numbers[offsets // 2]
                else:
                    numbers[offsets // 2] = value[here, half]
        if loading:
            p.set(register, value.view(np.uint32)[:, 0], mask)

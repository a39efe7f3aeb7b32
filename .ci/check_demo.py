"""Checks what `ess-kernels demo` left: its table, its JSON and its picture. Standard library only."""

import json
import struct
import sys
from pathlib import Path


def main(table: Path, numbers: Path, picture: Path) -> None:
    report = json.loads(numbers.read_text())
    layers = report["layers"]
    mixers = {layer["mixer"] for layer in layers}
    assert len(mixers) == 4, f"four mixers expected, got {sorted(mixers)}"

    lines = table.read_text().splitlines()
    for layer in layers:
        rows = [line for line in lines if layer["title"] in line and line.split()[0] == str(layer["index"])]
        assert len(rows) == 1, f"one row of the table expected for layer {layer['index']}, {layer['title']}: {rows}"

    length = report["text"]["bytes"]
    assert length >= 1024
    assert report["positions"] == list(range(1, length))
    for layer in layers:
        cap, heads = layer["cap"], layer["heads"]
        assert heads >= 2
        assert layer["tss"] is None or layer["tss"] >= 16
        for counts in layer["tolerance_ess"]:  # one list of heads for each tolerance
            assert len(counts) == heads
            assert all(0 <= n <= c for head in counts for n, c in zip(head, cap, strict=True))
        assert len(layer["entropy_ess"]) == heads
        for head in layer["entropy_ess"]:
            # zero or between 1 and the cap, up to the entropy's promised accuracy
            assert all(x == 0 or 1 - 1e-4 <= x <= c * (1 + 1e-4) for x, c in zip(head, cap, strict=True))
        assert max(max(head) for head in layer["entropy_ess"]) > 1
    assert report["seconds"] < 30, f"the demo took {report['seconds']:.1f} s"

    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n", "the picture is no PNG"
    width, height = struct.unpack(">II", data[16:24])
    assert width >= 400 and height >= 300 and len(data) > 10_000, (width, height, len(data))
    print(
        f"table: {len(layers)} layers; JSON: {numbers.stat().st_size} bytes; PNG: {width} x {height}, {len(data)} bytes"
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

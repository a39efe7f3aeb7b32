"""`ess-kernels analyze --inputs`: options, what is printed, and exit codes."""

import os
import signal
import subprocess
import sys
import time

import pytest
from analyze_command import refused, run
from dataset_inputs import parts_of, write_shard, write_shards

parquet = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("safetensors")

SMALL = ("--atol", "0.1", "--metrics", "tolerance")


def test_prompts_of_the_embedded_model(capsys, tmp_path):
    inputs, out = write_shards(tmp_path / "in", shards=2, rows=2), tmp_path / "run"
    write_shard(tmp_path / "in" / "001.parquet", ["", "two words"])
    command = ("demo", "--inputs", inputs, "--out", out, *SMALL)
    code, printed, err = run(capsys, *command, "--dry-run")
    assert (code, err) == (0, "") and not out.exists()
    assert "2 shards: 0 done before, 2 to do with 4 prompts" in printed and "blocks.3.mixer" in printed
    code, printed, err = run(capsys, *command)
    assert (code, err) == (0, "")
    lines = printed.splitlines()
    assert lines[0].startswith("000.parquet: 2 prompts, ") and lines[1].startswith(
        "001.parquet: 2 prompts, 1 with a pr"
    )
    assert lines[2].startswith(
        "2 shards: 0 done before, 2 done now, 0 failed; 4 prompts, 1 with a problem: expected a p"
    )
    rows = parquet.read_table(out).to_pylist()
    assert len(rows) == 3 * 4 * 3 + 1 and {row["mixer"] for row in rows} >= {"mamba2", "gla", "attention"}
    before = parts_of(out)
    code, printed, _ = run(capsys, *command)
    assert code == 0 and printed.startswith("2 shards: 2 done before, 0 done now")
    assert "holds another run: max_length was null and is 5" in refused(capsys, *command, "--max-length", 5)
    assert parts_of(out) == before
    code, printed, _ = run(capsys, *command, "--max-length", 5, "--restart")
    assert code == 0 and {row["length"] for row in parquet.read_table(out).to_pylist()} == {5, None}


def test_a_shard_without_a_result_is_named_and_in_the_exit_code(capsys, tmp_path):
    inputs, out = write_shards(tmp_path / "in", shards=1, rows=1), tmp_path / "run"
    (tmp_path / "in" / "001.parquet").write_bytes(b"no Parquet")
    code, printed, err = run(capsys, "demo", "--inputs", inputs, "--out", out, *SMALL)
    assert code == 3 and "1 done now, 1 failed" in printed
    first, last = err.splitlines()
    assert first.startswith("ess-kernels: error: 001.parquet: ArrowInvalid") and "1 shards have no result" in last
    assert sorted(parts_of(out)) == ["part-00000.parquet"]


def test_checkpoints(capsys, tmp_path):
    pytest.importorskip("transformers")
    from checkpoints import save_llama

    folder = save_llama(tmp_path / "llama", layers=1, longest=32)
    capsys.readouterr()  # of saving it
    write_shard(tmp_path / "a.parquet", ["One thing.", "x" * 40], ids=[1, 2])
    command = ("--inputs", tmp_path / "a.parquet", "--out", tmp_path / "run", *SMALL)
    code, printed, err = run(capsys, folder, *command)
    assert (code, err) == (0, "") and "1 with a problem" in printed
    rows = parquet.read_table(tmp_path / "run").to_pylist()
    assert [(row["id"], row["layer"], row["length"]) for row in rows[:2]] == [(1, "model.layers.0.self_attn", 10)] * 2
    assert rows[2]["problem"] == "expected at most 32 tokens, the positions that the model has, got 40"
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "holds another run: model was" in refused(capsys, folder, *command)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    message = refused(capsys, folder, "--inputs", tmp_path / "a.parquet", "--out", tmp_path / "other")
    assert "has no tokenizer, and the prompts of" in message and not (tmp_path / "other").exists()


def test_what_cannot_be_is_refused(capsys, tmp_path, monkeypatch):
    inputs, out = write_shards(tmp_path / "in", shards=1), tmp_path / "run"

    def check(*options, model=("demo",), files=inputs):
        message = refused(capsys, *model, "--inputs", files, "--out", out, *options)
        assert not out.exists()
        return message

    assert "--id-column: " in check("--id-column", "key") and "no column 'key'" in check("--text-column", "key")
    assert "--layers: no module" in check("--layers", "*.nothing") and "--atol: " in check("--atol", "-1")
    assert "--workers: expected at least 1" in check("--workers", "0")
    assert "--max-tokens: expected at least 2" in check("--max-tokens", "1")
    assert "--max-length: expected at least 2" in check("--max-length", "1")
    assert "--html: expected one text" in check("--html", tmp_path / "f.html")
    assert "there is no such folder" in check(model=(tmp_path / "nothing",))
    assert "PATH_OR_NAME: expected a model" in check(model=())
    assert "--inputs: there is no file" in check(files=tmp_path / "no*.parquet")
    assert "expected --out beside it" in refused(capsys, "demo", "--inputs", inputs)
    assert "--out: expected --inputs beside it" in refused(capsys, "demo", "--text", "a text", "--out", out)
    assert "`ess-kernels demo` measures" in refused(capsys, "demo", "--text", "a text")
    assert "PATH_OR_NAME: expected a checkpoint" in refused(capsys, "--text", "a text")
    (tmp_path / "file").write_text("")
    assert "is no directory" in refused(capsys, "demo", "--inputs", inputs, "--out", tmp_path / "file" / "run")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        assert "pip install 'ess-kernels[ray]'" in check("--engine", "ray")
    for module in ("pyarrow", "safetensors"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            assert f"{module} " in (message := check()) and "pip install 'ess-kernels[data]'" in message


@pytest.mark.thorough
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
def test_ctrl_c_leaves_parts_whole(tmp_path, workers):
    inputs, out = write_shards(tmp_path / "in", shards=40, rows=4, length=64), tmp_path / "run"
    command = [sys.executable, "-m", "ess_kernels", "analyze", "demo", "--inputs", inputs, "--out", str(out), *workers]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert "prompts" in process.stdout.readline()  # the first shard is done
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, err) == (130, "")
    parts = parts_of(out)
    assert parts and all(name.startswith("part-") for name in parts)
    assert all(parquet.read_metadata(out / name).num_rows == 4 * 4 * 3 * 4 for name in parts)

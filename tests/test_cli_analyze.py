"""`ess-kernels analyze`: what it prints and writes, and what it refuses before a model is loaded."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from analyze_command import refused, run
from checkpoints import LONGEST, TEXT, change_json, save_llama, save_mamba2

from ess_kernels import memory

pytest.importorskip("transformers")
pytest.importorskip("safetensors")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def mamba2(tmp_path_factory):
    return save_mamba2(tmp_path_factory.mktemp("mamba2"))


@pytest.fixture
def copy(llama, tmp_path):
    """A copy of the Llama's folder, to be changed."""
    return shutil.copytree(llama, tmp_path / "copy")


def refused_before_loading(capsys, monkeypatch, *arguments) -> str:
    with monkeypatch.context() as patch:
        patch.setattr("ess_kernels.commands.loading.load_model", lambda *_: pytest.fail("the model was loaded"))
        return refused(capsys, *arguments)


def test_every_layer_is_printed_and_every_file_written(capsys, tmp_path, llama):
    pytest.importorskip("matplotlib")
    pytest.importorskip("pyarrow")
    files = {name: tmp_path / f"out.{name}" for name in ("html", "json", "parquet")}
    options = [argument for name, path in files.items() for argument in (f"--{name}", path)]
    picture = tmp_path / "out.png"
    code, out, err = run(capsys, llama, "--text", TEXT, "--delimiter", ".", *options, "--plot", picture)
    assert (code, err) == (0, "")
    assert f"LlamaForCausalLM: 2 mixers, 0 skipped, 1 x {len(TEXT)} tokens" in out
    assert (
        out.count("model.layers.0.self_attn") == out.count("model.layers.1.self_attn") == 2
    )  # the table, and the dips
    assert "Delimiter '.': found 2 times, with ESS on both sides 2 times." in out
    assert out.endswith("".join(f"{name}: {path}\n" for name, path in {**files, "plot": picture}.items()))
    report = json.loads(files["json"].read_text())
    assert len(report["layers"]) == 2
    assert "<html" in files["html"].read_text() and picture.read_bytes().startswith(b"\x89PNG")
    assert files["parquet"].read_bytes().startswith(b"PAR1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.html", "out.json", "out.parquet", "out.png"]


def test_the_numbers_are_those_of_analyze(capsys, tmp_path, mamba2):
    """Also where flash-linear-attention was imported, which puts its own Mamba-2 in the place of transformers'."""
    pytest.importorskip("fla.models")
    from transformers import Mamba2ForCausalLM

    from ess_kernels.analysis.analyze import analyze
    from ess_kernels.analysis.result import Analysis

    path = tmp_path / "out.json"
    options = ["--atol", "0.01", "--positions", "3", "9", "--metrics", "tolerance", "--dtype", "float32"]
    assert run(capsys, mamba2, "--text", TEXT, "--json", path, *options)[0] == 0
    found = Analysis.load(path)
    model = Mamba2ForCausalLM.from_pretrained(mamba2, dtype=torch.float32)
    letters = {letter: number for number, letter in enumerate(sorted(byte_letters()))}
    ids = torch.tensor([[letters[letter] for letter in TEXT.replace(" ", "\u0120")]])
    wanted = analyze(model, ids, atol=0.01, positions=[3, 9], metrics=("tolerance",))
    assert list(found.layers) == list(wanted.layers) == ["backbone.layers.0.mixer"]
    layer = found.layers["backbone.layers.0.mixer"]
    assert layer.entropy is None and layer.positions.tolist() == [3, 9]
    assert torch.equal(layer.tolerance[0.01], wanted.layers[layer.name].tolerance[0.01])
    assert found.tokens == [list(TEXT)]


def byte_letters() -> list[str]:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel.alphabet()


@pytest.mark.parametrize("options", [("--dtype", "bfloat16"), ("--attention", "eager"), ("--attention", "sdpa")])
def test_how_the_model_is_loaded(capsys, tmp_path, llama, options):
    from ess_kernels.analysis.result import Analysis

    path = tmp_path / "out.json"
    assert run(capsys, llama, "--text", TEXT, "--json", path, *options)[0] == 0
    dtypes = {layer.dtype for layer in Analysis.load(path).layers.values()}
    assert dtypes == {"bfloat16" if "bfloat16" in options else "float32"}


def test_texts_come_from_files_and_are_cut(capsys, tmp_path, llama):
    file = tmp_path / "text"
    file.write_text("word " * 40)
    code, out, _ = run(capsys, llama, "--text-file", file, "--max-length", "12", "--layers", "*.0.self_attn")
    assert code == 0 and "1 mixers" in out and "1 x 12 tokens" in out
    file.write_text(json.dumps([5, 6, 7, 8, 9]))
    code, out, _ = run(capsys, llama, "--tokens-file", file)
    assert code == 0 and "1 x 5 tokens" in out


def test_without_a_tokenizer_numbers_are_taken(capsys, tmp_path, copy):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    assert "has no tokenizer; --tokens-file" in refused(capsys, copy, "--text", TEXT)
    file = tmp_path / "ids"
    file.write_text("[1, 2, 3, 4]")
    assert "no tokenizer" in refused(capsys, copy, "--tokens-file", file, "--delimiter", ".")
    code, out, _ = run(capsys, copy, "--tokens-file", file)
    assert code == 0 and "1 x 4 tokens" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "got dict"),
        ("[1, true]", "got True"),
        ("[1, 2.5]", "got 2.5"),
        ("[1, 2", "expected a JSON list"),
        ("[" * 100000, "expected a JSON list"),
        ("[7]", "at least 2 tokens, got 1"),
        ("[1, 256]", "0 to 255, got 256"),
        ("[1, -1]", "0 to 255, got -1"),
    ],
)
def test_bad_numbers_of_tokens(capsys, monkeypatch, tmp_path, llama, content, message):
    file = tmp_path / "ids"
    file.write_text(content)
    assert message in refused_before_loading(capsys, monkeypatch, llama, "--tokens-file", file)


def test_bad_texts(capsys, monkeypatch, tmp_path, llama):
    def check(*arguments):
        return refused_before_loading(capsys, monkeypatch, llama, *arguments)

    assert "expected a text, got an empty one" in check("--text", "")
    assert "at least 2 tokens, got 1" in check("--text", "x")
    assert f"at most {LONGEST} tokens" in check("--text", "x" * (LONGEST + 1))
    assert "No such file" in check("--text-file", tmp_path / "missing")
    (tmp_path / "bytes").write_bytes(b"ab\xff")
    assert "expected UTF-8" in check("--text-file", tmp_path / "bytes")
    if os.path.exists("/dev/zero"):
        assert "bytes, got more" in check("--text-file", "/dev/zero")


def test_what_cannot_be_is_refused_before_the_model_is_loaded(capsys, monkeypatch, tmp_path, llama):
    def check(*arguments):
        return refused_before_loading(capsys, monkeypatch, llama, "--text", TEXT, *arguments)

    assert "positions: " in check("--positions", "0") and "positions: " in check("--positions", len(TEXT))
    assert "no module of the model is called '*.mixer'" in check("--layers", "*.mixer")
    assert "atol: " in check("--atol", "-1") and "--max-length" in check("--max-length", "1")
    assert "among the tokens, got ';'" in check("--delimiter", ";") and "empty" in check("--delimiter", "")
    assert ".html" in check("--html", tmp_path / "f.txt") and ".json" in check("--json", tmp_path / "f")
    assert "no directory" in check("--json", tmp_path / "missing" / "f.json")
    (tmp_path / "f.json").mkdir()
    assert "is a directory" in check("--json", tmp_path / "f.json")
    monkeypatch.setenv("ESS_KERNELS_MEMORY_BUDGET", "plenty")
    assert "ESS_KERNELS_MEMORY_BUDGET" in check()
    if not torch.cuda.is_available():
        monkeypatch.delenv("ESS_KERNELS_MEMORY_BUDGET")
        assert "no CUDA device" in check("--device", "cuda")


def test_a_text_is_not_written_over(capsys, monkeypatch, tmp_path, llama):
    file = tmp_path / "f.json"
    file.write_text("[1, 2, 3]")
    assert "than that of --tokens-file" in refused(capsys, llama, "--tokens-file", file, "--json", file)
    assert file.read_text() == "[1, 2, 3]"


@pytest.mark.parametrize("module", ["transformers", "safetensors", "matplotlib", "pyarrow"])
def test_a_missing_package_is_named(capsys, tmp_path, monkeypatch, llama, module):
    monkeypatch.setitem(sys.modules, module, None)
    files = ["--plot", tmp_path / "f.png", "--parquet", tmp_path / "f.parquet"]
    err = refused(capsys, llama, "--text", TEXT, *files)
    assert module in err and "pip install" in err


def test_a_report_needs_no_matplotlib(capsys, tmp_path, monkeypatch, llama):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run(capsys, llama, "--text", TEXT, "--html", tmp_path / "f.html", "--delimiter", ".")
    assert (code, err) == (0, "") and "LlamaForCausalLM" in (tmp_path / "f.html").read_text()


def test_a_dry_run_writes_nothing(capsys, tmp_path, llama):
    code, out, err = run(capsys, llama, "--text", TEXT, "--dry-run", "--json", tmp_path / "f.json")
    assert (code, err) == (0, "") and "model.layers.0.self_attn" in out
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_too_large_for_memory(capsys, monkeypatch, copy):
    change_json(copy / "config.json", intermediate_size=10**11)  # the configuration: 10^11 x 32 numbers, six times
    err = refused_before_loading(capsys, monkeypatch, copy, "--text", TEXT)
    assert (
        "needs 69.8 TiB" in err and f"to analyze one layer at {len(TEXT)} tokens" in err and "of memory are free" in err
    )


def test_a_weights_file_that_is_too_large_for_memory(capsys, monkeypatch, copy):
    size = 2**41
    header = json.dumps({"lm_head.weight": {"dtype": "F16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    with (copy / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)  # a file of holes, which takes no room
    assert "2.0 TiB of weights" in refused_before_loading(capsys, monkeypatch, copy, "--text", TEXT)
    err = refused_before_loading(capsys, monkeypatch, copy, "--text", TEXT, "--dtype", "float32")
    assert "4.0 TiB of weights" in err


def test_free_memory_is_the_least_that_any_control_group_allows(tmp_path):
    free = memory.free_memory()
    assert free is None or 0 < free < 2**50
    group, own = tmp_path / "a" / "b", tmp_path / "own"
    group.mkdir(parents=True)
    own.write_text("0::/a/b\n")
    (tmp_path / "a" / "memory.max").write_text("5000\n")
    (tmp_path / "a" / "memory.current").write_text("3000\n")
    (tmp_path / "a" / "memory.stat").write_text("anon 1\ninactive_file 400\n")
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000\n")
    assert list(memory._free_in_groups(tmp_path, own)) == [2400]
    own.write_text("4:memory:/c\n2:cpu:/\n")
    old = tmp_path / "memory" / "c"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("100\n")
    (old / "memory.usage_in_bytes").write_text("300\n")
    assert list(memory._free_in_groups(tmp_path, own)) == [0]
    assert memory.size_text(512) == "512 B" and memory.size_text(3 * 2**30) == "3.0 GiB"


@pytest.mark.thorough
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_ctrl_c_leaves_everything_as_it_was(tmp_path):
    folder = save_llama(tmp_path / "model", longest=4096)
    kept = tmp_path / "kept.json"
    kept.write_text("what was there")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    command = [sys.executable, "-m", "ess_kernels", "analyze", folder, "--text", "ab, c" * 500]
    command += ["--json", kept, "--plot", tmp_path / "new.png"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(temporary.glob("ess-kernels-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2)  # in the middle of loading or measuring
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()  # or it goes on beside all other tests
    assert (process.returncode, out, err) == (130, "", "")
    assert kept.read_text() == "what was there"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.json", "model", "temporary"]
    assert not list(temporary.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_ctrl_c_inside_exec(tmp_path):
    """Dataclasses are made by `exec` of a string. Ctrl-C there makes Python die by the signal, if nothing is done."""
    (tmp_path / "interrupted.py").write_text(
        "import sys\n"
        "from ess_kernels import cli\n"
        "cli.doctor_command.run = lambda options: exec('raise KeyboardInterrupt')\n"
        "sys.exit(cli.main(['doctor']))\n"
    )
    command = [sys.executable, "-m", "interrupted"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_that_was_swallowed():
    """A package that catches every exception while it is imported must not make the command go on."""
    from ess_kernels.commands.interrupts import Interrupts

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        interrupts.check()
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        interrupts.check()
    assert signal.getsignal(signal.SIGINT) is before

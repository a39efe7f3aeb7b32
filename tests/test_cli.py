"""The command line: what it prints, writes and refuses."""

import io
import json
import os
import re
import subprocess
import sys

import pytest
import torch

import ess_kernels
from ess_kernels import _progress, cli
from ess_kernels._limits import MAX_DEMO_BYTES as MAX_BYTES
from ess_kernels._progress import progress

pytest.importorskip("safetensors")

TEXT = "def add(a, b):\n    return a + b\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *arguments) -> str:
    code, out, err = run(capsys, "demo", *arguments)
    assert code == 2 and out == ""
    assert err.startswith("ess-kernels: error: ") and err.count("\n") == 1
    return err


def test_the_table_has_a_row_for_every_layer(capsys):
    code, out, err = run(capsys, "demo", "--text", TEXT, "--no-plot")
    assert code == 0 and err == ""
    assert re.match(
        rf"ess-kernels {re.escape(ess_kernels.__version__)}: {len(TEXT)} bytes of text, \d\.\d\d bits per byte", out
    )
    lines = out.splitlines()
    head = re.split(r"  +", lines[2].strip())
    assert head == [
        "layer",
        "mixer",
        "heads",
        "TSS",
        "entropy-ESS",
        "ESS 1e-1",
        "ESS 1e-3",
        "ESS 1e-5",
        "of cap",
        "time",
    ]
    rows = [re.split(r"  +", line.strip()) for line in lines[4:8]]
    assert [row[1] for row in rows] == ["Mamba-2", "gated linear attention", "linear attention", "softmax attention"]
    assert [row[3] for row in rows] == ["32", "32", "32", "i"]
    for row in rows:
        assert all(float(cell) >= 0 for cell in row[4:8])
        assert re.fullmatch(r"\d+\.\d %", row[8]) and re.fullmatch(r"\d+\.\d\d s", row[9])
    assert len({len(line) for line in lines[2:8]}) == 1
    assert max(map(len, lines)) <= 120
    assert "min(n, i, L-i)" in out


def test_numbers_and_picture_are_written_where_asked(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    numbers, picture = tmp_path / "demo.json", tmp_path / "demo.png"
    code, out, _ = run(capsys, "demo", "--text", TEXT, "--json", numbers, "--plot", picture, "--backend", "torch")
    assert code == 0 and str(numbers) in out and str(picture) in out
    report = json.loads(numbers.read_text())
    assert report["schema"] == "ess-kernels/demo/1" and report["backend"] == "torch"
    assert report["text"]["bytes"] == len(TEXT) and len(report["layers"]) == 4
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_by_default_the_picture_goes_to_the_current_directory(capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "demo", "--text", "ab")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["ess_demo.png"]


def test_text_comes_from_a_file_or_standard_input(capsys, tmp_path, monkeypatch):
    file = tmp_path / "text"
    file.write_bytes(b"\xff\x00bytes of any kind")
    code, out, _ = run(capsys, "demo", "--text-file", file, "--no-plot")
    assert code == 0 and ": 19 bytes of text" in out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"piped")))
    code, out, _ = run(capsys, "demo", "--text-file", "-", "--no-plot")
    assert code == 0 and ": 5 bytes of text" in out
    code, out, _ = run(capsys, "demo", "--text", "né", "--no-plot")
    assert code == 0 and ": 3 bytes of text" in out


def test_bad_texts_are_refused(capsys, tmp_path):
    assert "at least 2 bytes of text, got 0" in refused(capsys, "--text", "")
    assert "at least 2 bytes of text, got 1" in refused(capsys, "--text", "x")
    assert "at most 4096 bytes" in refused(capsys, "--text", "x" * 4097)
    assert "No such file" in refused(capsys, "--text-file", tmp_path / "missing")
    assert "directory" in refused(capsys, "--text-file", tmp_path)


def test_unwritable_targets_are_refused_before_any_work(capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("ess_kernels.demo.measure", lambda *_: pytest.fail("the work was begun"))
    assert "is a directory" in refused(capsys, "--json", tmp_path)
    assert "there is no directory" in refused(capsys, "--json", tmp_path / "missing" / "f.json")
    assert "there is no directory" in refused(capsys, "--plot", tmp_path / "missing" / "f.png")
    assert ".png" in refused(capsys, "--plot", tmp_path / "f.xyz")


def test_outputs_that_cannot_be_written_leave_no_trace(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("ess_kernels.demo.measure", lambda *_: pytest.fail("the work was begun"))
    long = tmp_path / ("x" * 300)
    assert "File name too long" in refused(capsys, "--json", long, "--no-plot")
    (tmp_path / "dangling").symlink_to(tmp_path / "missing" / "f.json")
    assert "No such file" in refused(capsys, "--json", tmp_path / "dangling", "--no-plot")
    if os.path.exists("/proc/version"):  # for root too, who is refused nothing by its permissions
        assert "--json /proc/f.json: " in refused(capsys, "--json", "/proc/f.json", "--no-plot")
        assert "--plot /proc/f.png: " in refused(capsys, "--plot", "/proc/f.png")
    # what is refused later was written nowhere
    (tmp_path / "link").symlink_to(tmp_path / "target.json")
    for name in ("new.json", "link"):
        assert "at least 2 bytes" in refused(capsys, "--json", tmp_path / name, "--no-plot", "--text", "")
    kept = tmp_path / "kept.json"
    kept.write_text("something")
    assert "at least 2 bytes" in refused(capsys, "--json", kept, "--no-plot", "--text", "")
    assert kept.read_text() == "something"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "kept.json", "link"]


def test_no_file_is_written_over_another(capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("ess_kernels.demo.measure", lambda *_: pytest.fail("the work was begun"))
    monkeypatch.chdir(tmp_path)
    one = tmp_path / "one.png"
    clash = "expected another file than that of --json"
    assert clash in refused(capsys, "--json", one, "--plot", one)
    assert clash in refused(capsys, "--json", one, "--plot", "one.png")
    assert clash in refused(capsys, "--json", one, "--plot", "one")  # matplotlib adds .png
    assert clash in refused(capsys, "--json", "ess_demo.png")  # where the picture goes by default
    (tmp_path / "link.png").symlink_to(one)
    assert clash in refused(capsys, "--json", one, "--plot", "link.png")
    one.write_text(TEXT)
    os.link(one, tmp_path / "hard.png")
    assert clash in refused(capsys, "--json", one, "--plot", "hard.png")
    assert "than that of --text-file" in refused(capsys, "--text-file", one, "--json", one, "--no-plot")
    assert one.read_text() == TEXT


def test_a_picture_without_a_suffix_is_named_as_it_is_written(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    code, out, _ = run(capsys, "demo", "--text", "ab", "--plot", tmp_path / "picture")
    assert code == 0 and f"picture: {tmp_path / 'picture.png'}\n" in out
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_a_bad_budget_is_an_error_of_one_line(capsys, monkeypatch):
    monkeypatch.setenv("ESS_KERNELS_MEMORY_BUDGET", "plenty")
    assert "ESS_KERNELS_MEMORY_BUDGET" in refused(capsys, "--text", TEXT, "--no-plot")


def test_help_says_how_long_a_text_may_be(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", "--help"])
    assert caught.value.code == 0 and f"at most {MAX_BYTES} bytes" in " ".join(capsys.readouterr().out.split())


WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in {names!r}:
            {raised}
sys.meta_path.insert(0, Missing())
from ess_kernels.__main__ import main
sys.exit(main())
"""
NOT_FOUND = 'raise ModuleNotFoundError(f"No module named {name!r}", name=name)'


def program(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("names", [("torch",), ("torch", "numpy"), ("numpy",)])
def test_without_torch_the_command_line_says_so(names):
    code = WITHOUT.format(names=names, raised=NOT_FOUND)
    for arguments in (["--version"], ["--help"], ["demo", "--help"]):
        done = program(code, *arguments)
        assert done.returncode == 0 and done.stdout and "Traceback" not in done.stderr, done.stderr
    done = program(code, "doctor")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    for name in names:
        assert re.search(rf"^{name} +not installed: pip install {name}$", done.stdout, re.MULTILINE)
        assert re.search(
            rf"^problem: .*{name} is needed and not installed: pip install {name}", done.stdout, re.MULTILINE
        )
    done = program(code, "demo", "--no-plot")
    assert done.returncode == 2 and done.stdout == ""
    assert re.search(rf"^ess-kernels: error: {names[0]} is needed and not installed: .*\n\Z", done.stderr, re.MULTILINE)


def test_a_broken_torch_is_told_from_a_missing_one():
    code = WITHOUT.format(names=("torch",), raised='raise OSError("libtorch_cpu.so: cannot open shared object file")')
    done = program(code, "doctor")
    assert done.returncode == 1 and done.stderr == ""
    assert "cannot be imported: OSError: libtorch_cpu.so: cannot open shared object file" in done.stdout


def test_without_torch_nothing_else_works():
    code = (
        WITHOUT.format(names=("torch",), raised=NOT_FOUND).partition("from ess_kernels")[0]
        + """
import ess_kernels
for take in (lambda: ess_kernels.tolerance_ess, lambda: __import__("ess_kernels", fromlist=["operators"]).operators):
    try:
        take()
    except ImportError as error:
        print(error)
print(hasattr(ess_kernels, "nonsense"), hasattr(ess_kernels, "__wrapped__"))
"""
    )
    done = program(code)
    assert done.returncode == 0, done.stderr
    needed = "torch is needed and not installed: pip install torch"
    assert done.stdout == f"ess_kernels.tolerance_ess: {needed}\ness_kernels.operators: {needed}\nFalse False\n"


def test_python_m(tmp_path):
    done = subprocess.run([sys.executable, "-m", "ess_kernels", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{ess_kernels.__version__}\n"), done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_the_table_is_printed_though_a_disk_is_full(capsys):
    code, out, err = run(capsys, "demo", "--text", TEXT, "--no-plot", "--json", "/dev/full")
    assert (code, err) == (2, "ess-kernels: error: /dev/full: No space left on device\n")
    assert "softmax attention" in out and "numbers:" not in out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("target", ["/dev/full", None])
def test_standard_output_that_takes_nothing(target):
    redirect = f"> {target}" if target else ">&-"
    code = f"exec '{sys.executable}' -m ess_kernels doctor {redirect}"
    done = subprocess.run(["sh", "-c", code], stderr=subprocess.PIPE, text=True)
    if target:
        assert done.returncode == 2
        assert done.stderr == "ess-kernels: error: standard output: No space left on device\n"
    else:
        assert (done.returncode, done.stderr) == (0, "")


def test_names_that_the_output_cannot_show(tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    path = tmp_path / os.fsdecode(b"\xc3\xa9 \xff.json")
    arguments = ["demo", "--text", TEXT, "--no-plot", "--json", str(path)]
    done = subprocess.run([sys.executable, "-m", "ess_kernels", *arguments], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(path.read_text())["text"]["bytes"] == len(TEXT)


def test_what_the_machine_lacks_is_named(capsys):
    if not torch.cuda.is_available():
        assert "no CUDA device" in refused(capsys, "--device", "cuda", "--no-plot")
    for backend in ess_kernels.show_config().backends:
        if not backend.usable:
            assert backend.name in refused(capsys, "--backend", backend.name, "--text", TEXT, "--no-plot")


@pytest.mark.parametrize("module", ["safetensors", "matplotlib"])
def test_a_missing_extra_is_named_with_its_command(capsys, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    err = refused(capsys, "--text", TEXT, "--plot", tmp_path / "f.png")
    assert module in err and "pip install 'ess-kernels[cli]'" in err


def test_without_matplotlib_the_table_is_still_printed(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "demo", "--text", TEXT)
    assert code == 0 and "softmax attention" in out
    assert "no picture" in err and "pip install 'ess-kernels[cli]'" in err
    assert not list(tmp_path.iterdir())


def test_doctor_prints_the_configuration(capsys):
    code, out, err = run(capsys, "doctor")
    assert code == 0 and err == "" and out == f"{ess_kernels.show_config()}\n"
    assert all(name in out for name in ("torch", "reference", "native", "triton"))


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["demo", "--text", "a", "--text-file", "b"], ["demo", "--backend", "x"]]
)
def test_wrong_usage_exits_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2 and "usage:" in capsys.readouterr().err


def test_the_command_in_a_pipe_that_closes(tmp_path):
    command = [sys.executable, "-m", "ess_kernels", "demo", "--text", "abc", "--no-plot", "--json", tmp_path / "f.json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(120) == 0
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    assert json.loads((tmp_path / "f.json").read_text())["text"]["bytes"] == 3


def test_no_bar_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr(_progress, "DELAY", 0)
    stream = io.StringIO()
    assert list(progress([1, 2, 3], "work", stream)) == [1, 2, 3]
    with progress(2, "work", stream) as bar:
        bar.advance()
    assert stream.getvalue() == ""


def test_a_bar_on_a_terminal_that_is_wiped_at_the_end(monkeypatch):
    monkeypatch.setattr(_progress, "DELAY", 0)
    monkeypatch.setattr(_progress, "PERIOD", 0)
    stream = Terminal()
    with progress(4, "layers", stream) as bar:
        bar.advance()
        bar.advance(2, "last layer")
    drawn = stream.getvalue()
    assert "layers  [######..................]  25 %" in drawn
    assert "last layer  [##################......]  75 %" in drawn
    assert drawn.endswith("\r\x1b[K")
    unsized = Terminal()
    assert list(progress(iter("ab"), "items", unsized)) == ["a", "b"]
    assert "items  2  0 s" in unsized.getvalue()


def test_short_work_draws_nothing():
    stream = Terminal()
    list(progress(range(5), "work", stream))
    assert stream.getvalue() == ""


def test_a_closed_stream_does_not_end_the_work(monkeypatch):
    monkeypatch.setattr(_progress, "DELAY", 0)
    stream = Terminal()
    with progress(2, "work", stream) as bar:
        stream.close()
        bar.advance()
        bar.advance()
    assert bar.done == 2
    with pytest.raises(TypeError, match="advance"):
        iter(progress(2, "work")).__next__()

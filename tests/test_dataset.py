"""`analyze_dataset`: what is in a part, what is a problem, when a run goes on and when it is refused."""

import json
import os
import socket

import pytest
import torch
from dataset_inputs import bytes_of, parts_of, small_model, write_shard, write_shards

import ess_kernels as ek
from ess_kernels import environment
from ess_kernels._whole_files import write_whole
from ess_kernels.analysis.dataset import shard as shard_module
from ess_kernels.demo.model import ByteLM

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
safetensors = pytest.importorskip("safetensors.torch")

ATOL = [0.1, 1e-3]


def run(inputs, out, model=small_model, **options):
    return ek.analyze_dataset(model, inputs, out, **{"atol": ATOL, **options})


def table(out):
    return parquet.read_table(out).to_pylist()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run: its inputs, and its directory."""
    folder = tmp_path_factory.mktemp("done")
    inputs = write_shards(folder / "in")
    found = run(inputs, folder / "out")
    assert (found.shards, found.share, found.there, found.prompts, found.problems) == (3, 3, 0, 6, 0)
    assert found.failed == {} and "3 done now, 0 failed; 6 prompts, 0 with a problem" in str(found)
    return inputs, folder / "out"


def test_a_row_has_the_numbers_of_analyze(done):
    rows = [row for row in table(done[1]) if row["id"] == "001-1"]
    assert len(rows) == 2 * 2 * (1 + len(ATOL))  # layers, heads; entropy and each tolerance
    prompt = parquet.read_table(done[0].replace("*", "001"))["text"].to_pylist()[1]
    analysis = ek.analyze(small_model()[0], torch.tensor([bytes_of(prompt)]), atol=ATOL)
    for row in rows:
        layer = analysis.layers[row["layer"]]
        ess = layer.entropy if row["metric"] == "entropy" else layer.tolerance[row["atol"]]
        assert row["value"] == ess[0, row["head"]].double().tolist()
        assert row["position"] == layer.positions.tolist() and row["cap"] == layer.cap[0].tolist()
        assert (row["shard"], row["row"], row["length"]) == ("001.parquet", 1, len(prompt))
        assert (row["mixer"], row["state_size"], row["check"]) == (layer.mixer, layer.state_size, layer.check)
        assert row["capture_error"] == layer.capture_error and row["problem"] is None
        record = next(
            record
            for record in analysis.records()
            if all(record[name] == row[name] for name in ("layer", "head", "metric", "atol"))
        )
        for name in ("mean", "max", "utilisation", "saturated", "collapsed"):
            assert row[name] == pytest.approx(record[name], nan_ok=True)
        if row["metric"] == "tolerance":
            assert row["width"] == layer.widths[row["atol"]][0, row["head"]] and row["unresolved"] == 0
        else:
            assert row["width"] is None and row["unresolved"] is None


def test_a_run_is_a_data_set_for_pandas_and_pyarrow(done):
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(done[1])
    assert len(frame) == parquet.read_table(done[1]).num_rows == 6 * 12
    assert frame.groupby("layer")["mean"].count().tolist() == [36, 36]
    names = sorted(os.listdir(done[1]))
    assert names == ["_run.json", "part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    about = json.loads((done[1] / "_run.json").read_text())
    assert about["settings"]["model"]["class"] == "ByteLM" and about["versions"]["torch"] == torch.__version__
    assert [shard["name"] for shard in about["inputs"]] == ["000.parquet", "001.parquet", "002.parquet"]


def test_a_finished_run_does_nothing_again(done, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in done[1].iterdir()}
    monkeypatch.setattr(shard_module, "analyze_prompt", lambda *_: pytest.fail("a prompt was analysed"))
    found = run(*done)
    assert (found.there, found.prompts) == (3, 0)
    assert {path: path.stat().st_mtime_ns for path in done[1].iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"atol": 0.2}, r"atol was \[0.1, 0.001\] and is \[0.2\]"),
        ({"max_tokens": 9}, "max_tokens was 2048 and is 9"),
        ({"model": lambda: (small_model()[0].double(), bytes_of)}, "model was .*sha256.* and is"),
    ],
)
def test_another_run_is_refused_with_what_differs(done, options, message):
    before = parts_of(done[1])
    with pytest.raises(ValueError, match=f"out: .* holds another run: {message}"):
        run(*done, **options)
    assert parts_of(done[1]) == before


def test_the_same_settings_in_other_words_are_the_same_run(done):
    assert run(*done, atol=tuple(ATOL), metrics=["tolerance", "entropy"]).there == 3


def test_changed_inputs_are_another_run(tmp_path):
    inputs, out = write_shards(tmp_path / "in", shards=2), tmp_path / "out"
    run(inputs, out)
    os.utime(tmp_path / "in" / "000.parquet", (1, 1))  # another time, the same content
    assert run(inputs, out).there == 2
    write_shard(tmp_path / "in" / "001.parquet", ["other text"])
    with pytest.raises(ValueError, match=r"input 001.parquet has changed, and its part is finished"):
        run(inputs, out)
    (out / "part-00001.parquet").unlink()
    assert run(inputs, out).prompts == 1
    write_shard(tmp_path / "in" / "002.parquet", ["one more"])
    with pytest.raises(ValueError, match=r"inputs: 1 new, such as 002.parquet"):
        run(inputs, out)
    found = run(inputs, out, restart=True)
    assert (found.there, found.prompts) == (0, 4)
    (tmp_path / "in" / "000.parquet").unlink()
    with pytest.raises(ValueError, match=r"inputs: 1 no longer there, such as 000.parquet"):
        run(inputs, out)


def test_a_shard_that_cannot_be_read_is_left_out_until_it_can(tmp_path):
    inputs, out = write_shards(tmp_path / "in"), tmp_path / "out"
    content = (tmp_path / "in" / "001.parquet").read_bytes()
    (tmp_path / "in" / "001.parquet").write_bytes(content[:-5])
    told = []
    found = run(inputs, out, report=told.append)
    assert list(found.failed) == ["001.parquet"] and "Parquet" in found.failed["001.parquet"]
    assert [outcome.done for outcome in told] == [True, False, True]
    assert sorted(parts_of(out)) == ["part-00000.parquet", "part-00002.parquet"]
    (tmp_path / "in" / "001.parquet").write_bytes(content)
    found = run(inputs, out)
    assert (found.there, found.prompts, found.failed) == (2, 2, {})
    assert run(inputs, out).there == 3


def test_what_is_wrong_with_a_prompt_is_in_its_row(tmp_path):
    texts = [b"fine text", b"", b"x", None, b"caf\xff", b"much too long a text"]
    write_shard(tmp_path / "a.parquet", texts, ids=[7, 8, None, 10, 11, 12])
    found = run(tmp_path / "a.parquet", tmp_path / "out", max_tokens=12)
    assert (found.prompts, found.problems) == (6, 5)
    assert found.first_problem == "expected a prompt, got an empty one"
    rows = {row["row"]: row for row in table(tmp_path / "out")}
    assert [rows[i]["id"] for i in range(6)] == [7, 8, None, 10, 11, 12]
    assert [rows[i]["problem"] for i in range(6)] == [
        None,
        "expected a prompt, got an empty one",
        "expected at least 2 tokens, got 1",
        "expected a prompt, got null",
        "expected UTF-8, got other bytes: invalid start byte at byte 3",
        "expected at most 12 tokens, got 20",
    ]
    assert rows[1]["layer"] is None and rows[1]["value"] is None
    assert run(tmp_path / "a.parquet", tmp_path / "cut", max_tokens=12, max_length=12).problems == 4


def test_prompts_may_be_numbers_of_tokens(tmp_path):
    write_shard(tmp_path / "a.parquet", [[5, 6, 7], [5, None], [1, 300], []])
    found = run(tmp_path / "a.parquet", tmp_path / "out", model=small_model()[0])
    assert (found.prompts, found.problems) == (4, 3)
    problems = {row["row"]: row["problem"] for row in table(tmp_path / "out")}
    assert problems[0] is None and "got null among them" in problems[1] and "IndexError" in problems[2]
    assert problems[3] == "expected at least 2 tokens, got 0"
    with pytest.raises(ValueError, match=r"tokenizer: expected one, for the prompts of .* are texts"):
        run(write_shards(tmp_path / "in"), tmp_path / "other", model=small_model()[0])


def test_a_layer_that_cannot_be_analysed_is_a_row_with_a_problem(tmp_path):
    class Averaging(torch.nn.Module):
        def forward(self, x):
            return x.cumsum(1)

    class WithAverage(ByteLM):
        def __init__(self, config):
            super().__init__(config)
            self.average = Averaging()

        def forward(self, input_ids):
            return self.average(super().forward(input_ids))

    inputs = write_shards(tmp_path / "in", shards=1, rows=1)
    found = run(inputs, tmp_path / "out", model=WithAverage(small_model()[0].config), tokenizer=bytes_of)
    assert found.problems == 1 and found.first_problem.startswith("unknown mixer: Averaging mixes over time")
    rows = table(tmp_path / "out")
    assert {row["layer"] for row in rows if row["problem"] is None} == {"blocks.0.mixer", "blocks.1.mixer"}
    (row,) = [row for row in rows if row["problem"] is not None]
    assert row["layer"] == "average" and row["length"] == 12 and row["head"] is None and row["value"] is None


def test_a_model_that_fails_on_a_prompt_goes_on_with_the_next(tmp_path):
    write_shard(tmp_path / "a.parquet", [[5, 6, 7], [1, 300], [7, 6, 5]])
    assert run(tmp_path / "a.parquet", tmp_path / "out", model=small_model()[0]).problems == 1
    rows = table(tmp_path / "out")
    assert [len([row for row in rows if row["row"] == i]) for i in range(3)] == [12, 1, 12]


def test_positions_and_layers(tmp_path):
    write_shard(tmp_path / "a.parquet", ["twelve bytes", "five."])
    options = {"positions": [11, 3], "layers": "blocks.1*", "metrics": ["tolerance"], "atol": 0.5}
    run(tmp_path / "a.parquet", tmp_path / "out", **options)
    rows = table(tmp_path / "out")
    assert [(row["row"], row["position"]) for row in rows] == [(0, [11, 3])] * 2 + [(1, [3])] * 2
    assert {(row["layer"], row["metric"], row["atol"]) for row in rows} == {("blocks.1.mixer", "tolerance", 0.5)}


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("too little"),
        torch.OutOfMemoryError("CUDA out of memory, too little"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: too little"),
    ],
)
def test_too_little_memory_is_no_result(tmp_path, monkeypatch, error):
    """It says something of this machine, not of the prompt: the shard is left for another run."""
    inputs = write_shards(tmp_path / "in", shards=1)

    def fails(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(shard_module, "analyze_prompt", fails)
        found = run(inputs, tmp_path / "out")
    assert "prompt '000-0' of 12 tokens" in found.failed["000.parquet"] and "too little" in found.failed["000.parquet"]
    assert parts_of(tmp_path / "out") == {}
    assert run(inputs, tmp_path / "out").failed == {}


def test_what_is_wrong_with_arguments_is_said_before_any_work(tmp_path, monkeypatch):
    inputs, out = write_shards(tmp_path / "in"), tmp_path / "out"

    def refused(error, message, inputs=inputs, **options):
        with pytest.raises(error, match=message):
            run(inputs, out, **options)
        assert not out.exists()

    refused(ValueError, "id_column: .* has no column 'key'; its columns are id, text", id_column="key")
    refused(ValueError, "text_column: .* has no column 'prompt'", text_column="prompt")
    refused(ValueError, "inputs: there is no file", inputs=str(tmp_path / "no*.parquet"))
    refused(ValueError, "inputs: expected files that end in", inputs=__file__)
    refused(ValueError, "inputs: expected files, got the folder", inputs=tmp_path / "in")
    refused(TypeError, "inputs: expected names of files", inputs=[1])
    refused(ValueError, "inputs: expected at least one file", inputs=[])
    refused(ValueError, "engine: expected one of local, ray", engine="dask")
    refused(ValueError, "workers: expected at least 1", workers=0)
    refused(TypeError, "max_tokens: expected an integer", max_tokens=1.5)
    refused(ValueError, "positions: expected at least 1", positions=[0])
    refused(ValueError, "layers: no module", layers="*.nothing")
    refused(ValueError, "atol", atol=[])
    refused(ValueError, "metrics: expected some", metrics=["rank"])
    refused(ValueError, "model: expected a model", model=None)
    refused(TypeError, "model: expected a torch.nn.Module", model=lambda: "a model")
    refused(TypeError, "model: expected a torch.nn.Module", model="a name")
    refused(ValueError, "model: other processes need a function", model=small_model()[0], workers=2)
    refused(TypeError, "model: other processes need .* they can import", model=lambda: small_model(), workers=2)
    write_shard(tmp_path / "in" / "numbers.parquet", ["text"], ids=[1])
    refused(ValueError, "id_column: integers in .*, and texts in")
    write_shard(tmp_path / "in" / "numbers.parquet", [1.5])
    refused(ValueError, "text_column: expected texts, or lists")
    write_shard(tmp_path / "in" / "numbers.parquet", ["text"], ids=[1.5])
    refused(ValueError, "id_column: expected integers or texts")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "in" / "numbers.parquet").unlink()
    refused(ValueError, "restart: expected one process", restart=True)


def test_a_directory_with_other_files_is_refused(tmp_path):
    inputs, out = write_shards(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for restart in (False, True):
        with pytest.raises(ValueError, match=r"out: .* holds files of no run, such as notes.txt"):
            run(inputs, out, restart=restart)
    (out / "notes.txt").rename(out / "_run.json")
    with pytest.raises(ValueError, match=r"_run.json cannot be read"):
        run(inputs, out)
    (out / "_run.json").write_text("[]")
    with pytest.raises(ValueError, match="of another version of this package, or no run's"):
        run(inputs, out)
    with pytest.raises(OSError, match="is no directory"):
        run(inputs, tmp_path / "in" / "000.parquet" / "out")


def test_awkward_shards(tmp_path):
    import pyarrow

    (tmp_path / "in" / "deeper").mkdir(parents=True)
    empty = {"id": pyarrow.array([], pyarrow.int64()), "text": pyarrow.array([], pyarrow.string())}
    parquet.write_table(pyarrow.table(empty), tmp_path / "in" / "a.parquet")
    words = {"id": [5], "text": pyarrow.array(["words"]).dictionary_encode()}
    parquet.write_table(pyarrow.table(words), tmp_path / "in" / "b.parquet")
    large = {"id": pyarrow.array([6], pyarrow.int32()), "text": pyarrow.array(["large words"], pyarrow.large_string())}
    parquet.write_table(pyarrow.table(large), tmp_path / "in" / "deeper" / "a.parquet")
    inputs = str(tmp_path / "in" / "**" / "*.parquet")
    found = run(inputs, tmp_path / "out", positions=[8])
    assert (found.shards, found.prompts, found.problems, found.failed) == (3, 2, 0, {})
    rows = table(tmp_path / "out")
    assert {(row["shard"], row["id"]) for row in rows} == {("b.parquet", 5), ("deeper/a.parquet", 6)}
    assert {(row["id"], *row["position"]) for row in rows} == {(5,), (6, 8)}  # the shorter one has no position 8
    assert run(inputs, tmp_path / "out", positions=[8]).there == 3


def test_a_dry_run_writes_nothing(tmp_path):
    found = run(write_shards(tmp_path / "in"), tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    assert (found.shards, found.prompts) == (3, 6) and set(found.plan.layers) == {"blocks.0.mixer", "blocks.1.mixer"}
    assert str(found) == "3 shards: 0 done before, 3 to do with 6 prompts"


def test_processes_of_a_cluster_share_the_shards(tmp_path, monkeypatch, done):
    inputs, out = done[0], tmp_path / "out"
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        found = run(inputs, out)
        shares.append((found.shards, found.share, found.prompts))
    assert shares == [(3, 1, 2), (3, 2, 4)]
    assert parts_of(out) == parts_of(done[1])


@pytest.mark.parametrize(
    ("variables", "share"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "8"}, (5, 8)),
        ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}, (0, 4)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "14",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            (2, 3),
        ),
        ({"RANK": "8", "WORLD_SIZE": "8"}, None),
        ({"RANK": "0"}, None),
        ({"RANK": "one", "WORLD_SIZE": "8"}, None),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3"}, None),
    ],
)
def test_which_share_a_process_has(monkeypatch, variables, share):
    for name in ("RANK", "WORLD_SIZE", *(f"SLURM_ARRAY_TASK_{end}" for end in ("ID", "COUNT", "MIN", "STEP"))):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if share is None:
        with pytest.raises(ValueError, match="environment variable"):
            environment.process_share()
    else:
        assert environment.process_share() == share


def test_what_killed_runs_of_this_machine_left_is_removed(tmp_path, done):
    host = socket.gethostname().replace(".", "_")
    start = 10**15  # of no process
    left = tmp_path / f".part-00001.abc.{host}.{os.getpid()}-{start}.tmp"
    elsewhere = tmp_path / ".part-00001.abc.another-machine.17-5.tmp"
    other = tmp_path / ".hidden"
    for path in (left, elsewhere, other):
        path.write_bytes(b"half a part")

    def write(path):
        assert path.name.startswith(".part-00009.") and path.name.endswith(".tmp")
        path.write_text("whole")
        run(done[0], tmp_path)
        assert path.exists()  # of a process that lives
        assert not left.exists() and elsewhere.exists() and other.exists()

    write_whole(tmp_path / "part-00009.parquet", write, durable=True)
    assert (tmp_path / "part-00009.parquet").read_text() == "whole"


def test_files_that_are_there_may_be_kept(tmp_path):
    path = tmp_path / "f"
    for text in ("first", "second"):
        write_whole(path, lambda temporary, text=text: temporary.write_text(text), durable=True, replace=False)
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["f"]


def test_an_interrupted_shard_leaves_nothing(tmp_path, monkeypatch):
    inputs, out = write_shards(tmp_path / "in"), tmp_path / "out"
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:  # in the middle of the second shard
            raise KeyboardInterrupt
        return analyze_prompt(*arguments)

    analyze_prompt = shard_module.analyze_prompt
    with monkeypatch.context() as patch:
        patch.setattr(shard_module, "analyze_prompt", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(inputs, out)
    assert sorted(os.listdir(out)) == ["_run.json", "part-00000.parquet"]
    assert run(inputs, out).there == 1

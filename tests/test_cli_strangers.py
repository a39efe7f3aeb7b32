"""Checkpoints from strangers: no code of theirs runs, no connection is opened, and each fault is one clear line."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from analyze_command import refused, run
from checkpoints import TEXT, change_json, save_llama, trap_code, write_trap

from ess_kernels import cli
from ess_kernels._printable import printable

pytest.importorskip("transformers")
pytest.importorskip("safetensors")

ESCAPE = "\x1b[31m"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def copy(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "copy")


@pytest.fixture
def proof(tmp_path):
    return tmp_path / "proof"


@pytest.fixture(autouse=True)
def no_connection(monkeypatch):
    def refuse(*arguments, **_):
        pytest.fail(f"a connection was opened: {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# --- pickles ----------------------------------------------------------------------------------------------------------


def test_a_pickled_checkpoint_is_refused_with_the_command_that_converts_it(capsys, copy, proof):
    (copy / "model.safetensors").unlink()
    write_trap(copy / "pytorch_model.bin", proof)
    err = refused(capsys, copy, "--text", TEXT)
    assert "pytorch_model.bin is a pickle" in err and "This converts it: python -c" in err
    (copy / "pytorch_model.bin").rename(copy / "pytorch_model-00001-of-00001.bin")
    (copy / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}')
    assert "is a pickle" in refused(capsys, copy, "--text", TEXT)
    (copy / "pytorch_model.bin.index.json").unlink()
    assert "expected model.safetensors" in refused(capsys, copy, "--text", TEXT)
    assert not proof.exists()


@pytest.mark.thorough
def test_the_command_that_converts_a_pickled_checkpoint(capsys, tmp_path, copy):
    from transformers import AutoModelForCausalLM

    weights = AutoModelForCausalLM.from_pretrained(copy).state_dict()
    capsys.readouterr()
    folder = copy.rename(tmp_path / "it's a folder")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    command = refused(capsys, folder, "--text", TEXT).partition("This converts it: python")[2].rstrip("\n")
    done = subprocess.run(["sh", "-c", f'"{sys.executable}"{command}'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code, out, _ = run(capsys, f"{folder}-safetensors", "--text", TEXT)
    assert code == 0 and "2 mixers" in out


@pytest.mark.parametrize("name", ["evil.bin", "../evil.safetensors", "/evil.safetensors", "missing.safetensors", 7])
def test_an_index_cannot_name_other_files(capsys, copy, proof, name):
    (copy / "model.safetensors").unlink()
    for folder in (copy, copy.parent):
        write_trap(folder / "evil.bin", proof)
        write_trap(folder / "evil.safetensors", proof)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": name}}))
    assert "model.safetensors.index.json: " in refused(capsys, copy, "--text", TEXT)
    assert not proof.exists()


def test_a_checkpoint_in_several_files(capsys, copy):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(copy).save_pretrained(copy, max_shard_size="20KB")
    capsys.readouterr()
    (copy / "model.safetensors").unlink(missing_ok=True)
    assert len(list(copy.glob("model-*.safetensors"))) > 1
    code, out, err = run(capsys, copy, "--text", TEXT)
    assert (code, err) == (0, "") and "2 mixers" in out


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"\xff" * 64, b"\x05" + b"\x00" * 7 + b"[1,2]", None])
def test_a_damaged_weights_file(capsys, copy, proof, content):
    write_trap(copy / "model.safetensors", proof)
    if content is not None:
        (copy / "model.safetensors").write_bytes(content)
    assert "model.safetensors: expected a safetensors file" in refused(capsys, copy, "--text", TEXT)
    assert not proof.exists()


def test_other_files_beside_the_weights_are_not_looked_at(capsys, copy, proof):
    for name in (".metadata", "pytorch_model.bin", "training_args.bin", "adapter_model.bin", "__0_0.distcp"):
        write_trap(copy / name, proof)
    (copy / "adapter_config.json").write_text('{"base_model_name_or_path": "evil", "peft_type": "LORA"}')
    (copy / "generation_config.json").write_text("no JSON")
    for name in ("sitecustomize.py", "modeling_llama.py", "custom_generate.py"):
        (copy / name).write_text(trap_code(proof))
    change_json(copy / "config.json", attn_implementation="evil/kernel", transformers_weights="pytorch_model.bin")
    code, out, err = run(capsys, copy, "--text", TEXT)
    assert (code, err) == (0, "") and "2 mixers" in out
    assert not proof.exists()


# --- code -------------------------------------------------------------------------------------------------------------


def add_code(folder, proof, kind):
    (folder / "configuration_own.py").write_text(
        trap_code(proof)
        + f"from transformers import LlamaConfig\nclass OwnConfig(LlamaConfig):\n    model_type = {kind!r}\n"
    )
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\nfrom .configuration_own import OwnConfig\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    names = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    change_json(folder / "config.json", model_type=kind, auto_map=names)


def test_code_of_a_checkpoint_runs_only_if_asked_for(capsys, monkeypatch, tmp_path, copy, proof):
    add_code(copy, proof, "own")
    err = refused(capsys, copy, "--text", TEXT)
    assert "needs code of the checkpoint" in err and "--trust-remote-code" in err
    assert not proof.exists()
    for module in ("transformers.utils.hub", "transformers.dynamic_module_utils"):
        monkeypatch.setattr(f"{module}.HF_MODULES_CACHE", str(tmp_path / "modules"))
    code, out, _ = run(capsys, copy, "--text", TEXT, "--trust-remote-code")
    assert code == 0 and "OwnForCausalLM: 2 mixers" in out
    assert proof.exists()


def test_the_library_s_own_code_is_taken_where_there_is_some(capsys, copy, proof):
    add_code(copy, proof, "llama")
    code, out, err = run(capsys, copy, "--text", TEXT)
    assert (code, err) == (0, "") and "LlamaForCausalLM: 2 mixers" in out
    assert not proof.exists()


def test_code_of_a_tokenizer(capsys, copy, proof):
    (copy / "tokenization_own.py").write_text(trap_code(proof))
    change_json(
        copy / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
    )
    code, _, err = run(capsys, copy, "--text", TEXT)
    assert code == 0 or "--trust-remote-code" in err
    assert not proof.exists()


# --- strange files ----------------------------------------------------------------------------------------------------


def test_there_must_be_a_checkpoint(capsys, tmp_path, copy):
    assert "there is no such folder" in refused(capsys, tmp_path / "missing", "--text", TEXT)
    assert "--download fetches it" in refused(capsys, "nobody/nothing", "--text", TEXT)
    assert "got a file" in refused(capsys, copy / "config.json", "--text", TEXT)
    (copy / "config.json").unlink()
    assert "found no config.json" in refused(capsys, copy, "--text", TEXT)
    (copy / "adapter_config.json").write_text("{}")
    assert "is an adapter" in refused(capsys, copy, "--text", TEXT)


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", "[" * 100000, '{"model_type": 3}', '{"model_type": "mystery"}', "{}"]
)
def test_a_strange_configuration(capsys, copy, content):
    (copy / "config.json").write_text(content)
    assert "config.json: " in refused(capsys, copy, "--text", TEXT)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "wide"},
        {"hidden_size": 31},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 10**12},
        {"hidden_size": 10**30},
        {"vocab_size": -5},
        {"model_type": "bert"},
    ],
)
def test_a_configuration_that_does_not_fit(capsys, copy, changes):
    change_json(copy / "config.json", **changes)
    refused(capsys, copy, "--text", TEXT)


def test_weights_that_are_missing_are_not_made_up(capsys, copy):
    change_json(copy / "config.json", num_hidden_layers=3)
    err = refused(capsys, copy, "--text", TEXT)
    assert "lacks weights of LlamaForCausalLM: model.layers.2." in err and "random" in err


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"model": {"type": "mystery"}}', '{"version": "1.0", "model": null}']
)
def test_a_strange_tokenizer(capsys, copy, content):
    (copy / "tokenizer.json").write_text(content)
    assert "tokenizer" in refused(capsys, copy, "--text", TEXT)


# --- the terminal and the network -------------------------------------------------------------------------------------


def test_control_characters_never_reach_the_terminal(capsys, tmp_path, copy):
    folder = copy.rename(tmp_path / f"m{ESCAPE}\n\u202e")
    code, out, err = run(
        capsys, folder, "--text", f"a{ESCAPE}b{ESCAPE}c", "--delimiter", ESCAPE, "--json", folder / "f.json"
    )
    assert (code, err) == (0, "")
    assert "\x1b" not in out and "\u202e" not in out
    assert r"Delimiter '\x1b[31m': found 2 times" in out and r"/m\x1b[31m\n\u202e/f.json" in out
    assert r"m\x1b[31m\n\u202e" in refused(capsys, folder, "--text", "")[:0] + refused(
        capsys, folder / "x", "--text", TEXT
    )
    assert r"\x1b[31m" in refused(capsys, folder, "--text", TEXT, "--layers", ESCAPE)
    change_json(folder / "config.json", model_type=f"{ESCAPE}\n")
    assert r"'\x1b[31m\n'" in refused(capsys, folder, "--text", TEXT)
    with pytest.raises(SystemExit):
        cli.main(["analyze", "--nonsense", ESCAPE, "--text", TEXT, ESCAPE, "more" + ESCAPE])
    assert "\x1b" not in capsys.readouterr().err
    assert printable("plain text, é, 語") == "plain text, é, 語"


def test_a_name_in_the_cache(capsys, monkeypatch, tmp_path, llama, proof):
    repository, commit = tmp_path / "cache" / "models--some--model", "0" * 40
    shutil.copytree(llama, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    code, out, err = run(capsys, "some/model", "--text", TEXT)
    assert (code, err) == (0, "") and "2 mixers" in out
    (repository / "snapshots" / commit / "model.safetensors").unlink()
    write_trap(repository / "snapshots" / commit / "pytorch_model.bin", proof)
    err = refused(capsys, "some/model", "--text", TEXT)
    assert "is a pickle" in err and "model-safetensors" in err
    assert not proof.exists()


def test_settings_are_as_before(capsys, copy):
    from huggingface_hub import constants
    from transformers.utils import logging

    def settings():
        return constants.HF_HUB_OFFLINE, logging.get_verbosity(), logging.is_progress_bar_enabled(), dict(os.environ)

    before = settings()
    assert run(capsys, copy, "--text", TEXT)[0] == 0
    assert settings() == before
    (copy / "tokenizer.json").write_text("{}")
    refused(capsys, copy, "--text", TEXT)
    assert settings() == before


WITHOUT_NETWORK = """
import socket, sys
def refuse(*arguments, **options):
    print("a connection was opened", arguments, file=sys.stderr)
    raise SystemExit(99)
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from ess_kernels.cli import main
sys.exit(main())
"""


@pytest.mark.thorough
@pytest.mark.parametrize("name", [None, "openai-community/gpt2"])
def test_a_fresh_process_opens_no_connection(tmp_path, llama, name):
    command = [sys.executable, "-c", WITHOUT_NETWORK, "analyze", name or str(llama), "--text", TEXT]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path / "empty")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if name is None:
        assert (done.returncode, done.stderr) == (0, "") and "2 mixers" in done.stdout
    else:
        assert done.returncode == 2 and "--download fetches it" in done.stderr

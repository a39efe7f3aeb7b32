"""How the tests run: in how many processes, on a GPU or in Triton's interpreter, and under which tools of `gpu_tools`.

Where there is no GPU, Triton's kernels run in its interpreter: it must be told so before triton is imported.
"""

import os
from pathlib import Path

import pytest

WORKER = "PYTEST_XDIST_WORKER" in os.environ  # a process that pytest-xdist has started
if WORKER:  # one thread each, which torch must find when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402

# Beyond that many processes, what each of them imports and collects outweighs the tests that it takes.
MOST_PROCESSES = 8


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("Triton kernels without a GPU")
    group.addoption(
        "--triton-races",
        action="store_true",
        help="watch the tests in tests/triton_kernels for races, addresses out of bounds and reads of unwritten memory",
    )
    group.addoption(
        "--triton-orders",
        default="",
        metavar="ORDERS",
        help="with --triton-races: also run programs in these orders and compare: reversed,shuffled",
    )
    group.addoption(
        "--ptx-emulator",
        action="store_true",
        help="run kernels as compiled for a GPU in an emulator, thread by thread, not in the interpreter",
    )
    group.addoption(
        "--ptx-capability",
        type=int,
        default=90,
        metavar="NUMBER",
        help="with --ptx-emulator: the GPU to compile for, 90 for sm_90",
    )
    group.addoption(
        "--ptx-backwards",
        action="store_true",
        help="with --ptx-emulator: run the programs of a launch from the last to the first",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Spreads the default tests, all of them, over the processors if pytest-xdist is installed.

    Whatever is asked of pytest in particular, some files, marks or words, a debugger or output as it comes, runs in one
    process as it always did, and `-n` decides for itself: `-n 0` is one process.
    """
    option = config.option
    everything = [config.invocation_params.dir / name for name in config.args] == [Path(__file__).parent]
    particular = option.keyword or option.usepdb or option.trace or option.capture == "no" or option.collectonly
    particular = particular or option.setupshow or option.setuponly or option.setupplan
    default = option.markexpr in config.getini("addopts")
    if everything and default and not particular and not WORKER and getattr(option, "numprocesses", 0) is None:
        processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if processes > 1:
            option.numprocesses, option.dist = min(processes, MOST_PROCESSES), "worksteal"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Marks what every family inherits and what takes seconds; in ess_kernels.testing there is no pytest to say so."""
    name = getattr(item, "originalname", "")
    if name == "test_interpreted_kernels_agree_with_the_definition":
        item.add_marker(pytest.mark.thorough if item.cls.speaks_for_its_kind else pytest.mark.slow)
    elif name in ("test_packed_sequences_in_a_compiled_graph", "test_one_compiled_graph_gives_the_same_numbers"):
        item.add_marker(pytest.mark.thorough)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("ptx_emulator", False):
        os.environ["TRITON_INTERPRET"] = "0"
        # a GPU that is there must not get the tensors
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        from gpu_tools.emulator.plugin import EmulatorPlugin

        config.pluginmanager.register(EmulatorPlugin(config))
        return
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    if config.getoption("triton_races", False):
        from gpu_tools.races.plugin import RacesPlugin

        config.pluginmanager.register(RacesPlugin(config))

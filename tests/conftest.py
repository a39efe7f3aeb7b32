"""Where there is no GPU, Triton's kernels run in its interpreter: it must be told so before triton is imported.

Also the options of the tools in `gpu_tools`.
"""

import os

import pytest
import torch


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

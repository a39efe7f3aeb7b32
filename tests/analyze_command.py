"""`ess-kernels analyze`, called in this process: shared by its tests."""

from ess_kernels import cli


def run(capsys, *arguments):
    """The exit code, and what was printed."""
    code = cli.main(["analyze", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *arguments) -> str:
    """The one line that says why a call was refused."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, ""), err
    assert err.startswith("ess-kernels: error: ") and err.count("\n") == 1
    assert err[:-1].isprintable()
    return err

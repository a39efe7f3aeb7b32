"""Runs the slow tests for a limited time: every file gets a share of it, and what was not reached is printed.

    python .ci/slow_tests.py SECONDS [arguments of pytest]

A file's share is what is left of the time divided by the files left, so that time which a quick file leaves goes to the
others. Files are taken from the last to the first: those of the kernels, which take longest, come last. The exit
status is 1 if a test failed; running out of time is no failure. Standard library only.
"""

import re
import signal
import subprocess
import sys
import time

PYTEST = [sys.executable, "-m", "pytest", "-m", "slow and not gpu", "-p", "no:cacheprovider"]
OUTCOME = re.compile(r"^(\S+::.*?) (PASSED|FAILED|SKIPPED|ERROR|XFAIL|XPASS)\b", re.MULTILINE)
# tests of a file that were not reached and are printed; of products of parameters there may be hundreds
MOST_NAMED = 5
# how long pytest may take to end once it is told to
PATIENCE = 30


def main(seconds: float, arguments: list[str]) -> int:
    deadline = time.monotonic() + seconds
    files = collect(arguments)
    outcomes: dict[str, str] = {}
    broken = []
    for index, (file, tests) in enumerate(reversed(files.items())):
        if time.monotonic() > deadline:
            break  # a file takes its imports and its first test, however short its share
        share = max((deadline - time.monotonic()) / (len(files) - index), 1)
        begin = time.monotonic()
        found, whole = run(file, share)
        outcomes |= found
        if not whole:
            broken.append(file)
        reached = sum(test in found for test in tests)
        print(f"{file}: {reached} of {len(tests)} tests, {time.monotonic() - begin:.0f} of {share:.0f} s", flush=True)
    for file, tests in files.items():
        missed = [test for test in tests if test not in outcomes]
        for test in missed[:MOST_NAMED]:
            print(f"not reached: {test}")
        if len(missed) > MOST_NAMED:
            print(f"not reached: {len(missed) - MOST_NAMED} more tests of {file}")
    for file in broken:
        print(f"failed: {file}")
    return bool(broken)


def collect(arguments: list[str]) -> dict[str, list[str]]:
    """The slow tests by file, in pytest's order."""
    found = subprocess.run([*PYTEST, "--collect-only", "-q", *arguments], capture_output=True, text=True)
    files: dict[str, list[str]] = {}
    for line in found.stdout.splitlines():
        if "::" in line:
            files.setdefault(line.split("::")[0], []).append(line)
    if not files:
        sys.exit(f"no slow tests were found:\n{found.stdout}{found.stderr}")
    return files


def run(file: str, seconds: float) -> tuple[dict[str, str], bool]:
    """The outcome of every test of one file that came to an end, and whether all is well with these."""
    process = subprocess.Popen([*PYTEST, "-v", file], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    in_time = True
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        in_time = False
        process.send_signal(signal.SIGINT)  # pytest then prints what has failed
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    outcomes = {match[1]: match[2] for match in OUTCOME.finditer(output)}
    bad = {"FAILED", "ERROR"} & set(outcomes.values())
    whole = not bad and (process.returncode == 0 or not in_time)
    if not whole:
        print(output, flush=True)
    return outcomes, whole


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))

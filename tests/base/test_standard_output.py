"""Code of the user may print: stdout holds the answer all the same."""

import pytest
from support import process

PRINTS = {
    "Python": "print('noise')",
    "a stream taken before": "OUT.write('noise\\n')",
    "a file descriptor": "os.write(1, b'noise\\n')",
    "C, buffered": "C.printf(b'noise\\n')",
    "a child": "subprocess.run(['echo', 'noise'])",
}
CODE = """
import ctypes, os, subprocess, sys
from ganbench.base.standard_output import user_code
C, OUT = ctypes.CDLL(None), sys.stdout
C.printf(b'c before\\n')
print('before')
try:
    with user_code(), user_code():
        {print}
        {end}
except ZeroDivisionError:
    pass
print('after')
"""


@pytest.mark.parametrize("end", ["pass", "1 / 0"])
@pytest.mark.parametrize("way", PRINTS)
def test_what_user_code_prints_goes_to_stderr_and_the_answer_to_stdout(tmp_path, way, end):
    done = process("-c", CODE.format(print=PRINTS[way], end=end), cwd=tmp_path)
    assert (done.code, done.err) == (0, "noise\n")
    *before, last = done.out.splitlines()
    assert (sorted(before), last) == (["before", "c before"], "after")


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_closed_output_does_not_keep_user_code_from_running(tmp_path, closed):
    code = (
        f"import os; os.close({closed})\n"
        "from ganbench.base.standard_output import user_code\n"
        "with user_code(): open('ran', 'w').close()\n"
        "with user_code(): print('noise')\n"
    )
    done = process("-c", code, cwd=tmp_path)
    assert (tmp_path / "ran").exists()
    assert done.out == ""

import os
import subprocess
import sys

import pytest

from orch_core.rpc.priority import step_back

PROGRAM = """
import os, subprocess, sys, threading
from orch_core.rpc.priority import step_back

def nice(thread):
    return os.getpriority(os.PRIO_PROCESS, thread)

before = nice(0)
other = threading.Thread(target=threading.Event().wait, daemon=True)
other.start()
back = step_back(15)
told = [nice(0) - before, nice(other.native_id) - before]
late = threading.Thread(target=threading.Event().wait, daemon=True)
late.start()
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
told += [nice(late.native_id) - before, nice(child.pid) - before]
back.undo()
told += [nice(thread) - before for thread in (0, other.native_id, late.native_id, child.pid)]
child.communicate(b"\\n")
print(told)
"""


def test_a_thread_that_steps_back_takes_along_what_it_starts_and_brings_all_of_it_forward_again():
    if os.geteuid() != 0:
        pytest.skip("only root may lower a nice value again")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == str([15, 0, 15, 15, 0, 0, 0, 0])


def test_who_could_not_come_forward_again_does_not_step_back(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    assert step_back(15) is None

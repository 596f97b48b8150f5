"""The first thing that a child of the agent runs: ties its life to the agent's, then becomes the program.

``python -I -S launch.py PARENT NICE PROGRAM [ARGS...]``, the standard library only. It is a program of its own and
not a function between fork and exec, because the agent has threads: after a fork of such a process only system calls
are safe. ``PR_SET_PDEATHSIG`` survives the exec; a parent that died before it was set is noticed by its pid. The
agent's real-time priority ends here, too.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, nice, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    os.execv(program[0], program)


if __name__ == "__main__":
    main()

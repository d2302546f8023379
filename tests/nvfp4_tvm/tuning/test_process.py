import os
import signal
import subprocess
import sys
import time

#: Starts a child that says its process id and waits, then waits itself.
PARENT = """
import os, subprocess, sys, time
child = "import os, time; from nvfp4_tvm.tuning import process; process.{function}(" + str(os.getpid()) + ")"
child += "; print(os.getpid(), flush=True); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child])
time.sleep(60)
"""


def started(function):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(function=function)], stdout=subprocess.PIPE, text=True
    )
    return parent, int(parent.stdout.readline())


def alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_a_process_ends_when_its_parent_is_killed():
    parent, child = started("end_with_parent")
    assert alive(child)
    parent.kill()
    parent.wait()
    assert wait_for(lambda: not alive(child))


def test_interrupts_are_left_to_the_parent():
    parent, child = started("ignore_interrupts")
    os.kill(child, signal.SIGINT)
    time.sleep(0.2)
    assert alive(child)
    parent.kill()
    parent.wait()
    assert wait_for(lambda: not alive(child))


def test_a_process_whose_parent_is_gone_ends_at_once():
    code = (
        "from nvfp4_tvm.tuning.process import end_with_parent; end_with_parent(1 << 22); print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")

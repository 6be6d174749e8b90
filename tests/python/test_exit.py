"""The end of a Python that has threads within calls: it neither crashes, nor waits for long."""

import subprocess
import sys
import time

import pytest

from service import Service

PROGRAM = """
import sys, threading, time
import numpy as np
import annulus

k, q = np.ones((200, 2, 32), np.float32), np.ones((1, 4, 32), np.float32)
long = np.ones((1 << 15, 2, 64), np.float32)
client = annulus.connect(sys.argv[1]) if sys.argv[1:] else annulus.in_process(2, threads=1)
context = client.create_context(heads=4, kv_heads=2, head_dim=32)
context.append(0, k, k)
begun = threading.Event()

def work():
    while True:
        {call}
        begun.set()

threading.Thread(target=work, daemon=True).start()
{wait}
time.sleep(0.05)
"""
CALLS = {
    "attend": "context.attend(0, q)",
    "out_dtype": "context.attend(0, q, out_dtype='f16')",
    "step": "client.step([annulus.Step(context, 0, q)])",
    "status": "client.status()",
    "attention": "annulus.attention(q, k, k)",
    "merge": "annulus.merge([(q, q[..., 0])] * 2)",
    "progress": "context.truncate(200), context.append(0, k, k, progress=lambda *_: None)",
}


def end(call, *arguments, wait="begun.wait()"):
    program = PROGRAM.format(call=call, wait=wait)
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60
    )
    assert (done.stderr, done.stdout, done.returncode) == ("", "", 0)
    return time.monotonic() - begin


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_daemon_thread_within_calls_ends_with_python(call):
    end(call)


def test_over_the_network_too():
    with Service(workers=1) as service:
        for call in (CALLS["attend"], CALLS["step"], CALLS["progress"]):
            end(call, service.endpoint)


def test_a_long_call_is_cancelled():
    # As long as it would take, it ends at once.
    assert end("annulus.attention(long, long, long)", wait="time.sleep(0.5)") < 20


def test_a_child_that_was_forked_from_calls_waits_for_none():
    wait = """
import atexit, os
begun.wait()
if os.fork() == 0:
    begin = time.monotonic()
    atexit._run_exitfuncs()
    os._exit(time.monotonic() - begin > 2)
assert os.wait()[1] == 0
"""
    end(CALLS["attend"], wait=wait)

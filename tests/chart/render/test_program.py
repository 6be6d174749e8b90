"""The program takes every rendered flag, and coordinator and workers find each other by them."""

import os
import shutil

import pytest

import chart
import processes

PROGRAM = os.environ.get("ANNULUS_PROGRAM")
pytestmark = [
    pytest.mark.skipif(not PROGRAM, reason="no built program is named"),
    pytest.mark.skipif(not shutil.which("openssl"), reason="there is no openssl"),
]


@pytest.mark.parametrize("case", chart.CASES, ids=lambda path: path.stem)
def test_a_release_runs(case, tmp_path):
    rendered = chart.render(case)
    with processes.Processes(rendered, tmp_path, PROGRAM) as running:
        (coordinator,) = processes.containers(rendered, "Deployment")
        pages = running.start(coordinator)
        running.wait_for(pages, "/readyz")
        for worker in processes.containers(rendered, "StatefulSet"):
            running.wait_for(running.start(worker), "/readyz")
        for page in ("livez", "startupz", "metrics", "status"):
            assert running.wait_for(pages, f"/{page}")
        for test in processes.containers(rendered, "Pod"):
            code, said = running.run(test)
            assert code == 0 and " ready " in said, said


@pytest.mark.parametrize("argument", ["--no-such-option", "--contexts-max=never"])
def test_a_flag_that_the_program_does_not_take_is_found(argument, tmp_path):
    rendered = chart.render()
    with processes.Processes(rendered, tmp_path, PROGRAM) as running:
        (coordinator,) = processes.containers(rendered, "Deployment")
        coordinator["args"].append(argument)  # of these the chart itself refuses some
        pages = running.start(coordinator)
        with pytest.raises(AssertionError, match=argument.partition("=")[0]):
            running.wait_for(pages, "/readyz")

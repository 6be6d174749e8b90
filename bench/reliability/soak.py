"""Minutes of load with random faults: do memory and file descriptors of the processes that live
through all of them stay flat? Writes a table, and a row for reliability.py; exits 1 after a wrong
answer, without any fault, or where something has grown by more than --slope-max.

    soak.py ANNULUS [--minutes N] [--seed N] [--fault-s N] [--slope-max PERCENT_AN_HOUR]

The coordinator and worker w1 are never hurt; the other workers are killed, or stopped until they are
fenced, and started again; clients vanish in the middle of a call. Slopes are least squares over the
lowest of every five minutes after the first third, in which caches fill (of runs of less than an
hour: of every minute; of less than ten minutes: the medians of every second). Buffers of calls and
connections that a fault closed come and go, and what leaks stays.
"""

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tests/netns"))
from service import Load, Loopback, Question, Service

WORKERS = ("w1", "w2", "w3")
STEADY = ("coordinator", "w1")
SLOPE_BAR = 1.0  # percent an hour
SAMPLE_S = 1.0
STOPPED_S = 2.0  # longer than the heartbeat's timeout


def sample(pid):
    """Resident bytes and open descriptors."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
        pages = int(statm.read().split()[1])
    return pages * os.sysconf("SC_PAGESIZE"), len(os.listdir(f"/proc/{pid}/fd"))


def lows(times, values, minutes):
    """Of each window: its middle, and the lowest of its values, of seconds the median."""
    length = 1 if minutes < 10 else 60 if minutes < 60 else 300
    low = statistics.median if length == 1 else min
    windows = {}
    for t, value in zip(times, values):
        windows.setdefault(int((t - times[0]) // length), []).append(value)
    if len(windows) > 2 and times[-1] - times[0] < length * (len(windows) - 0.5):
        windows.popitem()  # less than half of one
    return [length * (window + 0.5) for window in windows], [*map(low, windows.values())]


def slope_percent_per_hour(times, values):
    mean_t, mean_v = sum(times) / len(times), sum(values) / len(values)
    spread = sum((t - mean_t) ** 2 for t in times)
    slope = sum((t - mean_t) * (v - mean_v) for t, v in zip(times, values)) / spread
    return 100 * 3600 * slope / mean_v


def hurt(service, rng):
    """One fault; returns its name. The worker is back when this returns: one that was stopped joins
    again by itself, one that was killed is started anew."""
    victim = rng.choice(WORKERS[1:])
    process = service.processes[victim]
    if rng.random() < 0.3:
        process.send_signal(signal.SIGSTOP)
        time.sleep(STOPPED_S)
        process.send_signal(signal.SIGCONT)
        service.await_ready(len(WORKERS))
        return "SIGSTOP worker"
    process.kill()
    process.wait()
    process.stdout.close()
    service.start_worker(victim)
    service.await_ready(len(WORKERS))
    return "kill -9 worker"


def soak(service, question, options):
    rng = random.Random(options.seed)
    loads = [Load(service, question, i) for i in range(2)]
    begin = time.monotonic()
    next_fault = begin + options.fault_s
    samples, faults = [], {}
    try:
        while (now := time.monotonic()) - begin < 60 * options.minutes:
            samples.append((now - begin, [sample(service.processes[name].pid) for name in STEADY]))
            if now >= next_fault:
                if rng.random() < 0.3:
                    fault = "client vanishes"
                    loads[rng.randrange(len(loads))].vanish()
                else:
                    fault = hurt(service, rng)
                faults[fault] = faults.get(fault, 0) + 1
                next_fault = time.monotonic() + options.fault_s * (0.5 + rng.random())
            time.sleep(SAMPLE_S)
    finally:
        for load in loads:
            load.stop()
    return loads, samples, faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("program")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--fault-s", type=float, default=5, help="seconds between faults, about")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slope-max", type=float, default=None, help="percent an hour (any)")
    options = parser.parse_args()
    program = os.path.abspath(options.program)
    with tempfile.TemporaryDirectory(prefix="annulus-soak-") as folder:
        service = Service(program, Loopback(("coordinator", *WORKERS)), folder, WORKERS)
        try:
            loads, samples, faults = soak(service, Question(program, folder, "soak", 1, 1000), options)
        finally:
            service.close()
    right, wrong, errors = (sum(getattr(load, key) for load in loads)
                            for key in ("right", "wrong", "errors"))
    print(f"{options.minutes:g} minutes, seed {options.seed}: {right} right answers, {wrong} wrong, "
          f"{errors} calls ended with an error; faults: "
          + ", ".join(f"{count} × {name}" for name, count in sorted(faults.items())))
    steady = samples[len(samples) // 3 :]
    times = [t for t, _ in steady]
    print("| process | RSS, MiB | RSS, % per hour | descriptors | descriptors, % per hour |")
    print("|---|---|---|---|---|")
    steepest = []
    for i, name in enumerate(STEADY):
        rss, fds = ([sampled[i][j] for _, sampled in steady] for j in (0, 1))
        slopes = [slope_percent_per_hour(*lows(times, values, options.minutes))
                  for values in (rss, fds)]
        steepest.append(max(slopes))
        print(f"| {name} | {rss[0] / 2**20:.1f} to {rss[-1] / 2**20:.1f} | {slopes[0]:+.2f} | "
              f"{fds[0]} to {fds[-1]} | {slopes[1]:+.2f} |")
    sound = wrong == 0 and right > 0 and bool(faults)
    load = f"{right} calls, {sum(faults.values())} faults, {options.minutes:g} min"
    figure = ", ".join(f"{name} {slope:+.2f} %/h" for name, slope in zip(STEADY, steepest))
    print(f"reliability\t15\tsoak with random faults\t{load}\tRSS and descriptors <= 1 %/h\t"
          f"{figure}, {wrong} wrong\t{'yes' if sound and max(steepest) <= SLOPE_BAR else 'no'}")
    flat = options.slope_max is None or max(steepest) <= options.slope_max
    sys.exit(not (sound and flat))


if __name__ == "__main__":
    main()

"""Writes Grafana's dashboards, helm/annulus/files/dashboard-*.json, from the panels named here.

`dashboards.py` says whether the files are what they should be; `dashboards.py --write` writes them.
"""

import json
import re
import sys
from pathlib import Path

FILES = Path(__file__).resolve().parent / "annulus" / "files"
WIDTH = 24  # of Grafana's grid
HEIGHT = 8
FAILED = 'code=~"UNAVAILABLE|INTERNAL|DATA_LOSS|UNKNOWN"'
METRIC = re.compile(r"\b((?:annulus|process)_\w+)(?:\{([^}]*)\})?")
# Metrics of the same name are on the pages of coordinator and worker.
COORDINATOR = "and on (namespace, instance) annulus_status_up"
WORKER = "and on (namespace, instance) annulus_joined"


def stat(title, expression, unit="short", **more):
    panel = {"title": title, "type": "stat", "width": 4, "height": 4, "unit": unit}
    return {**panel, "queries": [(expression, "")], **more}


def graph(title, unit, *queries, about="", width=8):
    panel = {"title": title, "type": "timeseries", "width": width, "height": HEIGHT}
    return {**panel, "unit": unit, "queries": queries, "about": about}


def row(title):
    return {"title": title, "type": "row", "width": WIDTH, "height": 1, "queries": []}


def rates(metric, by):
    return f"sum by ({by}) (rate({metric}[$__rate_interval]))"


def quantiles(metric, by, labels=""):
    for q in (0.5, 0.99):
        rate = rates(f"{metric}_bucket{labels}", f"{by}, le")
        yield f"histogram_quantile({q}, {rate})", f"p{int(q * 100)} {{{{{by}}}}}"


def burn(span):
    failed = f"(sum(rate(annulus_requests_total{{{FAILED}}}[{span}])) or vector(0))"
    return f"{failed} / sum(rate(annulus_requests_total[{span}])) / 0.001", span


def chosen(expression):
    """Of the namespaces and releases that are chosen, as every panel is."""

    def within(match):
        labels = ['namespace=~"$namespace"', 'job=~"$job"', *filter(None, [match[2]])]
        return f"{match[1]}{{{', '.join(labels)}}}"

    return METRIC.sub(within, expression)


OVERVIEW = [
    stat("Coordinator", "max(annulus_status_up)", good=1),
    stat("Workers ready", 'sum(annulus_workers{state="ready"})'),
    stat("Workers lost, 1 h", "sum(increase(annulus_workers_lost_total[1h]))", bad=1),
    stat("Contexts lost", 'sum(annulus_contexts{state="lost"})', bad=1),
    stat(
        "KV used",
        f"max((annulus_kv_bytes / annulus_kv_bytes_limit) {COORDINATOR})",
        "percentunit",
        bad=0.9,
    ),
    stat("Calls waiting", "sum(annulus_calls_waiting)"),
    row("Objective: 99.9% of calls in 30 days end without fault of the service"),
    stat(
        "Good calls, 30 d",
        f"1 - (sum(increase(annulus_requests_total{{{FAILED}}}[30d])) or vector(0)) "
        "/ sum(increase(annulus_requests_total[30d]))",
        "percentunit",
    ),
    graph(
        "Error budget's burn rate",
        "short",
        *map(burn, ("5m", "1h", "6h")),
        about="1: the errors of 30 days are used up in 30 days; the alert is at 14.4.",
        width=10,
    ),
    graph(
        "Calls that failed",
        "reqps",
        (rates(f"annulus_requests_total{{{FAILED}}}", "call, code"), "{{call}} {{code}}"),
        width=10,
    ),
    row("Calls"),
    graph("Calls", "reqps", (rates("annulus_requests_total", "call"), "{{call}}")),
    graph(
        "Time of calls",
        "s",
        *quantiles("annulus_request_seconds", "call"),
        about="From whole request to answer.",
    ),
    graph("Wait for a turn", "s", *quantiles("annulus_queue_wait_seconds", "queue")),
    graph("Refused", "reqps", (rates("annulus_calls_refused_total", "reason"), "{{reason}}")),
    graph(
        "Under way",
        "short",
        ("sum(annulus_calls_in_flight)", "in flight"),
        ("sum(annulus_calls_waiting)", "waiting"),
        ("sum(annulus_step_streams)", "step streams"),
    ),
    graph(
        "Payload moved by plan, beside what was planned",
        "Bps",
        (rates("annulus_attend_moved_bytes_total", "plan"), "{{plan}}"),
        (rates("annulus_attend_planned_bytes_total", "plan"), "{{plan}} planned"),
    ),
    row("Contexts and KV"),
    graph("Contexts", "short", ("sum by (state) (annulus_contexts)", "{{state}}")),
    graph(
        "KV",
        "bytes",
        (f"sum(annulus_kv_bytes {COORDINATOR})", "held"),
        (f"sum(annulus_kv_bytes_limit {COORDINATOR})", "limit"),
        ("sum(annulus_kv_dense_bytes)", "if nothing was evicted"),
    ),
    graph(
        "Moves and recovery",
        "short",
        ("sum(annulus_moves_running)", "moves"),
        ("sum by (result) (increase(annulus_moves_total[1m]))", "{{result}} a minute"),
        ("sum(annulus_contexts_recovering)", "contexts that wait for workers"),
    ),
    row("Tenants"),
    graph("KV", "bytes", ("sum by (tenant) (annulus_tenant_kv_bytes)", "{{tenant}}")),
    graph("Calls", "reqps", (rates("annulus_tenant_requests_total", "tenant"), "{{tenant}}")),
    graph("Waiting", "short", ("sum by (tenant) (annulus_tenant_calls_waiting)", "{{tenant}}")),
]

WORKERS = [
    stat("Ready", 'sum(annulus_workers{state="ready"})'),
    stat("Draining", 'sum(annulus_workers{state="draining"})'),
    stat("Oldest sign of life", "max(annulus_heartbeat_age_seconds)", "s", bad=0.5),
    stat("Fullest", "max(annulus_kv_bytes / annulus_kv_bytes_limit)", "percentunit", bad=0.9),
    stat(
        "Certificates end in", "min(annulus_tls_certificate_expiry_timestamp_seconds) - time()", "s"
    ),
    stat("Insecure", "max(annulus_insecure)", bad=1),
    row("Work"),
    graph(
        "Time in the backend",
        "percentunit",
        (rates("annulus_kernel_seconds_total", "instance"), "{{instance}}"),
        about="Seconds of the backend in a second; even lines are even work.",
    ),
    graph("Tasks", "ops", (rates("annulus_tasks_total", "instance"), "{{instance}}")),
    graph(
        "Wait of tasks",
        "s",
        *quantiles("annulus_queue_wait_seconds", "instance", '{queue="tasks"}'),
    ),
    graph(
        "Steps, attends and appends",
        "ops",
        ("sum(rate(annulus_steps_total[$__rate_interval]))", "steps"),
        ("sum(rate(annulus_attends_total[$__rate_interval]))", "attends"),
        ("sum(rate(annulus_appends_total[$__rate_interval]))", "appends"),
    ),
    graph(
        "Signs of life",
        "s",
        ("max by (worker) (annulus_heartbeat_age_seconds)", "worker {{worker}}"),
        about="At one second a worker is lost.",
    ),
    graph(
        "Came, left, lost",
        "short",
        ("sum(increase(annulus_workers_joined_total[5m]))", "joined"),
        ("sum(increase(annulus_workers_left_total[5m]))", "left"),
        ("sum(increase(annulus_workers_lost_total[5m]))", "lost"),
    ),
    row("KV and memory"),
    graph("KV", "bytes", (f"annulus_kv_bytes {WORKER}", "{{instance}}")),
    graph("Tables", "bytes", ("annulus_table_bytes", "{{instance}}")),
    graph("Resident memory", "bytes", ("process_resident_memory_bytes", "{{instance}}")),
    graph(
        "GPU memory",
        "percentunit",
        ("annulus_gpu_memory_bytes / annulus_gpu_memory_bytes_limit", "{{instance}} {{device}}"),
    ),
    graph("CPU", "short", (rates("process_cpu_seconds_total", "instance"), "{{instance}}")),
    graph("Open files", "short", ("process_open_fds", "{{instance}}")),
    row("Network"),
    graph(
        "Payload",
        "Bps",
        (
            rates("annulus_transport_bytes_total", "transport, direction"),
            "{{transport}} {{direction}}",
        ),
    ),
    graph(
        "Connections",
        "short",
        ("annulus_connections", "{{instance}}"),
        (rates("annulus_connections_refused_total", "why"), "refused: {{why}}"),
        (rates("annulus_tls_handshakes_failed_total", "instance"), "{{instance}} failed TLS"),
        (rates("annulus_http_connections_refused_total", "instance"), "{{instance}} pages refused"),
    ),
    graph("Uploads", "short", ("annulus_uploads", "{{instance}}")),
]


def placed(panels):
    """The panels from left to right, in rows that Grafana's grid has room for."""
    x = y = height = 0
    for number, panel in enumerate(panels, 1):
        if x + panel["width"] > WIDTH:
            x, y, height = 0, y + height, 0
        yield made(number, panel, {"x": x, "y": y, "w": panel["width"], "h": panel["height"]})
        x += panel["width"]
        height = max(height, panel["height"])


def made(number, panel, place):
    body = {"id": number, "title": panel["title"], "type": panel["type"], "gridPos": place}
    if panel["type"] == "row":
        return {**body, "collapsed": False, "panels": []}
    steps = [{"color": "green", "value": None}]
    if "bad" in panel:
        steps.append({"color": "red", "value": panel["bad"]})
    if "good" in panel:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": panel["good"]}]
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        **body,
        "description": panel.get("about", ""),
        "datasource": source,
        "fieldConfig": {
            "defaults": {
                "unit": panel["unit"],
                "thresholds": {"mode": "absolute", "steps": steps},
            },
            "overrides": [],
        },
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": source,
                "expr": chosen(expression),
                "legendFormat": legend,
            }
            for i, (expression, legend) in enumerate(panel["queries"])
        ],
    }


def variable(name, label, of="annulus_insecure"):
    query = f"label_values({of}, {name})"
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": query,
        "definition": query,
        "includeAll": True,
        "multi": True,
        "refresh": 2,
    }


def dashboard(uid, title, panels):
    # A release is a job. "All" of them are those of Annulus: process_… is what others have too.
    releases = variable("job", "release", 'annulus_insecure{namespace=~"$namespace"}')
    return {
        "uid": uid,
        "title": title,
        "tags": ["annulus"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                {**variable("namespace", "namespace"), "allValue": ".*"},
                releases,
            ]
        },
        "panels": list(placed(panels)),
    }


DASHBOARDS = {
    "dashboard-overview.json": dashboard("annulus-overview", "Annulus: overview", OVERVIEW),
    "dashboard-workers.json": dashboard("annulus-workers", "Annulus: workers", WORKERS),
}


def text_of(body):
    """JSON with a line for each panel."""
    head = json.dumps({**body, "panels": []}, indent=1).removesuffix("[]\n}")
    return head + "[\n" + ",\n".join(map(json.dumps, body["panels"])) + "\n ]\n}\n"


def main(arguments):
    for name, body in DASHBOARDS.items():
        text = text_of(body)
        file = FILES / name
        if arguments == ["--write"]:
            file.write_text(text)
        elif not file.exists() or file.read_text() != text:
            print(
                f"{file} is not what is named here; expected helm/dashboards.py --write",
                file=sys.stderr,
            )
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

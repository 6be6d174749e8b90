"""As much of Kubernetes' API as helm's `lookup` asks for: a cluster that has some objects."""

import http.server
import json
import threading

import yaml

DEPLOYMENTS = "/apis/apps/v1/namespaces/ns/deployments/"
VERB = {
    "name": "deployments",
    "kind": "Deployment",
    "namespaced": True,
    "singularName": "deployment",
    "verbs": ["get"],
}
APPS = {"groupVersion": "apps/v1", "version": "v1"}
PAGES = {
    "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [{"name": "apps", "versions": [APPS], "preferredVersion": APPS}],
    },
    "/apis/apps/v1": {
        "kind": "APIResourceList",
        "groupVersion": "apps/v1",
        "resources": [VERB],
    },
}


class Cluster(http.server.ThreadingHTTPServer):
    """As much of an API server as `lookup` asks of one: it has these objects."""

    def __init__(self, running):
        super().__init__(("127.0.0.1", 0), ClusterHandler)
        self.running = {one["metadata"]["name"]: one for one in running}
        self.methods = set()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def config(self, folder):
        entry = {"server": f"http://127.0.0.1:{self.server_port}"}
        file = folder / "kubeconfig"
        file.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "c",
                    "clusters": [{"name": "c", "cluster": entry}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "users": [{"name": "u", "user": {}}],
                }
            )
        )
        return str(file)


class ClusterHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.methods.add("GET")
        path = self.path.partition("?")[0]
        answer = PAGES.get(path)
        if path.startswith(DEPLOYMENTS):
            answer = self.server.running.get(path.removeprefix(DEPLOYMENTS))
        if answer is None:
            answer = {"kind": "Status", "apiVersion": "v1", "reason": "NotFound", "code": 404}
        body = json.dumps(answer).encode()
        self.send_response(answer.get("code", 200))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.server.methods.add(self.command)
        self.send_error(405)

    do_PUT = do_PATCH = do_DELETE = do_POST

    def log_message(self, *_):
        pass

"""Whatever users, releases and pools are called is a text in the objects that are rendered, though
YAML would read it as a number, a truth value or a map."""

import json
import re

import kubernetes_validate
import pytest
import test_validate

import chart

WORDS = ("123", "1e3", "on")
SCHEMA = json.loads((chart.CHART / "values.schema.json").read_text())
CI = chart.CHART / "ci"
BASES = [
    [CI / "everything-values.yaml", CI / "operators-values.yaml", CI / "cert-manager-values.yaml"],
    [CI / "gpu-values.yaml", CI / "secret-values.yaml"],
]
# Texts that mean something else: sizes, times, and names of what the chart or the program knows.
MEANT = {"bytes", "quantity", "duration"}
KNOWN = {
    "coordinator.cluster",  # a known machine or a path
    "monitoring.rules.disabled.0",
    "pools.cpu.shmSize",
    "auth.jwks",
    "extraObjects.0",
    "auth.workerToken.audience",  # auth.config says the same
}


def resolved(schema):
    while "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name in MEANT:
            return {}
        schema = SCHEMA["definitions"][name]
    return schema


def with_word(schema, word, path=""):
    """Values in which every text of the schema that may be `word` is; None where there is none."""
    schema = resolved(schema)
    kinds = schema.get("type", [])
    here = path.rpartition(".")[2]
    if path in KNOWN or path == "auth.config":
        return None
    if path == "pools":
        return {"cpu": with_word(SCHEMA["definitions"]["pool"], word, "pools.cpu")}
    if kinds == "array":
        item = with_word(schema["items"], word, f"{path}.0")
        return None if item is None else [item]
    if kinds == "object":
        names = schema.get("properties", {})
        if here in ("commonLabels", "podLabels", "labels", "nodeSelector", "podAnnotations"):
            return {"example.org/a": word, word: word}
        paths = {key: f"{path}.{key}".lstrip(".") for key in names}
        made = {key: with_word(one, word, paths[key]) for key, one in names.items()}
        made = {key: value for key, value in made.items() if value is not None}
        whole = set(schema.get("required", [])) <= made.keys()
        return made if made and whole else None
    if "string" not in kinds or "enum" in schema:
        return None
    fits = re.search(schema.get("pattern", ""), word) and len(word) >= schema.get("minLength", 0)
    return word if fits else None


def check_objects(rendered):
    for one in rendered:
        about = one["metadata"]
        texts = {**about.get("labels", {}), **about.get("annotations", {})}
        for _, pod in chart.pod_specs([one]):
            for container in pod["containers"]:
                texts.update(enumerate(container.get("args", [])))
        for name, value in {**texts, "name": about["name"]}.items():
            assert isinstance(value, str), f"{one['kind']} {about['name']}: {name}: {value!r}"
        if one["apiVersion"] in test_validate.OPERATORS:
            test_validate.check_by_model(one)
        elif one["apiVersion"] == test_validate.ROUTE:
            assert all(isinstance(host, str) for host in one["spec"]["hostnames"])
        else:
            kubernetes_validate.validate(one, "1.33", strict=True)


@pytest.mark.parametrize("version", chart.VERSIONS)
@pytest.mark.parametrize("word", WORDS)
def test_values(word, version):
    values = with_word(SCHEMA, word)
    assert {"loadBalancerClass", "appProtocol", "labels"} <= values["service"].keys()
    for part in (values["coordinator"], values["worker"], values["pools"]["cpu"]):
        part["initContainers"] = []  # names that extraContainers have are refused
        part["extraVolumeMounts"] = [{"name": word, "mountPath": f"/{word}"}]
    secret = values["auth"].pop("existingSecret")
    check_objects(chart.render(*BASES[0], values, version=version))
    values["auth"]["existingSecret"] = secret
    values["service"]["type"] = "LoadBalancer"
    check_objects(chart.render(*BASES[1], values, version=version))


@pytest.mark.parametrize("version", chart.VERSIONS)
@pytest.mark.parametrize("word", ("123", "1e3", "on", "y", "null"))
def test_names(word, version):
    """Of the release, its namespace and a pool, and of all objects where such a name may be."""
    pool = word if word[0].isalpha() else "e1"
    options = {"release": word, "namespace": word, "version": version}
    values = {"fullnameOverride": pool, "pools": {pool: {"options": {"place": 1}}}}
    rendered = chart.render(*BASES[0], values, **options)
    check_objects(rendered)
    workers = chart.find(rendered, "StatefulSet", f"{pool}-{pool}")
    assert workers["metadata"]["namespace"] == word
    labels = workers["spec"]["template"]["metadata"]["labels"]
    assert (labels["app.kubernetes.io/instance"], labels["annulus/pool"]) == (word, pool)


def test_texts_that_are_yaml():
    """Of what has no pattern: args of the coordinator, and files."""
    cluster, hosts = "/a: b #x", ["a:", "#x"]
    jwks = ' {\n "keys": []}\n'
    auth = {"config": {"jwt": {"issuer": ": #"}}, "jwks": jwks}
    values = {"coordinator": {"cluster": cluster, "dataHosts": hosts}, "auth": auth}
    for version in chart.VERSIONS:
        rendered = chart.render(*BASES[0], values, version=version)
        pod = chart.find(rendered, "Deployment")["spec"]["template"]["spec"]
        args = pod["containers"][0]["args"]
        assert f"--cluster={cluster}" in args
        assert any(one.startswith("--data-hosts=a:,#x") for one in args)
        files = chart.find(rendered, "Secret")["stringData"]
        assert files["jwks.json"] == jwks
        assert json.loads(files["auth.json"])["jwt"]["issuer"] == ": #"

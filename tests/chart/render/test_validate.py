"""Every rendered object is one that Kubernetes, or the operator that it is for, takes whole."""

import importlib
import json

import kubernetes_validate
import pytest

import chart

VERSIONS = ("1.29", "1.33", "1.37")
# What the chart uses of a route of the Gateway API, of which no package has schemas.
ROUTE = "gateway.networking.k8s.io/v1"
REFERENCE = {"group", "kind", "name", "namespace", "port", "sectionName"}
SINCE = {"dra-values": "1.33"}  # cases that older versions cannot take
OPERATORS = {
    "cert-manager.io/v1": "cloudcoil.models.cert_manager.v1",
    "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
    "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1",
}


@pytest.mark.parametrize("case", chart.CASES, ids=lambda path: path.stem)
def test_kubernetes_takes_it(case):
    for one in chart.render(case):
        if one["apiVersion"] in OPERATORS:
            check_by_model(one)
            continue
        if one["apiVersion"] == ROUTE:
            check_route(one)
            continue
        for version in VERSIONS[VERSIONS.index(SINCE.get(case.stem, VERSIONS[0])) :]:
            kubernetes_validate.validate(one, version, strict=True)


def check_by_model(one):
    """Models leave unknown fields out: what is read must be what was written."""
    module = importlib.import_module(OPERATORS[one["apiVersion"]])
    read = getattr(module, one["kind"]).model_validate(one)
    assert_kept(one, json.loads(read.model_dump_json(by_alias=True, exclude_none=True)))


def assert_kept(written, read, path=""):
    if isinstance(written, dict):
        for key, value in written.items():
            assert key in read, f"{path}.{key} is unknown"
            assert_kept(value, read[key], f"{path}.{key}")
    elif isinstance(written, list):
        assert len(written) == len(read), path
        for i, value in enumerate(written):
            assert_kept(value, read[i], f"{path}[{i}]")
    else:
        assert str(written) == str(read), path


def check_route(one):
    assert one["kind"] in ("HTTPRoute", "GRPCRoute")
    spec = one["spec"]
    assert spec.keys() <= {"parentRefs", "hostnames", "rules"}
    assert all(parent.keys() <= REFERENCE for parent in spec["parentRefs"])
    ((to,),) = (rule["backendRefs"] for rule in spec["rules"])
    assert to == {"name": "r-annulus", "port": 7070}


def test_unknown_fields_are_found():
    rendered = chart.render(chart.CHART / "ci" / "cert-manager-values.yaml")
    one = chart.find(rendered, "Certificate", "-worker")
    one["spec"]["dnsName"] = ["a"]
    with pytest.raises(AssertionError, match="dnsName is unknown"):
        check_by_model(one)
    service = chart.find(chart.render(), "Service", "-internal")
    service["spec"]["clusterIp"] = "None"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, VERSIONS[0], strict=True)

"""Names that Kubernetes takes, whatever the release is called, and images that pools name."""

import re

import pytest

import chart

LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # DNS-1035, as Services want it
DIGEST = "sha256:" + 64 * "1"
OTHER_DIGEST = "sha256:" + 64 * "2"


def names(**options):
    return {(one["kind"], one["metadata"]["name"]) for one in chart.render(**options)}


@pytest.mark.parametrize("release", ["1abc", "2024.rel", "a.b"])
def test_a_release_that_makes_no_name_is_refused(release):
    for version in chart.VERSIONS:
        with pytest.raises(ValueError, match=f'fullnameOverride: "", and the release "{release}"'):
            chart.render(release=release, version=version)
        rendered = chart.render({"fullnameOverride": "kv"}, release=release, version=version)
        assert chart.find(rendered, "Deployment")["metadata"]["name"] == "kv-coordinator"


def test_long_names_that_differ_at_their_end_stay_apart():
    long = "the-inference-teams-long-context-store"
    both = [names(release=f"{long}-{end}") for end in ("blue", "green")]
    assert both[0].isdisjoint(both[1])
    overridden = [chart.render({"fullnameOverride": f"{long}-{end}"}) for end in ("blue", "green")]
    coordinators = [chart.find(one, "Deployment")["metadata"]["name"] for one in overridden]
    assert coordinators[0] != coordinators[1]
    for _, name in both[0]:
        assert LABEL.fullmatch(name) and len(name) <= 63


def test_names_of_31_characters_are_whole_and_longer_ones_are_cut_to_31():
    for length, cut in ((31, False), (32, True), (53, True)):
        (name,) = {
            name.removesuffix("-coordinator")
            for kind, name in names(release="annulus-".ljust(length, "x"))
            if kind == "Deployment"
        }
        assert len(name) == 31 and (name == "annulus-".ljust(31, "x")) != cut
    named = chart.render({"nameOverride": 40 * "n"})
    for one in named:
        assert len(one["metadata"]["labels"]["app.kubernetes.io/name"]) == 31


@pytest.mark.parametrize(
    ("image", "worker", "pool", "expected"),
    [
        ({"digest": DIGEST}, {}, {}, f"annulus@{DIGEST}"),
        ({"digest": DIGEST}, {}, {"tag": "0.1.0-cuda"}, "annulus:0.1.0-cuda"),
        ({"digest": DIGEST}, {"tag": "0.1.0-cuda"}, {}, "annulus:0.1.0-cuda"),
        ({}, {"digest": DIGEST}, {"tag": "0.1.0-cuda"}, "annulus:0.1.0-cuda"),
        ({"digest": DIGEST}, {}, {"repository": "lab/cuda"}, "lab/cuda:0.1.0"),
        ({"digest": DIGEST}, {}, {"tag": "t", "digest": OTHER_DIGEST}, f"annulus@{OTHER_DIGEST}"),
        # The same image from another registry.
        ({"digest": DIGEST}, {}, {"registry": "mirror"}, f"mirror/annulus@{DIGEST}"),
        ({"tag": "1"}, {"registry": "a"}, {"repository": "b"}, "a/b:1"),
        ({"tag": "1"}, {}, None, "annulus:1"),
    ],
)
def test_pools_images(image, worker, pool, expected):
    own = {} if pool is None else {"image": pool}
    values = {"image": image, "worker": {"image": worker}, "pools": {"cpu": own}}
    for version in chart.VERSIONS:
        rendered = chart.render(values, version=version)
        (container,) = chart.find(rendered, "StatefulSet")["spec"]["template"]["spec"]["containers"]
        assert container["image"] == expected

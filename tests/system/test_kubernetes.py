"""The files of etc/kubernetes/: three versions accept them, and the daemon does what they say."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from tests.faults.network import network
from tests.support.daemon import Start
from tests.support.paths import ROOT
from tests.support.programs import SCRIPTS, run

FILES = sorted((ROOT / "etc/kubernetes").glob("*.yaml"))
SCHEMAS = sorted((Path(__file__).parent / "kubernetes").glob("v*.json"))


def load(kind: str) -> Any:
    (found,) = (
        each
        for file in FILES
        for each in yaml.safe_load_all(file.read_text())
        if each["kind"] == kind
    )
    return found


def errors(schemas: Path, manifest: Any) -> list[str]:
    """Return what a version of Kubernetes does not accept in a manifest."""
    group, _, version = manifest["apiVersion"].rpartition("/")
    name = "-".join(filter(None, (manifest["kind"].lower(), group.partition(".")[0], version)))
    known = json.loads(schemas.read_text())
    schema = {**known["kinds"][name], "$defs": known["$defs"]}
    return [each.message for each in jsonschema_rs.validator_for(schema).iter_errors(manifest)]


@pytest.mark.parametrize("schemas", SCHEMAS, ids=lambda path: path.stem)
def test_each_file_is_what_kubernetes_expects(schemas: Path) -> None:
    assert len(SCHEMAS) == 3
    manifests = [each for file in FILES for each in yaml.safe_load_all(file.read_text())]
    assert sorted(each["kind"] for each in manifests) == [
        "ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service",
    ]  # fmt: skip
    assert {each["kind"]: found for each in manifests if (found := errors(schemas, each))} == {}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"replica": 3}, "'replica'"),
        ({"replicas": "3"}, '"3" is not of type'),
        ({"paused": "no"}, '"no" is not of type'),
    ],
)
@pytest.mark.parametrize("schemas", SCHEMAS, ids=lambda path: path.stem)
def test_a_mistake_is_found(schemas: Path, change: dict[str, object], error: str) -> None:
    deployment = load("Deployment")
    deployment["spec"] |= change
    assert error in " ".join(errors(schemas, deployment))


def pod() -> Any:
    return load("Deployment")["spec"]["template"]


def container() -> Any:
    (found,) = pod()["spec"]["containers"]
    return found


def test_the_probes_ask_for_what_the_daemon_has(daemon: Start, tmp_path: Path) -> None:
    (tmp_path / "echod.toml").write_text(load("ConfigMap")["data"]["echod.toml"])
    arguments = [word.replace("/etc/echod", str(tmp_path)) for word in container()["args"]]
    ports = {each["name"]: each["containerPort"] for each in container()["ports"]}
    assert load("Service")["spec"]["ports"][0]["targetPort"] in ports
    with network() as here:
        running = daemon(*arguments, listening=True, steps=[here.step])
        running.wait_for(f"EchoFactory starting on {ports['echod']}")
        running.wait_for(f"StatusSite starting on {ports['status']}")
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container()[name]["httpGet"]
            # The kubelet asks by the pod's address.
            head = f"GET {asked['path']} HTTP/1.1\r\nHost: 10.1.2.3:{ports[asked['port']]}\r\n\r\n"
            with here.socket() as connection:
                connection.connect(("127.0.0.1", ports[asked["port"]]))
                connection.sendall(head.encode())
                assert connection.recv(15) == b"HTTP/1.1 200 OK"


def test_a_pod_has_the_time_that_its_drain_takes(tmp_path: Path) -> None:
    settings = tmp_path / "echod.toml"
    settings.write_text(load("ConfigMap")["data"]["echod.toml"])
    checked = run(
        tmp_path, SCRIPTS / "twistd", "echod", "--config", str(settings), "--check-config"
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    values = tomllib.loads(settings.read_text())
    sleep, delay = container()["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    grace = pod()["spec"]["terminationGracePeriodSeconds"]
    assert values["drain-spread"] < values["drain-timeout"]
    # The end itself takes up to a second.
    assert int(delay) + values["drain-timeout"] + 1 < grace
    # The balancers hear of it from the probe, in this time at most.
    ready = container()["readinessProbe"]
    assert ready["periodSeconds"] * ready["failureThreshold"] < int(delay)


def test_the_labels_of_all_files_are_the_pods() -> None:
    labels = pod()["metadata"]["labels"]
    assert load("Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert load("Service")["spec"]["selector"] == labels
    assert load("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert load("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels


def test_only_the_monitoring_reaches_the_status() -> None:
    open_to_all, monitoring = load("NetworkPolicy")["spec"]["ingress"]
    assert "from" not in open_to_all
    assert [each["port"] for each in open_to_all["ports"]] == ["echod"]
    assert monitoring["from"]
    assert [each["port"] for each in monitoring["ports"]] == ["status"]


def test_a_pod_may_do_as_little_as_the_strictest_standard_allows() -> None:
    """The profile "restricted" of the Pod Security Standards, and a read-only file system."""
    of_pod, of_container = pod()["spec"]["securityContext"], container()["securityContext"]
    assert of_pod["runAsNonRoot"] is True
    assert of_pod["runAsUser"] != 0
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert of_container["allowPrivilegeEscalation"] is False
    assert of_container["capabilities"] == {"drop": ["ALL"]}
    assert of_container["readOnlyRootFilesystem"] is True
    assert [each.keys() - {"name"} for each in pod()["spec"]["volumes"]] == [{"configMap"}]

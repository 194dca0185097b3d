"""deploy/README.md names what exists; its raylens commands run in test_entry_points."""

import re
import shlex

import pytest
from deploy.rendered import KUBERNETES, OVERLAYS, ROOT, VERSION, named, rendered

README = (ROOT / "deploy" / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.replace("\\\n", " ").splitlines()
]
PROGRAMS = {"docker", "helm", "kubectl", "curl", "raylens"}


def of(program: str) -> list[list[str]]:
    return [shlex.split(line) for line in COMMANDS if line.startswith(f"{program} ")]


def option(command: list[str], *names: str) -> str | None:
    found = [command[i + 1] for i, word in enumerate(command[:-1]) if word in names]
    return found[0] if found else None


def test_commands_are_of_known_programs() -> None:
    assert {line.split()[0] for line in COMMANDS} == PROGRAMS


@pytest.mark.parametrize("command", of("kubectl"), ids=" ".join)
def test_kubectl_is_given_what_exists(command: list[str]) -> None:
    folder = option(command, "-k", "-f")
    if folder is not None:
        assert (ROOT / folder / "kustomization.yaml").is_file()
    if command[1] == "patch":
        job = named("cpu", "RayJob", command[3])
        assert job["spec"]["suspend"]
    if command[1:4] == ["create", "secret", "generic"]:
        keys = (KUBERNETES / "components" / "keys" / "kustomization.yaml").read_text()
        assert f"{{'name': '{command[4]}', 'optional': True}}" in str(rendered("cpu")) or command[4] in keys
    namespace = option(command, "--namespace")
    assert namespace in {"raylens", "monitoring", None}


def test_namespaces_of_charts_are_let_in() -> None:
    policy = str(named("cpu", "NetworkPolicy", "raylens"))
    for command in of("helm"):
        namespace = option(command, "--namespace")
        assert command[1] == "repo" or f"'kubernetes.io/metadata.name': '{namespace}'" in policy


def test_images_are_those_of_the_overlays() -> None:
    built = {option(command, "--tag") for command in of("docker") if command[1] == "build"}
    used = {str(image) for overlay in OVERLAYS for image in re.findall(r"'image': '(\S+)'", str(rendered(overlay)))}
    assert built == used == {f"registry.example.com/raylens:{VERSION}-{kind}" for kind in ("cpu", "gpu")}
    for command in of("docker"):
        file = option(command, "--file")
        assert command[1] == "push" or (file and (ROOT / file).is_file())


def test_every_overlay_is_described() -> None:
    assert set(re.findall(r"^\| `overlays/(\S+)` \|", README, re.M)) == set(OVERLAYS)


@pytest.mark.parametrize("name", ["README.md", "SECURITY.md"])
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / "deploy" / name).read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / "deploy" / target).exists(), target
    for path in re.findall(r"`((?:deploy|tests)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"`make ([a-z-]+)`", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target

"""The Dockerfile: linted, complete, and its install steps run outside of a container."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from deploy.rendered import ROOT, VERSION
from samples import jpeg

DOCKER = ROOT / "deploy" / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
BIN = Path(sys.executable).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
STEPS = {"cpu": ("dependencies", "cpu"), "gpu": ("dependencies", "gpu")}
GPU_ONLY = {line for line in (DOCKER / "gpu-only.txt").read_text().splitlines() if not line.startswith("#")}


def stages() -> dict[str, list[str]]:
    """Instructions of each stage, joined at continuations, without comments."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.M).replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in filter(None, (" ".join(line.split()) for line in text.splitlines())):
        if name := re.fullmatch(r"FROM \S+ AS (\w+)", line):
            stage = found.setdefault(name[1], [])
        else:
            stage.append(line)
    return found


def installs(target: str, python: Path, wheel: str) -> list[list[str]]:
    """Commands that install a target, for another interpreter and from the files here."""
    lines = [line for stage in STEPS[target] for line in stages()[stage] if line.startswith("RUN")]
    commands = [found[1] for line in lines if (found := re.search(r"/opt/uv/bin/(uv pip install .*)", line))]
    places = {"--system": f"--python {python}", "/src/": f"{ROOT}/", "/wheel/*.whl": wheel, "uv pip": f"{BIN}/uv pip"}
    for place, here in places.items():
        commands = [command.replace(place, here) for command in commands]
    return [shlex.split(command) for command in commands]


def run(command: list[str], **environment: str) -> str:
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=outside | environment)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[-2000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the image's first stage builds."""
    folder = tmp_path_factory.mktemp("wheel")
    [build] = [line for line in stages()["wheel"] if "hatchling build" in line]
    arguments = shlex.split(build.split("-m hatchling ")[1].replace("/wheel", str(folder)))
    subprocess.run([sys.executable, "-m", "hatchling", *arguments], cwd=ROOT, check=True, capture_output=True)
    [found] = folder.glob("*.whl")
    return found


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """The interpreter of an environment without packages."""
    run([str(BIN / "uv"), "venv", "--quiet", "--python", sys.executable, str(tmp_path / "clean")])
    return tmp_path / "clean" / "bin" / "python"


def test_the_linter_has_nothing_to_say() -> None:
    assert run([str(BIN / "hadolint"), str(DOCKER / "Dockerfile")]) == ""


def test_labels_say_what_is_in_the_image() -> None:
    [label] = [line for line in stages()["dependencies"] if line.startswith("LABEL")]
    found = dict(re.findall(r'org\.opencontainers\.image\.(\S+)="([^"]*)"', label))
    project = PROJECT["project"]
    assert [found[name] for name in ("title", "description", "licenses")] == [
        project["name"],
        project["description"],
        project["license"],
    ]
    assert (found["version"], found["revision"]) == ("${VERSION}", "${REVISION}")
    assert f"FROM {found['base.name'].removeprefix('docker.io/library/')} AS dependencies" in DOCKERFILE


def test_the_image_is_of_this_version_and_without_root() -> None:
    assert f"ARG VERSION={VERSION}" in stages()["dependencies"]
    assert set(re.findall(r"--tag raylens:(\S+)", DOCKERFILE)) == {f"{VERSION}-cpu", f"{VERSION}-gpu"}
    for target in STEPS:
        assert stages()[target][-1] == "USER 10001:10001"
    bases = re.findall(r"^FROM (python:\S+)", DOCKERFILE, re.M)
    assert len(set(bases)) == 1


def test_the_context_is_what_is_copied() -> None:
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    sent = {line[1:] for line in ignored if line.startswith("!")} - {"deploy", "deploy/docker"}
    copied = {word for line in stages()["wheel"] if line.startswith("COPY") for word in line.split()[1:-1]}
    mounted = set(re.findall(r"--mount=type=bind,source=([^,]+),target=/src", DOCKERFILE))
    assert sent == copied | mounted
    assert all((ROOT / name).exists() for name in sent)
    assert {*PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]} < copied


def test_the_wheel_has_every_file(wheel: Path) -> None:
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    listed = subprocess.run(["git", "ls-files", *packages], cwd=ROOT, capture_output=True, text=True, check=True)
    files = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    assert len(files) > 100
    assert files <= set(zipfile.ZipFile(wheel).namelist())
    assert f"raylens-{VERSION}-" in wheel.name


@pytest.mark.parametrize("target", STEPS)
def test_what_would_be_installed_is_the_locks(target: str, clean: Path, wheel: Path) -> None:
    *steps, own = installs(target, clean, str(wheel))
    assert own[-1] == str(wheel)
    found = [dict(re.findall(r"^ \+ (\S+)==(\S+)$", run([*step, "--dry-run"]), re.M)) for step in steps]
    whole = found[-1]  # the lock has some names twice, by the version of Python
    locked = set(
        re.findall(r"^(\S+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.M)
    )  # some twice, by the version of Python
    assert set(whole.items()) <= locked
    assert {"ray", "torch", "onnxruntime-gpu"} < whole.keys()
    assert not {"pytest", "mypy", "quantus", "hypothesis"} & whole.keys()
    assert (whole.keys() & GPU_ONLY) == (GPU_ONLY if target == "gpu" else set())
    assert {"torch", "torchvision"} <= found[0].keys() < whole.keys()


def test_a_wheel_of_another_hash_is_refused(clean: Path, tmp_path: Path) -> None:
    step, *_ = installs("cpu", clean, "")
    locked = re.search(r"^(colorful)==.*(?:\n    --hash.*)+", (ROOT / "requirements.lock").read_text(), re.M)
    assert locked is not None
    (tmp_path / "other.lock").write_text(re.sub("sha256:[0-9a-f]{64}", f"sha256:{'0' * 64}", locked[0]))
    command = [word for word in step if word not in ("torch", "torchvision")]
    command[command.index("--constraint") + 1] = str(tmp_path / "other.lock")
    done = subprocess.run([*command, locked[1]], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Hash mismatch" in done.stderr


@pytest.mark.thorough
def test_the_image_for_cpus_explains_and_compiles(clean: Path, wheel: Path, tmp_path: Path) -> None:
    for step in installs("cpu", clean, str(wheel)):
        run(step, UV_LINK_MODE="hardlink")
    (tmp_path / "images").mkdir()
    for seed in range(3):
        (tmp_path / "images" / f"{seed}.jpg").write_bytes(jpeg(seed))
    raylens = str(clean.with_name("raylens"))
    network = ["--model", "timm:resnet18", "--weights", "random"]
    places = ["--input", str(tmp_path / "images"), "--output", str(tmp_path / "out")]
    run([raylens, "explain", *places, *network])
    assert (tmp_path / "out" / "run.json").exists()
    run([raylens, "compile", *network, str(tmp_path / "graph.onnx")])
    assert (tmp_path / "graph.onnx").stat().st_size > 40_000_000

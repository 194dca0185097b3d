"""Who may import whom: ARCHITECTURE's direction, in fresh processes and in the source."""

import ast
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from samples import jpeg, write_tar

from pipeline.preprocessing import Preprocessing
from pipeline.stream.ledger import Span
from pipeline.stream.shards import Shard
from pipeline.stream.steps import Steps, Work
from schemas.graph import GraphSpec, ModelSpec

ROOT = Path(__file__).parents[1]
PACKAGES = ("schemas", "pipeline", "serve")
RAY = ("pipeline/stream/dataset.py", "pipeline/jobs/", "serve/")
ORDER = (
    ("pipeline.errors", "pipeline.preprocessing", "pipeline.model"),
    ("pipeline.attribution", "pipeline.heatmap"),
    ("pipeline.target", "pipeline.runtime"),
    ("pipeline.graph", "pipeline.records", "pipeline.choice"),
    ("pipeline.stream.dataset",),
    ("pipeline.jobs",),
    ("pipeline.cli",),
)
"""From the bottom to the top; a level imports itself and those before it."""


def sources() -> list[Path]:
    return sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def for_checking_only(tree: ast.AST) -> set[ast.AST]:
    """What stands below `if TYPE_CHECKING`: never run."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    return {inner for block in blocks for statement in block.body for inner in ast.walk(statement)}


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or within a function; `from a import b` gives a and a.b."""
    tree = ast.parse((ROOT / path).read_text())
    skipped = for_checking_only(tree)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def level(name: str) -> int | None:
    return next((index for index, names in enumerate(ORDER) if within(name, names)), None)


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """What each of our modules imports of our own; a name that is no module is left out."""
    names = {module(path) for path in sources()}
    return {module(path): {name for name in imported(path) if name in names} for path in sources()}


def reached(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for name in graph[waiting.pop()] - found:
            found.add(name)
            waiting.append(name)
    return found


def test_the_scan_sees_what_it_should(graph: dict[str, set[str]]) -> None:
    assert len(graph) > 50
    assert "pipeline.jobs.explain" in graph["pipeline.cli"], "within a function"
    assert "pipeline.stream.sources.folder" in graph["pipeline.stream.sources"], "from package import module"
    assert "pipeline.graph" not in graph["pipeline.records"], "for type checking only"
    assert any("ray" in imported(path) for path in sources())


@pytest.mark.parametrize("path", sources(), ids=str)
def test_direction_between_packages(path: Path) -> None:
    above = PACKAGES[PACKAGES.index(path.parts[0]) + 1 :]
    assert [name for name in imported(path) if within(name, above)] == []


@pytest.mark.parametrize("path", sources(), ids=str)
def test_only_the_wiring_knows_ray(path: Path) -> None:
    if not str(path).startswith(RAY):
        assert [name for name in imported(path) if within(name, ("ray",))] == []


def test_order_within_pipeline(graph: dict[str, set[str]]) -> None:
    """Over any number of modules between."""
    for name in graph:
        own = level(name)
        if own is not None:
            above = {other for other in reached(graph, name) if (level(other) or 0) > own}
            assert above == set(), f"{name} reaches what stands above it"


def test_errors_import_nothing_of_ours(graph: dict[str, set[str]]) -> None:
    assert graph["pipeline.errors"] == set()


def loaded(statement: str, *names: str) -> set[str]:
    """Which of some modules a fresh process has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_schemas_load_neither_torch_nor_ray() -> None:
    statement = "import " + ", ".join(module(path) for path in sources() if path.parts[0] == "schemas")
    assert loaded(statement, "torch", "ray", "pipeline", "serve", "schemas.job") == {"schemas.job"}


def test_the_graph_and_the_steps_load_without_ray() -> None:
    names = (
        "graph", "attribution", "model", "records", "heatmap", "target", "errors", "report.sheet", "stream.decode",
        "stream.ledger", "stream.parts", "stream.steps", "stream.sources", "stream.storage", "jobs.explain", "jobs.run",
    )  # fmt: skip
    statement = "import " + ", ".join(f"pipeline.{name}" for name in names)
    assert loaded(statement, "ray", "serve", "torch") == {"torch"}


def test_tasks_load_no_torch(tmp_path: Path) -> None:
    """What the read, commit and seal tasks in Ray's workers import: torch would cost every process seconds."""
    spec = GraphSpec(model=ModelSpec(source="none"))
    preprocessing = Preprocessing((8, 8), (8, 8), "shortest", "bilinear", (0.5,) * 3, (0.5,) * 3)
    metadata = {"graph_digest": "none"}
    steps = Steps(str(tmp_path / "out"), {}, preprocessing, spec, metadata, 10**6, False, None, 100)
    tar = write_tar(tmp_path / "a.tar", [("a", {"jpg": jpeg(0)})])
    shard = Shard(0, "a.tar", str(tar), "webdataset")
    task = tmp_path / "task.pickle"
    task.write_bytes(pickle.dumps((steps, Work(shard, (Span(0, 2**62),)))))
    statement = (
        f"import pickle; steps, work = pickle.loads(open({str(task)!r}, 'rb').read())\n"
        "[table] = steps.decoded(work)\n"
        "assert table.column('code').null_count == 1\n"
        "steps.commit(table.drop_columns(['pixels', 'label']))\n"
        "import pipeline.stream.dataset"
    )
    heavy = ("torch", "timm", "torchvision", "transformers", "scipy", "skimage", "matplotlib", "s3fs")
    assert loaded(statement, *heavy, "pipeline.graph") == set()
    assert steps.ledger.coverage("a.tar").end == 1


def test_a_local_job_does_not_load_ray(tmp_path: Path) -> None:
    statement = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from pathlib import Path\nfrom samples import job, write_tars\nfrom pipeline.jobs.explain import explain\n"
        f"root = Path({str(tmp_path)!r})\nwrite_tars(root / 'in', shards=1, each=2)\n"
        "assert explain(job(root / 'in', root / 'out')).images == 2"
    )
    assert loaded(statement, "ray", "torch") == {"torch"}


def test_a_proxy_loads_no_network() -> None:
    heavy = ("torch", "onnxruntime", "pyarrow", "timm", "serve.service")
    assert loaded("import serve.proxy, serve.grpc_server", *heavy) == set()


def test_the_command_starts_fast() -> None:
    heavy = ("torch", "ray", "pandas", "pyarrow", "timm", "transformers", "matplotlib")
    assert loaded("import pipeline.cli", *heavy) == set()
    usage = "import pipeline.cli, resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_utime)"
    done = subprocess.run(
        [sys.executable, "-c", usage], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert float(done.stdout) < 2.5, "seconds of processor time"

"""The house rules: who may import whom, and through which door each library enters."""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("models", "edge_agent", "broker", "tools")
MAY_IMPORT = {
    "models": {"models"},
    "edge_agent": {"models", "edge_agent"},
    "broker": {"models", "broker"},
    "tools": set(OURS),
}
DOORS = {  # library -> the only modules that may import it
    "torch": {"models.nets.*", "tools.*"},
    "onnx": {"models.graph.*", "models.nets.*", "tools.*"},
    "onnxruntime": {"models.learning.onnx_session", "tools.*"},
    "paho": {
        "models.transport.mqtt_connection",
        "models.transport.counting_client",
        "tools.bench.plain_aggregator",
    },
    "psutil": {"edge_agent.training.vitals", "tools.*"},
    "sqlite3": {
        "models.host.durable",
        "edge_agent.updates.outbox_file",
        "broker.records.registry",
        "tools.simulation.machines.disk_watch",
        "tools.simulation.machines.virtual_disk",
    },
    "sklearn": {"tools.*"},
    "matplotlib": {"tools.*"},
    "amqtt": {"tools.local_fleet.embedded_broker"},
}
PURE = {  # no files, sockets, clocks, threads or environment: time and randomness are arguments
    "broker.publishing.echoes",
    "broker.publishing.retained",
    "models.task.spec",
    "models.task.params",
    "models.host.backoff",
    "models.errors",
    "models.life",
    "models.samples.label_forms",
    "models.samples.npz_layouts",
    "models.learning.measurement",
    "models.learning.onnx_session",
    "models.samples.sample_check",
    "models.learning.scoring",
    "models.codec.*",
    "models.protocol.*",
    "models.transport.link",
    "models.transport.denied_topics",
    "models.transport.reconnection",
    "models.transport.unconfirmed",
    "edge_agent.samples.entry_fate",
    "edge_agent.samples.fitting",
    "edge_agent.training.governor",
    "edge_agent.training.local_steps",
    "edge_agent.reports.connection",
    "edge_agent.reports.silence",
    "edge_agent.releases.admission",
    "edge_agent.updates.chunk_size",
    "edge_agent.updates.receipt_waits",
    "edge_agent.reports.heartbeat",
    "edge_agent.inbox.waiting",
    "broker.folding.aggregator",
    "broker.folding.aggregation_rules",
    "broker.receiving.hearing",
    "broker.receiving.incoming",
    "broker.lease.lease",
    "broker.releases.patience",
    "broker.devices.presence",
    "broker.releases.lost_releases",
    "broker.devices.remarks",
    "broker.reports.text_table",
    "broker.releases.release_patches",
    "broker.folding.staleness",
    "tools.simulation.machines.memory_broker",
    "tools.simulation.machines.memory_link",
    "broker.two_clocks",
    "broker.releases.gate",
}
IMPURE = {
    "asyncio",
    "logging",
    "os",
    "pathlib",
    "random",
    "shutil",
    "socket",
    "sqlite3",
    "subprocess",
    "tempfile",
    "threading",
    "time",
}
RESIDENT = {"edge_agent.__main__", "edge_agent.agent"}  # what a 512 MB board carries all day
TOO_HEAVY = {"numpy", "onnx", "onnxruntime", "torch", "PIL", "rich"}
HOLDERS = (ast.stmt, ast.ExceptHandler, ast.match_case)  # what statements are in


def named(module: str, patterns: set[str]) -> bool:
    return module in patterns or any(
        p.endswith(".*") and module.startswith(p[:-2]) for p in patterns
    )


def imported_at_start(tree: ast.Module) -> set[str]:
    """The modules that importing ``tree`` imports: none that a function imports when called."""
    found: set[str] = set()
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        found |= names_of(node)
        todo += [child for child in ast.iter_child_nodes(node) if isinstance(child, HOLDERS)]
    return found


def names_of(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return set()


def parse() -> dict[str, ast.Module]:
    found = {}
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text("utf-8"))
    return found


def statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """All statements: ten times fewer nodes than `ast.walk` sees, and no import is elsewhere."""
    todo = [tree]
    while todo:
        for node in ast.iter_child_nodes(todo.pop()):
            if isinstance(node, ast.stmt):
                yield node
            if isinstance(node, HOLDERS):
                todo.append(node)


TREES = parse()
EVERYWHERE = {
    module: set().union(*(names_of(node) for node in statements(tree)))
    for module, tree in TREES.items()
}
AT_START = {module: imported_at_start(tree) for module, tree in TREES.items()}


def libraries(imports: set[str]) -> set[str]:
    return {name.split(".")[0] for name in imports}


@pytest.mark.parametrize("module", TREES)
def test_imports_point_one_way(module: str) -> None:
    allowed = MAY_IMPORT[module.split(".")[0]]
    assert libraries(EVERYWHERE[module]) & set(OURS) <= allowed


@pytest.mark.parametrize("module", TREES)
def test_imports_are_written_in_full(module: str) -> None:
    for node in statements(TREES[module]):
        assert not (isinstance(node, ast.ImportFrom) and node.level)


@pytest.mark.parametrize("library", DOORS)
def test_each_library_enters_by_its_own_door(library: str) -> None:
    users = {module for module, imports in EVERYWHERE.items() if library in libraries(imports)}
    assert {module for module in users if not named(module, DOORS[library])} == set()


@pytest.mark.parametrize("module", [module for module in TREES if named(module, PURE)])
def test_pure_modules_stay_pure(module: str) -> None:
    assert libraries(EVERYWHERE[module]) & IMPURE == set()


def test_every_pattern_names_a_module() -> None:
    doors = set().union(*DOORS.values())
    stale = {p for p in PURE | doors | RESIDENT if not any(named(m, {p}) for m in TREES)}
    assert stale == set()


def reached_from(modules: set[str]) -> set[str]:
    """What importing ``modules`` imports of ours, they included."""
    reached: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        if module in reached:
            continue
        reached.add(module)
        parents = [module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)]
        todo += [m for m in (*AT_START[module], *parents) if m in TREES]
    return reached


def test_the_resident_agent_imports_nothing_heavy() -> None:
    """numpy, onnxruntime and torch live in children, whose memory returns to the system."""
    heavy = {m: libraries(AT_START[m]) & TOO_HEAVY for m in reached_from(RESIDENT)}
    assert {m: found for m, found in heavy.items() if found} == {}


def test_the_server_says_how_many_threads_before_numpy_is_there() -> None:
    early = {m for m in reached_from({"broker.__main__"}) if "numpy" in libraries(AT_START[m])}
    assert early == set(), "OpenBLAS reads OPENBLAS_NUM_THREADS when it is loaded"


def test_the_codec_and_the_protocol_never_load_pickles() -> None:
    for module, tree in TREES.items():
        assert not libraries(EVERYWHERE[module]) & {"pickle", "marshal", "shelve"}, module
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, module
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), module
                assert node.value.value is False, module


def test_a_file_name_opens_one_file() -> None:
    exempt = {"__init__.py", "__main__.py", "config.py", "conftest.py"}
    for places in (OURS, ("tests",)):
        names = Counter(
            path.name
            for place in places
            for path in (ROOT / place).rglob("*.py")
            if path.name not in exempt
        )
        assert {name for name, count in names.items() if count > 1} == set()


def test_what_applications_install_is_one_file_of_the_standard_library() -> None:
    """numpy too only when an application that has it asks: the resident agent imports the file."""
    client = "edge_agent.client.edgefold_client"
    assert libraries(AT_START[client]) <= sys.stdlib_module_names
    assert libraries(EVERYWHERE[client]) <= sys.stdlib_module_names | {"numpy"}


def test_no_module_outgrows_one_concept() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines())
        for package in OURS
        for path in (ROOT / package).rglob("*.py")
    }
    # The client is one file by promise: it can be copied to where nothing can be installed.
    assert lengths.pop("edge_agent/client/edgefold_client.py") <= 700
    assert {name: lines for name, lines in lengths.items() if lines > 500} == {}

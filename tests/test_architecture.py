"""The rules of the tree, read from the source: arrows, stages' dependencies, sizes, names."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from vaeline import config
from vaeline.config import data, train
from vaeline.io.yaml_config import read_yaml
from vaeline.training.checkpoint import SOURCES as KEYED

ROOT = Path(__file__).parents[1]
SOURCES = {"vaeline": ROOT / "src", "pipeline": ROOT}
STAGES = read_yaml(ROOT / "dvc.yaml")["stages"]
# The rooms, floor by floor: a module may import its own room and the rooms of floors below; ROOM_ARROWS lists what is
# allowed between rooms of one floor.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("vaeline.errors",),
    ("vaeline.core", "vaeline.io"),
    ("vaeline.config",),
    ("vaeline.data.sources", "vaeline.data"),
    ("vaeline.training", "vaeline.evaluation"),
    ("vaeline.theory", "vaeline.plotting", "vaeline.serving"),
    ("vaeline.tracking",),
    ("vaeline.registry",),
    ("vaeline.command",),
    ("pipeline.services",),
    ("pipeline.report",),
    ("pipeline.stages",),
    ("pipeline.sweep",),
    ("pipeline.flows",),
    ("pipeline.commands",),
    ("pipeline.cli",),
)
ROOM_ARROWS = {("vaeline.data", "vaeline.data.sources"), ("vaeline.theory", "vaeline.plotting")}
LOOSE = {"vaeline", "vaeline.errors", "pipeline", "pipeline.cli"}  # modules that lie beside rooms
CODE_IN_INIT = {"vaeline.config"}  # all sections of params.yaml; the room's modules hold the two largest
# what can change no byte of a result, and what only tells about it: DVC does not watch these
UNWATCHED = re.compile(
    r"pipeline\.(stages\.(runner|training_processes)|services(\..+)?|report\.summary)"
    r"|vaeline(\.(errors|io\.(?!digests|npy).+|command(\..+)?|tracking(\..+)?|registry\.(?!gate).+))?"
)
DOOR = "vaeline"  # the functions in its __init__ open the layers above to those who import nothing else


def file_of(module: str) -> Path | None:
    """The file of a module of this repository; None for other names."""
    if (base := SOURCES.get(module.partition(".")[0])) is None:
        return None
    path = base.joinpath(*module.split("."))
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)


def modules() -> dict[str, Path]:
    """Every module of the library and the pipeline."""
    files = {path: path.relative_to(base) for name, base in SOURCES.items() for path in (base / name).rglob("*.py")}
    return {".".join(name.with_suffix("").parts).removesuffix(".__init__"): path for path, name in files.items()}


@cache
def imports(module: str, with_types: bool = True) -> frozenset[str]:
    """Everything that a module imports, wherever in it: modules of ours in full, others by name."""
    return frozenset(_imports(ast.parse(file_of(module).read_text(encoding="utf-8")), with_types))


def _imports(tree: ast.AST, with_types: bool) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not with_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if file_of(name) else node.module for name in names)
        else:
            yield from _imports(node, with_types)


def reached(module: str, stop: re.Pattern[str] | None = None) -> set[str]:
    """The modules of ours that `module` imports at run time, and those import, and so on; not through `stop`."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        here = todo.pop()
        if here in seen or file_of(here) is None or (stop and stop.fullmatch(here)):
            continue
        seen.add(here)
        todo += imports(here, with_types=False)
    return seen


def room(module: str) -> str:
    """The room a module stands in; "" where the list has none for it."""
    rooms = [name for floor in FLOORS for name in floor if module == name or module.startswith(f"{name}.")]
    return max(rooms, key=len, default="")


def test_every_module_stands_in_a_room():
    assert not [module for module in modules() if module not in LOOSE and not room(module)]
    assert {module for module in modules() if module.count(".") < 2 and file_of(module).name != "__init__.py"} <= LOOSE
    assert {name for rooms in FLOORS for name in rooms} == {room(module) for module in modules() if room(module)}


def test_imports_point_only_downwards():
    floors = {name: number for number, rooms in enumerate(FLOORS) for name in rooms}
    pairs = {
        (room(module), room(other))
        for module in set(modules()) - {DOOR, "pipeline"}
        for other in imports(module)
        if file_of(other) and other not in (DOOR, "pipeline")
    }
    assert not {(a, b) for a, b in pairs - ROOM_ARROWS if a != b and floors[a] <= floors[b]}


def test_core_takes_plain_values_and_touches_no_files():
    forbidden = {"vaeline.config", "vaeline.io.workspace", "vaeline.io.yaml_config", "logging", "pathlib", "os", "json"}
    core = [module for module in modules() if module.startswith("vaeline.core")]
    assert core
    assert not [f"{module} -> {other}" for module in core for other in imports(module) & forbidden]


@pytest.mark.parametrize(
    ("package", "home"),
    [
        ("mlflow", ("vaeline.tracking", "vaeline.registry", "vaeline.serving")),
        ("prefect", ("pipeline.flows", "pipeline.services")),
        ("diffusers", ("vaeline.core.autoencoder_kl", "vaeline.serving.diffusers_export")),
        ("ruamel", "vaeline.io.yaml_config"),
        ("typer", ("pipeline.cli", "pipeline.commands", "vaeline.command")),
    ],
)
def test_a_tool_is_imported_in_its_one_place(package: str, home: str | tuple[str, ...]):
    users = {m for m in modules() for other in imports(m) if other.partition(".")[0] == package}
    assert users
    assert {user for user in users if not user.startswith(home)} == set()


def test_only_data_batches_brings_torch_to_the_data_package():
    users = {module for module in modules() if "torch" in imports(module)}
    assert {user for user in users if user.startswith("vaeline.data")} <= {"vaeline.data.batches"}


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("pipeline.flows.vaeline", "torch torchvision mlflow"),
        ("pipeline.cli", "torch mlflow prefect dvc numpy sklearn"),
        ("pipeline.stages.train", "torchvision mlflow sklearn matplotlib prefect"),
    ],
)
def test_a_program_starts_without_what_it_does_not_need(module: str, forbidden: str):
    code = f"import sys, {module}; print(sorted({set(forbidden.split())!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_prepare_imports_neither_torch_nor_what_brings_it():
    used = {other.partition(".")[0] for module in reached("pipeline.stages.prepare") for other in imports(module)}
    assert not used & {"torch", "torchvision", "mlflow", "sklearn", "matplotlib"}


def watched(stage: str) -> set[Path]:
    """The code files that a stage's `deps` name, folders unfolded."""
    named = [ROOT / dep for dep in STAGES[stage]["deps"] if dep.startswith(("src/", "pipeline/"))]
    assert all(path.exists() for path in named), f"{stage}: a dependency is missing: {named}"
    return {file for path in named for file in (path.rglob("*[!c]") if path.is_dir() else [path])}


def needed(stage: str) -> set[Path]:
    """The code files, and the templates of pages, that can change what a stage writes."""
    files = {file_of(module) for module in reached(f"pipeline.stages.{stage}", UNWATCHED)}
    homes = {file_of(module) for module in CODE_IN_INIT}
    code = {file for file in files if file and (file.name != "__init__.py" or file in homes)}
    loaders = [file for file in code if "PackageLoader(" in file.read_text()]
    return code | {page for file in loaders for page in (file.parent / "templates").iterdir()}


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_watches_the_code_that_a_stage_computes_with_and_no_other(stage: str):
    missing = needed(stage) - watched(stage)
    assert not missing, f"dvc.yaml: stages.{stage}.deps lacks {sorted(str(f.relative_to(ROOT)) for f in missing)}"
    code = [ROOT / dep for dep in STAGES[stage]["deps"] if dep.startswith(("src/", "pipeline/"))]
    unused = [path for path in code if not any(file.is_relative_to(path) for file in needed(stage))]
    assert not unused, f"dvc.yaml: stages.{stage}.deps names without need {unused}"


def test_a_change_in_tracking_or_in_a_data_source_retrains_nothing():
    files = {file.relative_to(ROOT).as_posix() for file in watched("train")}
    found = {name for name in files if name.startswith(("src/vaeline/tracking/", "src/vaeline/data/"))}
    assert found <= {f"src/vaeline/data/{name}.py" for name in ("prepared", "batches", "sources/dataset")}


def test_a_trainings_key_covers_all_torch_code_that_training_loads():
    package = ROOT / "src" / "vaeline"
    covered = {path for pattern in KEYED for path in package.glob(pattern)}
    plain = {*package.glob("config/*.py"), package / "errors.py", *package.glob("io/*.py")}
    assert {file_of(module) for module in reached("vaeline.training.trainer", re.compile(DOOR))} <= covered | plain


def test_importing_a_package_imports_no_module_of_it_and_no_library():
    packages = {module: path for module, path in modules().items() if path.name == "__init__.py"}
    assert packages
    for module, path in ((module, packages[module]) for module in packages.keys() - CODE_IN_INIT):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tree.body = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]  # those run when called
        used = {name.partition(".")[0] for name in _imports(tree, with_types=False)}
        assert not used - sys.stdlib_module_names, module


def test_a_stage_is_a_module_a_section_of_params_and_a_step_of_dvc():
    sections = set(read_yaml(ROOT / "params.yaml"))
    assert all(callable(getattr(importlib.import_module(f"pipeline.stages.{name}"), "main", None)) for name in STAGES)
    assert sections == (set(STAGES) - {"fetch", "prepare", "report"}) | {"data", "model"}
    for name, stage in STAGES.items():
        assert stage["cmd"] == f"exec python pipeline/stages/runner.py {name}", "without exec it outlives a killed DVC"
        read = {param.partition(".")[0] for param in stage["params"]}
        assert read == sections if name == "report" else {"fetch": "data", "prepare": "data"}.get(name, name) in read
        assert "frozen" not in stage
        assert "always_changed" not in stage


def test_every_option_is_read_somewhere():
    """Mistake 13: an option that nothing reads."""
    read: set[str] = set()
    for module, path in modules().items():
        if not module.startswith("vaeline.config"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                read |= {node.attr} if isinstance(node, ast.Attribute) else set()
                read |= set(node.kwd_attrs) if isinstance(node, ast.MatchClass) else set()
    classes = [value for file in (config, data, train) for value in vars(file).values() if isinstance(value, type)]
    options = {field for value in classes if issubclass(value, config.Section) for field in value.model_fields}
    assert options
    assert not options - read


def test_files_and_functions_stay_short():
    most = {"dvc.yaml": 110, "params.yaml": 64}
    long = [name for name in most if (ROOT / name).read_text(encoding="utf-8").count("\n") > most[name]]
    for path in (path for name in ("src", "pipeline", "benchmarks", "tests") for path in (ROOT / name).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 300:
            long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (lines := (node.end_lineno or 0) - node.lineno + 1) > 60:
                long.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert not long


def test_the_lock_pins_all_with_hashes_and_names_no_address():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"https?:|://| @ |^--|^-e", lock, re.MULTILINE)
    entries = re.split(r"\n(?=\S)", lock.strip())
    assert len(entries) > 100
    assert not [entry.splitlines()[0] for entry in entries if "==" not in entry or "--hash=sha256:" not in entry]

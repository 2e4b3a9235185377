"""The package as a whole: the direction of its imports, its public names, what it never does."""

from __future__ import annotations

import ast
import importlib
import inspect
import platform
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from host import run_script

import jidoka_shm

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(jidoka_shm.__file__).parent

#: Every module, each importing only from those before it. Those of the first group know no I/O.
PURE = (
    "errors",
    "arguments",
    "ids",
    "layout",
    "maps",
    "session",
    "splices",
    "slots",
    "seqlock",
    "header",
    "control",
    "table",
    "cache",
    "scan",
    "differences",
    "telling",
    "looks",
    "deadlines",
    "owners",
    "space",
    "survey",
    "records",
    "growth",
    "usage",
    "writer",
    "marks",
    "rules",
    "registry",
    "protocol",
    "failed",
    "once",
)
ORDER = (
    *PURE,
    "logs",
    "segment",
    "processes",
    "forks",
    "lock",
    "ownership",
    "attachment",
    "handles",
    "access",
    "views",
    "watching",
    "reads",
    "reader",
    "changes",
    "calls",
    "batch",
    "connection",
    "starting",
    "link",
    "delivery",
    "pipeline",
    "client",
    "asked",
    "line",
    "channel",
    "asyncwatching",
    "asyncclient",
    "endpoint",
    "service",
    "descriptors",
    "accepted",
    "server",
    "watches",
    "reactor",
    "recovery",
    "serving",
    "growing",
    "writes",
    "manager",
    "gate",
    "ready",
    "callee",
    "programs",
    "children",
    "crew",
    "keeper",
    "supervisor",
    "asyncsupervisor",
    "cli",
    "__main__",
)

#: What a pure module may import from outside the package: values and arithmetic.
VALUES = {
    "__future__",
    "abc",
    "collections",
    "dataclasses",
    "datetime",
    "enum",
    "errno",
    "functools",
    "heapq",
    "itertools",
    "math",
    "msgspec",
    "numpy",
    "operator",
    "re",
    "secrets",
    "struct",
    "typing",
    "uuid",
    "zlib",
}

SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES = [module for module in SOURCES if module != "__init__"]


def _part(module: str) -> str:
    """Return the part of the package that a module belongs to: itself, or its folder."""
    return module.partition(".")[0]


def _run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield each node that is there at run time: all but what stands under TYPE_CHECKING."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _run_time(other)
        else:
            yield from _run_time(child)


def _imports(module: str) -> tuple[set[str], set[str]]:
    """Return the parts of the package that a module imports, and the packages outside it."""
    # `from . import x` in a module of a folder means the folder; two dots mean the package.
    folder = module.split(".")[:-1]
    inside: set[str] = set()
    outside: set[str] = set()
    for node in _run_time(SOURCES[module]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) + 1 - node.level] if node.level else []
            prefix = ["jidoka_shm", *base] if node.level else []
            prefix += node.module.split(".") if node.module else []
            whole = ".".join(prefix)
            names = [f"{whole}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == "jidoka_shm":
                inside.add(_part(rest))
            else:
                outside.add(first)
    return inside, outside


def _names(module: str) -> set[str]:
    """Return every name and attribute that a module uses."""
    nodes = list(ast.walk(SOURCES[module]))
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    }


def _attributes(module: str, of: str) -> set[str]:
    """Return the attributes of the name ``of`` that a module uses."""
    return {
        node.attr
        for node in ast.walk(SOURCES[module])
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == of
    }


# ---------------------------------------------------------------------------- what imports what


def test_every_module_has_its_place_in_the_order() -> None:
    assert len(ORDER) == len(set(ORDER)), "a module has two places"
    assert {_part(module) for module in MODULES} <= set(ORDER)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_those_above_it(module: str) -> None:
    part = _part(module)
    above = ORDER[: ORDER.index(part)]
    inside, _ = _imports(module)
    # The package's own file holds the version, and imports none of its modules.
    assert inside - {part, "__version__"} <= set(above)


def _map() -> list[list[str]]:
    """Return the modules of each group of the map in CONTRIBUTING.md."""
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    _, _, rest = text.partition("\n## Map of the modules\n")
    groups = re.split(r"^\*\*.*\*\*$", rest.partition("\n## ")[0], flags=re.MULTILINE)[1:]
    found = [re.findall(r"`((?:\w+/)?\w+)\.py`", group) for group in groups]
    return [[path.replace("/", ".") for path in group] for group in found]


def test_the_map_names_each_module_once() -> None:
    named = [module for group in _map() for module in group]
    assert sorted(named) == sorted(each for each in MODULES if not each.endswith("__init__"))


def test_each_group_of_the_map_imports_only_from_itself_and_those_above_it() -> None:
    above: set[str] = set()
    for group in _map():
        above |= {_part(module) for module in group}
        for module in group:
            inside, _ = _imports(module)
            assert inside - {"__version__"} <= above, module


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_imports_no_io(module: str) -> None:
    _, outside = _imports(module)
    # The protocol asks what machine it runs on, and its fence is a lock.
    exceptions = {"os", "platform", "threading"} if module == "seqlock" else set()
    assert outside <= VALUES | exceptions


def test_importing_the_package_imports_no_module_of_it() -> None:
    inside, outside = _imports("__init__")
    assert inside == set()
    assert outside == {"__future__", "importlib", "typing"}


@pytest.mark.parametrize("library", ["posix_ipc", "mmap", "fcntl"])
def test_shared_memory_and_its_lock_are_imported_by_one_module(library: str) -> None:
    assert [module for module in SOURCES if library in _imports(module)[1]] == ["segment"]


def test_the_readers_side_imports_no_loop_and_no_command() -> None:
    for module in ORDER[: ORDER.index("changes")]:
        _, outside = _imports(module)
        assert not outside & {"asyncio", "selectors", "socket", "click", "rich"}, module


def test_the_clients_side_imports_no_loop() -> None:
    for module in ORDER[: ORDER.index("client") + 1]:
        inside, outside = _imports(module)
        assert not outside & {"asyncio", "selectors"}, module
        assert not inside & {"manager", "cli"}, module


# ---------------------------------------------------------------------------- what stands where


def test_struct_formats_stand_in_the_layout_alone() -> None:
    for module in SOURCES:
        used = _attributes(module, "struct")
        # How wide a format of the layout's own is may be asked anywhere.
        assert module == "layout" or used <= {"error", "calcsize"}, module
        assert module == "layout" or "dtype" not in _attributes(module, "np"), module


@pytest.mark.parametrize("module", MODULES)
def test_only_the_protocol_stores_to_index_and_change_words(module: str) -> None:
    nodes = ast.walk(SOURCES[module])
    assignments = [node for node in nodes if isinstance(node, ast.Assign | ast.AugAssign)]
    ends = (".words", ".change")
    aliases = {
        ast.unparse(node.targets[0])
        for node in assignments
        if isinstance(node, ast.Assign) and ast.unparse(node.value).endswith(ends)
    }
    stored = {
        ast.unparse(target.value)
        for node in assignments
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Subscript)
    }
    found = {text for text in stored if text in aliases or text.endswith(ends)}
    assert module == "seqlock" or not found


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_is_unpickled_or_evaluated(module: str) -> None:
    _, outside = _imports(module)
    assert not outside & {"pickle", "marshal", "shelve", "copyreg", "runpy", "code", "ctypes"}
    called = {
        node.func.id
        for node in ast.walk(SOURCES[module])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"eval", "exec", "compile", "__import__"}
    # What is imported by a name is this package's own; what may be started is only looked for.
    assert "importlib" not in outside or module in {"__init__", "starting"}
    assert "import_module" not in _names(module) or module == "__init__"


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_packs_into_shared_memory(module: str) -> None:
    """T1: pack_into zeroes its target first, which readers of a live word see."""
    # It zeroes its target first, which readers of a live word see.
    assert "pack_into" not in _names(module)


@pytest.mark.parametrize("module", SOURCES)
def test_only_what_knows_no_memory_decodes(module: str) -> None:
    """T3: what decodes records has nothing to decode from but the private copies it is given."""
    if "Decoder" in _names(module):
        assert module in {"ids", "maps", "session", "protocol", "service"}
        assert not _names(module) & {"mmap", "memoryview", "memory", "Memory", "frombuffer"}


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_in_shared_memory_can_be_held(module: str) -> None:
    """T6: no lock, semaphore or count of readers stands in shared memory, to outlive its holder."""
    _, outside = _imports(module)
    assert not outside & {"multiprocessing", "_multiprocessing", "sysv_ipc", "ctypes"}
    assert not _names(module) & {"Semaphore", "MessageQueue", "sem_open", "pthread_mutex_t"}
    # The only lock between processes is the kernel's, on a descriptor.
    assert module == "segment" or not _names(module) & {"flock", "lockf", "fcntl"}


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_is_short_enough_to_be_read(module: str) -> None:
    if module != "errors":
        path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
        assert len(path.read_text().splitlines()) <= 350


@pytest.mark.parametrize("module", SOURCES)
def test_all_that_is_public_is_documented(module: str) -> None:
    tree = SOURCES[module]
    assert ast.get_docstring(tree)
    silent = []

    def visit(parent: ast.Module | ast.ClassDef) -> None:
        for node in parent.body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            overload = "overload" in [ast.unparse(each) for each in node.decorator_list]
            if not node.name.startswith("_") and not overload and not ast.get_docstring(node):
                silent.append(node.name)
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                visit(node)

    visit(tree)
    assert silent == []


# ---------------------------------------------------------------------------- public names


def test_public_names_are_sorted_and_can_be_imported() -> None:
    assert jidoka_shm.__all__ == sorted(jidoka_shm.__all__)
    for name in jidoka_shm.__all__:
        value = getattr(jidoka_shm, name)
        assert value.__name__ == name
        assert value.__doc__


@pytest.mark.parametrize(
    "method", ["create_session", "update_session", "terminate_session", "resize"]
)
def test_each_way_of_writing_takes_the_same_arguments(method: str) -> None:
    signature = inspect.signature(getattr(jidoka_shm.SessionManager, method))
    for kind in (jidoka_shm.SessionClient, jidoka_shm.AsyncSessionClient):
        assert inspect.signature(getattr(kind, method)) == signature
    assert inspect.iscoroutinefunction(getattr(jidoka_shm.AsyncSessionClient, method))


def test_type_checkers_see_the_public_names_where_they_are() -> None:
    seen = {
        alias.name: node.module
        for node in ast.walk(SOURCES["__init__"])
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    homes = {name: getattr(jidoka_shm, name).__module__ for name in jidoka_shm.__all__}
    assert {name: f"jidoka_shm.{module}" for name, module in seen.items()} == homes


def test_star_imports_bring_the_public_names() -> None:
    code = """
        from jidoka_shm import *
        import jidoka_shm
        print(sorted(set(jidoka_shm.__all__) - set(globals())))
    """
    assert run_script(code) == "[]\n"


def test_dir_lists_each_name_once() -> None:
    for name in jidoka_shm.__all__:
        getattr(jidoka_shm, name)
    listed = dir(jidoka_shm)
    assert {*jidoka_shm.__all__, "__version__"} <= set(listed)
    assert len(listed) == len(set(listed))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"'jidoka_shm' has no attribute 'SessionMaster'"):
        jidoka_shm.SessionMaster  # noqa: B018 - the access is what raises
    assert not hasattr(jidoka_shm, "importlib.os")
    assert not hasattr(jidoka_shm, "attach")


def test_every_module_can_be_imported_by_itself() -> None:
    for module in MODULES:
        if not module.endswith("__main__"):
            importlib.import_module(f"jidoka_shm.{module.removesuffix('.__init__')}")


def test_the_package_says_that_it_has_types() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_the_version_is_the_projects() -> None:
    project = Path(__file__).parents[1] / "pyproject.toml"
    assert tomllib.loads(project.read_text())["project"]["version"] == jidoka_shm.__version__


# ---------------------------------------------------------------------------- fresh interpreters


def test_the_reader_loads_neither_the_loop_nor_the_manager_nor_the_command() -> None:
    code = """
        import sys
        from jidoka_shm import SessionReader
        heavy = {"asyncio", "click", "rich", "socket", "selectors", "multiprocessing"}
        print(sorted(heavy & set(sys.modules)))
        print(sorted(name for name in sys.modules if name.startswith("jidoka_shm.")))
    """
    heavy, loaded = run_script(code).splitlines()
    assert heavy == "[]"
    above = {f"jidoka_shm.{module}" for module in ORDER[: ORDER.index("changes")]}
    assert set(ast.literal_eval(loaded)) <= above


def test_importing_the_package_loads_nothing_of_it() -> None:
    code = """
        import sys
        import jidoka_shm
        heavy = ("jidoka_shm.", "numpy", "msgspec")
        print([name for name in sys.modules if name.startswith(heavy)])
    """
    assert run_script(code) == "[]\n"


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_another_platform_can_import_it_and_is_told_on_opening(system: str) -> None:
    code = """
        import functools
        import sys
        # What the standard library itself would import differently there.
        import asyncio, logging, numpy, pathlib, platform, selectors, threading, uuid
        sys.platform = sys.argv[1]
        sys.modules |= {"posix_ipc": None, "fcntl": None}
        import jidoka_shm
        from jidoka_shm import SessionManager, SessionReader, UnsupportedPlatform, endpoint, segment
        # There is no /dev/shm to ask for.
        endpoint.os = None
        listening = functools.partial(SessionManager, listen=True)
        for make in (SessionReader, SessionManager, listening):
            try:
                make("name")
            except UnsupportedPlatform as error:
                print(error.platform, error)
        try:
            list(segment.names())
        except UnsupportedPlatform as error:
            print(error.platform, error)
    """
    said = f"{system} a registry cannot be opened on {system}: jidoka_shm needs Linux"
    assert run_script(code, system).splitlines() == [said] * 4


def test_another_platform_that_lacks_the_extension_can_import_every_module() -> None:
    code = """
        import sys
        import asyncio, logging, numpy, pathlib, platform, selectors, threading, uuid
        sys.platform = "darwin"
        sys.modules |= {"posix_ipc": None, "fcntl": None}
        import importlib
        for module in sys.argv[1:]:
            importlib.import_module(f"jidoka_shm.{module}")
    """
    run_script(code, *[module for module in MODULES if _part(module) != "cli"])


def test_the_environment_switches_the_checks_for_weak_memory_on() -> None:
    code = """
        import os
        os.environ["JIDOKA_SHM_WEAK_MEMORY"] = "1"
        from jidoka_shm import seqlock
        print(seqlock.WEAK)
    """
    assert run_script(code) == "True\n"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other machines are weak themselves")
def test_an_x86_64_does_without_the_checks_for_weak_memory() -> None:
    code = """
        import os
        os.environ.pop("JIDOKA_SHM_WEAK_MEMORY", None)
        from jidoka_shm import seqlock
        print(seqlock.WEAK)
    """
    assert run_script(code) == "False\n"

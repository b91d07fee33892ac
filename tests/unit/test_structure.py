"""The house keeps its shape: imports only go down, a file stays one noun, the docs keep up."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the ground up: a module imports from lower layers and from its own package. Packages that stand side
# by side in a layer do not know each other.
LAYERS = [
    ["client.protocol", "client.systemd"],
    ["gateway.core"],
    ["gateway.runtime"],
    ["gateway.store"],
    ["gateway.services", "gateway.node"],
    ["gateway.web"],
    ["gateway.admin"],
    ["gateway.app"],
    ["gateway.cli"],
    ["gateway.__main__"],
]
LAYER = {package: number for number, layer in enumerate(LAYERS) for package in layer}
WITHOUT_IO = {"asyncio", "aiohttp", "aiosqlite", "sqlite3", "socket", "time", "os"}


def modules(package: str) -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """What a file says; it is read once."""
    return ast.parse(path.read_text("utf-8"))


@functools.cache
def imports(path: Path) -> set[str]:
    """Absolute names that a file imports, at any depth."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


GATEWAY = {name: path for name, path in modules("gateway").items() if name != "gateway"}


def package_of(name: str) -> str | None:
    return next((one for one in LAYER if name == one or name.startswith(f"{one}.")), None)


def test_every_module_is_in_a_package_of_the_map():
    assert not [name for name in GATEWAY if package_of(name) is None]


def test_the_map_names_what_there_is_from_the_top_down():
    """`gateway/__init__.py` draws the layers; folders, map and `LAYERS` are one."""
    drawn = re.findall(
        r"^    ([a-z]+)  +\S", importlib.import_module("gateway").__doc__, re.MULTILINE
    )
    there = {path.stem for path in (ROOT / "gateway").iterdir() if path.stem[0] != "_"} - {"py"}
    assert set(drawn) == there
    layers = [
        {name.removeprefix("gateway.") for name in layer} & set(drawn) for layer in reversed(LAYERS)
    ]
    order = [{name} for name in drawn]
    services, node = order.index({"services"}), order.index({"node"})
    assert abs(services - node) == 1, "they stand side by side"
    order[min(services, node) : max(services, node) + 1] = [{"services", "node"}]
    assert order == [layer for layer in layers if layer]


def test_every_package_says_what_lives_there():
    for name, path in GATEWAY.items():
        if path.name == "__init__.py":
            assert ast.get_docstring(tree_of(path)), name


@pytest.mark.parametrize("module", GATEWAY)
def test_imports_only_go_down(module):
    own = package_of(module)
    above = set()
    for name in imports(GATEWAY[module]):
        package = package_of(name)
        if package not in (None, own) and LAYER[package] >= LAYER[own]:
            above.add(name)
    assert not above, f"{module} imports {above} from beside or above its package"


def test_the_client_knows_nothing_of_the_gateway():
    for name, path in modules("client").items():
        guilty = {item for item in imports(path) if item.split(".")[0] == "gateway"}
        assert not guilty, f"{name} imports {guilty}: an ICE's machine runs client/ alone"


def test_what_differs_between_systems_is_the_clients_platform_alone():
    modules_of_one_system = {
        *("ctypes", "fcntl", "grp", "msvcrt", "os", "platform", "posix", "pwd", "resource"),
        *("signal", "stat", "syslog", "tempfile", "termios", "winreg"),
    }
    calls_of_one_system = {"add_signal_handler", "remove_signal_handler", "chmod", "chown"}
    for name, path in modules("client").items():
        if name in ("client.platform", "client.systemd"):
            continue
        guilty = {item for item in imports(path) if item.split(".")[0] in modules_of_one_system}
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute):
                of_sys = isinstance(node.value, ast.Name) and node.value.id == "sys"
                if node.attr in calls_of_one_system or (of_sys and node.attr == "platform"):
                    guilty.add(node.attr)
        assert not guilty, f"{name} uses {guilty}, which is the affair of client/platform.py"


def test_the_gateway_knows_of_the_client_its_protocol_and_what_systemd_hears_alone():
    for name, path in modules("gateway").items():
        named = {item for item in imports(path) if item.split(".")[0] == "client"}
        guilty = {
            item for item in named if not item.startswith(("client.protocol", "client.systemd"))
        }
        assert guilty <= {"client"}, f"{name} imports {guilty}"


@pytest.mark.parametrize(
    "module",
    [
        "client.protocol",
        "client.codes",
        "client.json_bounds",
        *(name for name in GATEWAY if package_of(name) == "gateway.core"),
    ],
)
def test_the_rules_are_pure(module):
    path = (modules("client") | GATEWAY)[module]
    guilty = {name for name in imports(path) if name.split(".")[0] in WITHOUT_IO}
    assert not guilty, f"{module} is to be pure, and imports {guilty}"


SQL = re.compile(
    r"(ALTER|ATTACH|BEGIN|COMMIT|CREATE|DELETE|DROP|EXPLAIN|INSERT|PRAGMA|ROLLBACK|SELECT|UPDATE|VACUUM"
    r"|WITH)\b(?=\s|;|$)"
)
METHODS_OF_HTTP = {"DELETE"}


def sql_of(package: str) -> list[tuple[Path, str]]:
    """String constants of a package that begin with a keyword of SQL, and where they stand.

    The parts of an f-string are joined; docstrings do not count.
    """
    found = []
    for name, path in GATEWAY.items():
        if name != package and not name.startswith(f"{package}."):
            continue
        tree = tree_of(path)
        prose = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [one for one in node.values if isinstance(one, ast.Constant)]
                prose |= {id(one) for one in parts}
                text = "\0".join(one.value for one in parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                if id(node) in prose:
                    continue
                text = node.value
            else:
                continue
            if SQL.match(text.lstrip()) and text not in METHODS_OF_HTTP:
                found.append((path, text))
    return found


def test_sql_stands_in_the_store_alone():
    for package in LAYER:
        if package.startswith("gateway.") and package != "gateway.store":
            guilty = [f"{path.relative_to(ROOT)}: {text}" for path, text in sql_of(package)]
            assert not guilty, f"{guilty}: SQL belongs in gateway/store"
    assert sql_of("gateway.store")


def test_nothing_has_aiohttp_parse_what_a_stranger_sends():
    """Its parsers take up to 18 s for one header; `gateway.web.http_headers` has ours."""
    parsers = {
        *("charset", "content_type", "cookies", "http_range", "if_match", "if_modified_since"),
        *("if_none_match", "if_range", "if_unmodified_since", "json", "multipart", "post", "text"),
    }
    for name, path in GATEWAY.items():
        guilty = {
            node.attr
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("request", "asked")
            and node.attr in parsers
        }
        assert not guilty, f"{name} reads request.{guilty}"


def test_a_file_is_one_noun():
    for path in [*modules("gateway").values(), *modules("client").values()]:
        lines = len(path.read_text("utf-8").splitlines())
        assert lines <= 450, f"{path.relative_to(ROOT)} has {lines} lines: it may hold two nouns"


TESTED_IN = re.compile(r"Tested in (tests/\S+\.py(?:(?:, | and )tests/\S+\.py)*)\.")


def places_of_its_test(path: Path) -> list[Path]:
    """Where a test of the name of this module may stand."""
    top, *package = path.relative_to(ROOT).parent.parts
    tests = ROOT / "tests"
    if top == "client":
        return [
            tests.joinpath("unit", "client", *package, f"test_{path.stem}.py"),
            tests.joinpath("client", *package, f"test_client_{path.stem}.py"),
        ]
    folders = [tests.joinpath(kind, *package) for kind in ("unit", "gateway")]
    if package[:1] == ["store"]:
        folders.append(tests / "contract")
    return [folder / f"test_{path.stem}.py" for folder in folders]


def named_by(path: Path) -> list[Path]:
    """The tests in the last line of a module's docstring: `Tested in tests/… and tests/….`"""
    prose = ast.get_docstring(tree_of(path)) or ""
    line = TESTED_IN.fullmatch(prose.rpartition("\n")[2])
    return [ROOT / name for name in re.split(", | and ", line[1])] if line else []


def test_a_module_has_a_test_of_its_name_or_says_where_it_is_tested():
    for module, path in (GATEWAY | modules("client")).items():
        if path.stem.startswith("__") or path.parent.name.startswith("migrations"):
            continue
        named = named_by(path)
        for test in named:
            shown = test.relative_to(ROOT)
            assert test.is_file(), f"{module} says that it is tested in {shown}, which is not there"
            assert test.name.startswith("test_"), f"{module} names {shown}, which is not run"
        places = places_of_its_test(path)
        assert named or any(test.is_file() for test in places), (
            f"{module} has no test: make {places[0].relative_to(ROOT)},"
            " or end its docstring with `Tested in tests/….`"
        )


def test_the_commands_of_the_project_can_be_imported():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    for name, target in scripts.items():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), f"{name}: {target}"


def locked(name: str) -> dict[str, str]:
    """What a lock file names: package and version."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / name).read_text("utf-8"), re.MULTILINE))


@pytest.mark.parametrize(
    ("lock", "extras", "groups"),
    [
        ("requirements.lock", ["server", "postgres"], ["dev", "demo"]),
        ("requirements-demo.lock", ["server"], ["demo"]),
    ],
)
def test_the_lock_file_names_all_that_is_needed(lock, extras, groups):
    """`make` installs the lock file alone: a name that is missing there is missing in every clone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    needed = list(project["project"]["dependencies"])
    for extra in extras:
        needed += project["project"]["optional-dependencies"][extra]
    for group in groups:
        needed += [item for item in project["dependency-groups"][group] if isinstance(item, str)]
    missing = {re.match(r"[A-Za-z0-9-]+", item)[0].lower() for item in needed}
    missing -= {*locked(lock), project["project"]["name"]}
    assert not missing, f"run `make lock`: {lock} lacks {missing}"


def test_the_demo_runs_on_the_versions_that_are_tested():
    assert locked("requirements-demo.lock").items() <= locked("requirements.lock").items()


OURS = modules("gateway") | modules("client") | modules("tests")
TESTS = {
    path.relative_to(ROOT / "tests").as_posix(): path
    for name, path in modules("tests").items()
    # Not the programs of `make torture` and `make bench`, which break what they run on purpose.
    if path.name.startswith(("test_", "conftest")) or name.startswith("tests.support.")
}
CHANGE_PRIVATE_PARTS = {
    "cluster/test_cluster.py",
    "gateway/node/test_admission.py",
    "gateway/node/test_dispatcher.py",
}
"""Files that hold a step in the middle of the product's own code, where no public part divides it."""


def names_of_modules(tree: ast.AST) -> dict[str, str]:
    """The names under which a file has imported modules of ours, and the modules."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.partition(".")[0]
                names[alias.asname or name] = name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return {name: module for name, module in names.items() if module in OURS}


def changed(tree: ast.AST) -> list[tuple[ast.expr | None, str]]:
    """What a file changes, and the name of the part, which is "" where it is not written out.

    By `setattr` or `delattr` of anything, `mock.patch`, `mock.patch.object`, or an assignment. None and the
    whole dotted name if it is written as a string.
    """
    found: list[tuple[ast.expr | None, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            function = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if function in ("setattr", "delattr", "patch", "object"):
                texts = [one.value if isinstance(one, ast.Constant) else "" for one in node.args]
                if texts[0]:
                    found.append((None, str(texts[0])))
                elif function != "patch":
                    found.append((node.args[0], "".join(map(str, texts[1:2]))))
        elif isinstance(node, ast.Assign):
            targets = [one for target in node.targets for one in getattr(target, "elts", [target])]
            attributes = [one for one in targets if isinstance(one, ast.Attribute)]
            found += [(one.value, one.attr) for one in attributes]
    return found


def is_of_module(owner: ast.expr | None, part: str, names: dict[str, str]) -> bool:
    """Whether this is a part of a module of ours; `names` are those of the imported ones."""
    if owner is None:
        return part.startswith(("gateway.", "client.", "tests."))
    root, *parts = ast.unparse(owner).split(".")
    return ".".join([names.get(root, "?"), *parts]) in OURS


def is_private(owner: ast.expr | None, part: str) -> bool:
    """Whether this is a private part of something else than the object whose code changes it."""
    name = part.rpartition(".")[2]
    mine = isinstance(owner, ast.Name) and owner.id in ("self", "cls")
    return name.startswith("_") and not name.startswith("__") and not mine


@functools.cache
def changes_of(path: Path) -> tuple[bool, bool]:
    """Whether a test changes a module of ours, and whether it changes private parts of an object."""
    tree = ast.parse(path.read_text("utf-8"))
    names = names_of_modules(tree)
    changes = changed(tree)
    return (
        any(is_of_module(owner, part, names) for owner, part in changes),
        any(is_private(owner, part) for owner, part in changes),
    )


def test_no_test_changes_a_module():
    """A test hands in what differs: a `Tuning`, an argument that has a default, a clock."""
    assert not {name for name, path in TESTS.items() if changes_of(path)[0]}


def test_no_test_changes_private_parts_of_an_object():
    """A test makes faults by a public method of one object, such as `write` of a gateway's engine."""
    assert {name for name, path in TESTS.items() if changes_of(path)[1]} == CHANGE_PRIVATE_PARTS

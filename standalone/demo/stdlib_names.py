"""Prints every documented public function, class and method of this interpreter's standard library.

Runs as a script in an interpreter of its own, because importing six hundred modules has side effects:

    python -I -S -W ignore standalone/demo/stdlib_names.py

With packages as arguments, it prints their names instead (without -S, which hides installed packages).

Writes one JSON object per line:

    {"id": "shutil.rmtree", "module": "shutil", "kind": "function", "docstring": "Recursively delete ..."}
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from types import ModuleType
from typing import Any, NamedTuple

# These modules open windows or a browser, print, are tests, or implement os and os.path for one platform.
_SKIPPED_MODULES = frozenset(
    {
        "antigravity",
        "distutils",
        "ensurepip",
        "genericpath",
        "idlelib",
        "lib2to3",
        "nt",
        "ntpath",
        "posix",
        "posixpath",
        "pydoc_data",
        "test",
        "this",
        "tkinter",
        "turtle",
        "turtledemo",
    }
)
# A hundred and more codecs, one module each, with the same few classes.
_WITHOUT_SUBMODULES = frozenset({"encodings"})


class PublicName(NamedTuple):
    """A name of a function, class or method."""

    name: str
    module: str
    kind: str
    is_defined_here: bool
    target: Any

    @property
    def rank(self) -> tuple[int, bool, bool, str]:
        """The usual name of an object is the one with the lowest rank."""
        is_own_name = getattr(self.target, "__name__", "") == self.name.rpartition(".")[2]
        return self.name.count("."), not is_own_name, not self.is_defined_here, self.name


def main() -> None:
    """Print all entries, sorted by name."""
    output = sys.stdout
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):  # noqa: PTH123
        best: dict[int, PublicName] = {}
        for module in _modules(sys.argv[1:]):
            for entry in _entries(module):
                known = best.setdefault(id(entry.target), entry)
                if entry.rank < known.rank:
                    best[id(entry.target)] = entry
    for entry in sorted(best.values(), key=lambda entry: entry.name):
        record = {
            "id": entry.name,
            "module": entry.module,
            "kind": entry.kind,
            "docstring": entry.target.__doc__,
        }
        output.write(json.dumps(record) + "\n")


def _modules(packages: list[str]) -> Iterator[ModuleType]:
    names = [name for name in sorted(sys.stdlib_module_names) if name not in _SKIPPED_MODULES]
    for name in packages or [*names, "os.path"]:
        yield from _with_submodules(name)


def _with_submodules(name: str) -> Iterator[ModuleType]:
    if name.rpartition(".")[2].startswith("_") or "test" in name.split("."):
        return
    try:
        module = importlib.import_module(name)
    except BaseException:  # noqa: BLE001 -- for another platform, not built in, or raises SystemExit
        return
    yield module
    if name in _WITHOUT_SUBMODULES:
        return
    for found in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{name}."):
        yield from _with_submodules(found.name)


def _entries(module: ModuleType) -> Iterator[PublicName]:
    """The public names of a module, prefixed with the module's name except for builtins."""
    module_name = "os.path" if module is os.path else module.__name__
    prefix = "" if module_name == "builtins" else f"{module_name}."
    exported = getattr(module, "__all__", None)
    for name in list(vars(module)) if exported is None else exported:
        value = _value(module, name)
        is_defined_here = getattr(value, "__module__", None) in {module.__name__, f"_{module.__name__}"}
        if name.startswith("_") or (exported is None and not is_defined_here):
            continue
        if inspect.isclass(value):
            yield from _class_entries(prefix + name, module_name, value, is_defined_here)
        elif inspect.isroutine(value) and _has_docstring(value):
            yield PublicName(prefix + name, module_name, "function", is_defined_here, _function(value))


def _class_entries(name: str, module: str, value: type, is_defined_here: bool) -> Iterator[PublicName]:
    if _has_docstring(value):
        yield PublicName(name, module, "class", is_defined_here, value)
    for method_name, member in vars(value).items():
        if not method_name.startswith("_") and inspect.isroutine(member) and _has_docstring(member):
            yield PublicName(f"{name}.{method_name}", module, "method", is_defined_here, _function(member))


def _value(module: ModuleType, name: str) -> Any:
    try:
        return getattr(module, name, None)
    except Exception:  # noqa: BLE001 -- made on access, of something that is not installed
        return None


def _function(value: Any) -> Any:
    """The function that a bound, class or static method wraps."""
    return getattr(value, "__func__", value)


def _has_docstring(value: Any) -> bool:
    docstring = getattr(value, "__doc__", None)
    return isinstance(docstring, str) and bool(docstring.strip())


if __name__ == "__main__":
    main()

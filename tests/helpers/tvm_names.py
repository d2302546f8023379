"""Which names of TVM's Python a source file uses, and whether a tree of TVM's Python sources has them.

Names are followed through TVM's own imports without importing anything: the tree may be of a TVM that cannot run
here. Attributes of classes and of values are not looked at.
"""

import ast
import functools
from pathlib import Path


class Tree:
    """TVM's Python sources: the folder that holds ``tvm/``."""

    def __init__(self, folder):
        self.folder = Path(folder)

    @functools.cache  # noqa: B019  trees live as long as a test
    def file(self, module):
        path = self.folder / module.replace(".", "/")
        return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.exists()), None)

    @functools.cache  # noqa: B019
    def _nodes(self, module):
        return list(ast.walk(ast.parse(self.file(module).read_text())))

    def _source(self, module, node):
        """The module that a ``from`` import of another one names."""
        if not node.level:
            return node.module
        package = module.split(".")
        drop = node.level - (self.file(module).name == "__init__.py")
        return ".".join(package[: len(package) - drop] + ([node.module] if node.module else []))

    @functools.cache  # noqa: B019
    def find(self, module, name):
        """Return the module that a name of a module is, True if it is something else, None if it is missing."""
        if self.file(f"{module}.{name}"):
            return f"{module}.{name}"
        if not self.file(module):
            return None
        for node in self._nodes(module):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
                return True
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            if isinstance(node, ast.Assign | ast.AnnAssign) and name in {
                part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)
            }:
                return True
            if isinstance(node, ast.ImportFrom):
                source = self._source(module, node)
                for alias in node.names:
                    if alias.name == "*" and source != module:
                        if found := self.find(source, name):
                            return found
                    elif name == (alias.asname or alias.name):
                        known = source.split(".")[0] == "tvm"
                        return self.find(source, alias.name) if known else True
            if isinstance(node, ast.Import) and any(name == (a.asname or a.name) for a in node.names):
                return True
        return None


def _chain(node):
    if isinstance(node, ast.Name):
        return [node.id]
    parts = _chain(node.value) if isinstance(node, ast.Attribute) else None
    return [*parts, node.attr] if parts else None


def used(file, tree):
    """Return the names of TVM that a file uses, ``(module, name)``, as far as ``tree`` has the modules."""
    nodes, names, modules = list(ast.walk(ast.parse(Path(file).read_text()))), set(), {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tvm":
            for alias in node.names:
                names.add((node.module, alias.name))
                modules[alias.asname or alias.name] = tree.find(node.module, alias.name)
        elif isinstance(node, ast.Import):
            modules |= {
                (a.asname or "tvm"): (a.name if a.asname else "tvm") for a in node.names if "tvm" in a.name
            }
    for chain in filter(None, map(_chain, nodes)):
        module = modules.get(chain[0])
        for name in chain[1:]:
            if not isinstance(module, str):
                break
            names.add((module, name))
            module = tree.find(module, name)
    return names


def missing(files, tree):
    """Return the names that files use and a tree does not have, each as ``file: module.name``."""
    return sorted(
        f"{Path(file).name}: {module}.{name}"
        for file in files
        for module, name in used(file, tree)
        if tree.find(module, name) is None
    )

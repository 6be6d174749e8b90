"""Volumes of a pod, as folders, laid out as the kubelet does: the files are links through ..data,
so that a new content is there all at once.
"""

import base64
import itertools
import os
import shutil

from fields import Unknown

DEFAULT_MODE = 0o644


def content_of(objects, kind, namespace, name, optional=False):
    """A ConfigMap's or Secret's files, by name."""
    found = objects.get((kind, namespace, name))
    if found is None:
        if optional:
            return {}
        raise Unknown(f"{kind} {name}: there is none; expected one in the chart or made before")
    if kind == "ConfigMap":
        return {key: text.encode() for key, text in found.get("data", {}).items()}
    files = {key: base64.b64decode(text) for key, text in found.get("data", {}).items()}
    return files | {key: text.encode() for key, text in found.get("stringData", {}).items()}


class Volume:
    """A folder for a pod's volume. `fs_group` owns its files."""

    def __init__(self, fields, folder, namespace, fs_group):
        self.namespace, self.fs_group = namespace, fs_group
        self.parts = []  # (kind, object's name, items, mode, optional)
        self.versions = itertools.count()
        self.now = None
        with fields:
            self.name = fields.need("name")
            self.path = os.path.join(folder, self.name)
            kinds = set(fields.value) - {"name"}
            if kinds == {"configMap"}:
                self.part("ConfigMap", fields.fields("configMap"), "name")
            elif kinds == {"secret"}:
                self.part("Secret", fields.fields("secret"), "secretName")
            elif kinds == {"projected"}:
                with fields.fields("projected") as projected:
                    mode = projected.get("defaultMode", DEFAULT_MODE)
                    for source in projected.each("sources"):
                        with source:
                            for kind, key in (("ConfigMap", "configMap"), ("Secret", "secret")):
                                if source.get(key):
                                    self.part(kind, source.fields(key), "name", mode)
            elif kinds == {"emptyDir"}:
                with fields.fields("emptyDir") as empty:
                    empty.only("medium", "", "Memory")
                    empty.no_effect("sizeLimit")
            elif kinds == {"hostPath"}:
                with fields.fields("hostPath") as host:
                    host.only("type", "Directory")
                    self.path = host.need("path")
                return
            else:
                raise Unknown(f"{fields.path}: {sorted(kinds)}; expected a known kind of volume")
        os.makedirs(self.path)
        os.chown(self.path, 0, fs_group)
        os.chmod(self.path, 0o2775 if not self.parts else 0o755)

    def part(self, kind, fields, name, mode=DEFAULT_MODE):
        with fields:
            items = {}
            for item in fields.each("items"):
                with item:
                    items[item.need("key")] = (item.need("path"), item.get("mode"))
            self.parts.append(
                (
                    kind,
                    fields.need(name),
                    items,
                    fields.get("defaultMode", mode),
                    fields.get("optional", False),
                )
            )

    def files(self, objects):
        """(content, mode) by name, from these objects."""
        files = {}
        for kind, name, items, mode, optional in self.parts:
            content = content_of(objects, kind, self.namespace, name, optional)
            chosen = items or {key: (key, None) for key in content}
            for key, (path, own) in chosen.items():
                files[path] = (content[key], own or mode)
        return files

    def update(self, objects):
        """Brings the files up to date; does nothing where they are."""
        files = self.files(objects)
        if not self.parts or files == self.now:
            return
        version = f"..{next(self.versions)}"
        os.mkdir(os.path.join(self.path, version))
        for name, (content, mode) in files.items():
            path = os.path.join(self.path, version, name)
            with open(path, "wb") as file:
                file.write(content)
            os.chown(path, 0, self.fs_group)
            os.chmod(path, mode | 0o040 if self.fs_group else mode)
            self.link(os.path.join("..data", name), name)
        data = os.path.join(self.path, "..data")
        before = os.readlink(data) if os.path.islink(data) else None
        self.link(version, "..data")
        for name in set(self.now or {}) - set(files):
            os.unlink(os.path.join(self.path, name))
        if before is not None:
            shutil.rmtree(os.path.join(self.path, before))
        self.now = files

    def link(self, target, name):
        """Makes or replaces a link in one step."""
        path = os.path.join(self.path, name)
        os.symlink(target, path + ".new")
        os.rename(path + ".new", path)

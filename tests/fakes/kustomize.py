"""The part of kustomize that deploy/kubernetes uses, for machines without it; the tests compare both where it is there.

Resources, strategic merge patches, images, namespace and generated config maps. The hash at the end of a config map's
name is written as HASH.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]
# Lists that strategic merge joins by a key instead of replacing them.
MERGE_KEYS = {
    "initContainers": "name",
    "containers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
}
CLUSTER_WIDE = {"Namespace"}


def render(folder: Path) -> list[Document]:
    """Every object of the kustomization in ``folder``."""
    documents, maps = _build(folder)
    for name, (data, hashed, namespace) in maps.items():
        full = f"{name}-HASH" if hashed else name
        metadata = {"name": full} | ({"namespace": namespace} if namespace else {})
        documents = [_renamed(document, name, full) for document in documents]
        documents.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    return documents


def _build(folder: Path) -> tuple[list[Document], dict[str, tuple[dict[str, str], bool, str]]]:
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    documents: list[Document] = []
    maps: dict[str, tuple[dict[str, str], bool, str]] = {}
    for resource in kustomization.get("resources", []):
        path = folder / resource
        if path.is_dir():
            inner, inner_maps = _build(path)
            documents += inner
            maps |= inner_maps
        else:
            documents += [document for document in yaml.safe_load_all(path.read_text()) if document]
    hashed = not kustomization.get("generatorOptions", {}).get("disableNameSuffixHash", False)
    for generator in kustomization.get("configMapGenerator", []):
        before = maps.get(generator["name"], ({}, True, ""))[0] if generator.get("behavior") == "merge" else {}
        maps[generator["name"]] = (before | dict(_data(folder, generator)), hashed, "")
    for patch in kustomization.get("patches", []):
        for change in yaml.safe_load_all((folder / patch["path"]).read_text()):
            documents = [merged(one, change) if _same(one, change) else one for one in documents]
    for image in kustomization.get("images", []):
        documents = [_with_image(document, image) for document in documents]
    if namespace := kustomization.get("namespace"):
        for document in documents:
            if document["kind"] not in CLUSTER_WIDE:
                document["metadata"]["namespace"] = namespace
        maps = {name: (data, with_hash, namespace) for name, (data, with_hash, _) in maps.items()}
    return documents, maps


def _data(folder: Path, generator: Document) -> Iterator[tuple[str, str]]:
    lines = list(generator.get("literals", []))
    for env in generator.get("envs", []):
        lines += (folder / env).read_text().splitlines()
    for line in lines:
        if line.strip() and not line.startswith("#"):
            name, _, value = line.partition("=")
            yield name, value
    for file in generator.get("files", []):
        yield file, (folder / file).read_text()


def merged(base: Any, change: Any, field: str = "") -> Any:
    """``change`` laid over ``base``: mappings by key, the lists of MERGE_KEYS by theirs, everything else replaced."""
    if isinstance(base, dict) and isinstance(change, dict):
        return {**base, **{key: merged(base.get(key), value, key) for key, value in change.items()}}
    if isinstance(base, list) and field in MERGE_KEYS:
        key = MERGE_KEYS[field]
        changes = {entry[key]: entry for entry in change}
        joined = [merged(entry, changes.pop(entry[key])) if entry[key] in changes else entry for entry in base]
        return joined + list(changes.values())
    return copy.deepcopy(change)


def _same(one: Document, other: Document) -> bool:
    return (one["kind"], one["metadata"]["name"]) == (other["kind"], other["metadata"]["name"])


def _with_image(node: Any, image: Document) -> Any:
    if isinstance(node, dict):
        changed = {key: _with_image(value, image) for key, value in node.items()}
        if node.get("image") == image["name"]:
            changed["image"] = f"{image['newName']}:{image['newTag']}"
        return changed
    return [_with_image(entry, image) for entry in node] if isinstance(node, list) else node


def _renamed(node: Any, name: str, full: str) -> Any:
    """References to a generated config map, which stand below ``configMapRef`` and ``configMap``."""
    if isinstance(node, dict):
        return {
            key: {**value, "name": full}
            if key in ("configMapRef", "configMap") and value.get("name") == name
            else _renamed(value, name, full)
            for key, value in node.items()
        }
    return [_renamed(entry, name, full) for entry in node] if isinstance(node, list) else node

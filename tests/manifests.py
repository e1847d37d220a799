"""The manifests that daemonset/ holds, read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

DAEMONSET = Path(__file__).resolve().parents[1] / "daemonset"
# One folder for each control plane that agents may have.
BASE, ISTIOD, MESH_FILE = "base", "istiod", "mesh-file"
SETS = (BASE, ISTIOD, MESH_FILE)
Object = dict[str, Any]


def text(folder: str) -> str:
    """The manifest of one of the folders, as it stands there."""
    return (DAEMONSET / folder / "nodeproxy.yaml").read_text(encoding="utf-8")


def documents(folder: str) -> list[Object]:
    """All objects of one of the folders."""
    return [item for item in yaml.safe_load_all(text(folder)) if item]


def only(items: list[Object], kind: str, name: str = "") -> Object:
    """The object of that kind (and name) in `items`."""
    (found,) = [item for item in items if item["kind"] == kind and name in ("", item["metadata"]["name"])]
    return found


def controllers_rights() -> list[Object]:
    """The controller's namespace, account, roles and bindings."""
    name = "nodeproxy-controller"
    kinds = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}
    items = documents(BASE)
    return [only(items, "Namespace"), *(item for item in items if item["kind"] in kinds and item["metadata"]["name"] == name)]

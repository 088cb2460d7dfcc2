# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The XML that COS takes and gives. Every answer is small: a listing holds at most 1000 entries."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any

from lab.cos.errors import CosError

HEAD = b"<?xml version='1.0' encoding='utf-8' ?>\n"
Tree = Mapping[str, Any]


def document(root: str, content: Tree) -> bytes:
    """Serialise nested mappings; a list repeats its element, None leaves it out."""
    body: bytes = ElementTree.tostring(_element(root, content), encoding="unicode").encode()
    return HEAD + body


def _element(name: str, value: Any) -> ElementTree.Element:
    element = ElementTree.Element(name)
    if isinstance(value, Mapping):
        for key, item in value.items():
            for one in item if isinstance(item, list) else [item]:
                if one is not None:
                    element.append(_element(key, one))
    else:
        element.text = str(value)
    return element


def parse(body: bytes, root: str) -> ElementTree.Element:
    """The root element of ``body``, which must be a ``root``. Raises CosError (MalformedXML)."""
    if b"<!" in body:
        raise CosError("MalformedXML", "The XML has a document type or an entity.")
    try:
        element = ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise CosError("MalformedXML", "The XML you provided was not well formed.") from error
    if element.tag != root:
        raise CosError("MalformedXML", f"The XML you provided has no {root}.")
    return element


def text(element: ElementTree.Element, name: str) -> str:
    """The text of the child ``name``. Raises CosError when there is none."""
    found = element.findtext(name)
    if found is None:
        raise CosError("MalformedXML", f"The XML you provided has no {name} in {element.tag}.")
    return found

# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's command line wherever boot loaders keep it: root=, resume=, consoles, NICs bound to an address."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .finding import Finding
from .names import Names
from .situation import Situation
from .tree import Tree

CONCERN = "kernel_command_line"

DEFAULTS = "/etc/default/grub"
# Read after it: what one of these assigns replaces what the file above says.
DROP_INS = "/etc/default/grub.d/*.cfg"
# Where the menus of GRUB 2 lie; those below an EFI directory are often only wrappers.
MENUS = (
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/boot/efi/EFI/*/grub.cfg",
    "/boot/grub/menu.lst",
    "/boot/grub/grub.conf",
)
# The Boot Loader Specification's entries.
ENTRIES = ("/boot/loader/entries/*.conf", "/boot/efi/loader/entries/*.conf", "/efi/loader/entries/*.conf")
ENVIRONMENTS = ("/boot/grub2/grubenv", "/boot/grub/grubenv", "/boot/efi/EFI/*/grubenv")
PLAIN = ("/etc/kernel/cmdline",)
SYSLINUX = ("/boot/extlinux/extlinux.conf", "/boot/extlinux.conf", "/extlinux.conf")

# grub_envblk: the block keeps its size, the rest of it is filled with this sign (GRUB's include/grub/lib/envblk.h).
_ENVIRONMENT_SIZE = 1024
_VARIABLE = re.compile(r"^(GRUB_CMDLINE_LINUX(?:_DEFAULT)?=)([\"']?)(.*)\2[ \t]*$", re.MULTILINE)
_NO_UUID = re.compile(r"^(GRUB_DISABLE_LINUX_(?:PART)?UUID=)([\"']?)true\2[ \t]*$", re.MULTILINE)
_MENU = re.compile(r"^([ \t]*(?:linux|linux16|linuxefi|kernel|module|module2|multiboot2?)[ \t]+\S+)([ \t].*)?$", re.M)
# What blscfg falls back to when the environment block has no kernelopts.
_FALLBACK = re.compile(r"^([ \t]*set kernelopts=\")([^\"\n]*)(?=\")", re.MULTILINE)
_OPTIONS = re.compile(r"^([ \t]*options[ \t]+)(.*)$", re.MULTILINE)
_APPEND = re.compile(r"^([ \t]*append[ \t]+)(.*)$", re.MULTILINE | re.IGNORECASE)
_KERNELOPTS = re.compile(r"^(kernelopts=)(.*)$", re.MULTILINE)
# Consoles that only exist on another platform: Xen's, and s390's would not be here.
_FOREIGN = re.compile(r"(?:console=(?:hvc|xvc)\d+\S*|earlyprintk=xen\S*|xencons=\S+|ifname=\S+:[0-9A-Fa-f:]{17})\Z")


@dataclass(frozen=True)
class Wanted:
    """What each command line must have: consoles, which are added in this order (the last is /dev/console), words."""

    consoles: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


def adapt(tree: Tree, situation: Situation, words: Sequence[str] = ()) -> list[Finding]:
    wanted = Wanted(situation.options.consoles, tuple(words))
    names = situation.names
    findings: list[Finding] = []
    text = tree.read(DEFAULTS)
    if text is not None:
        tree.write(CONCERN, DEFAULTS, adapt_defaults(text, names, wanted, findings))
    for path in tree.glob(DROP_INS):
        tree.write(CONCERN, path, _rewrite_defaults(tree.read(path) or "", names, wanted, findings))
    for patterns, rewrite in (
        (MENUS, adapt_menu),
        (ENTRIES, adapt_entry),
        (SYSLINUX, adapt_syslinux),
        (ENVIRONMENTS, adapt_environment),
        (PLAIN, adapt_plain),
    ):
        for path in _files(tree, patterns):
            before = tree.read(path) or ""
            after = rewrite(before, names, wanted, findings)
            if after != before:
                tree.write(CONCERN, path, after)
    return list({(each.code, each.subject): each for each in findings}.values())


def adapt_words(line: str, names: Names, wanted: Wanted, findings: list[Finding]) -> str:
    """One command line for the target. Words that are fine stay as they are, spaces included."""
    out: list[str] = []
    for part in re.split(r"(\s+)", line):
        word = _adapt_word(part, names, findings)
        if word is not None:
            out.append(word)
        elif out and out[-1].isspace():
            out.pop()
    text = "".join(out)
    present = text.split()
    missing = [word for word in wanted.words if word not in present]
    there = {word.partition(",")[0] for word in present}
    missing += [f"console={each}" for each in wanted.consoles if f"console={each.partition(',')[0]}" not in there]
    if not missing:
        return text
    tail = text[len(text.rstrip()) :]
    return " ".join(filter(None, [text.rstrip(), *missing])) + tail


def _adapt_word(word: str, names: Names, findings: list[Finding]) -> str | None:
    """The word for the target; None when it has no place there."""
    if _FOREIGN.match(word):
        return None
    key, equals, value = word.partition("=")
    if not equals or key not in ("root", "resume", "real_root"):
        return word
    if value.startswith(("/dev/nfs", "/dev/ram", "nfs", "$", "live:")):
        return word
    meaning = names.meaning(value)
    if meaning.absent:
        if key == "resume":
            return None
        findings.append(
            Finding(
                "ROOT_NOT_COPIED",
                "blocker",
                f"kernel command line: {word}",
                f"The boot loader names {value} as the root, which is on none of the copied disks",
                "Map the disk that holds the root filesystem and replicate again",
            )
        )
        return word
    if meaning.stable or meaning.volume is None:
        return word
    name = names.stable_name(meaning.volume)
    return f"{key}={name}" if name else word


def adapt_defaults(text: str, names: Names, wanted: Wanted, findings: list[Finding]) -> str:
    """/etc/default/grub: what grub-mkconfig will write the next time."""
    has_main = re.search(r"^GRUB_CMDLINE_LINUX=", text, re.MULTILINE) is not None
    if not has_main and (wanted.consoles or wanted.words):
        text = text + ("" if text.endswith("\n") or not text else "\n") + 'GRUB_CMDLINE_LINUX=""\n'
    return _rewrite_defaults(text, names, wanted, findings)


def _rewrite_defaults(text: str, names: Names, wanted: Wanted, findings: list[Finding]) -> str:
    def rewrite(found: re.Match[str]) -> str:
        mine = wanted if found[1] == "GRUB_CMDLINE_LINUX=" else Wanted()
        inner = adapt_words(found[3], names, mine, findings)
        quote = found[2] or ('"' if re.search(r"\s", inner) else "")
        return f"{found[1]}{quote}{inner}{quote}" if inner != found[3] else found[0]

    text = _VARIABLE.sub(rewrite, text)
    return _NO_UUID.sub(r"\1\2false\2", text)


def adapt_menu(text: str, names: Names, wanted: Wanted, findings: list[Finding]) -> str:
    """grub.cfg or menu.lst: the lines that load a kernel or, under Xen, name its arguments."""

    def rewrite(found: re.Match[str]) -> str:
        words = found[2] or ""
        return found[1] + adapt_words(words, names, wanted if "root=" in words else Wanted(), findings)

    return _sub_words(_FALLBACK, _MENU.sub(rewrite, text), names, wanted, findings)


def adapt_entry(text: str, names: Names, wanted: Wanted, findings: list[Finding]) -> str:
    """An entry of the Boot Loader Specification."""
    return _sub_words(_OPTIONS, text, names, wanted, findings)


def adapt_syslinux(text: str, names: Names, wanted: Wanted, findings: list[Finding]) -> str:
    """extlinux.conf."""
    return _sub_words(_APPEND, text, names, wanted, findings)


def adapt_plain(text: str, names: Names, wanted: Wanted, findings: list[Finding]) -> str:
    """A file that is one command line."""
    body = text.rstrip("\n")
    return adapt_words(body, names, wanted if "root=" in body else Wanted(), findings) + text[len(body) :]


def adapt_environment(text: str, names: Names, wanted: Wanted, findings: list[Finding]) -> str:
    """GRUB's environment block with kernelopts in it; its size does not change."""
    if _KERNELOPTS.search(text) is None:
        return text
    body = _sub_words(_KERNELOPTS, text.rstrip("#"), names, wanted, findings)
    if len(body.encode("utf-8", "surrogateescape")) > _ENVIRONMENT_SIZE:
        findings.append(
            Finding(
                "GRUBENV_FULL",
                "warning",
                "grubenv",
                "The kernel's command line does not fit into GRUB's environment block with what the target needs",
                "Shorten kernelopts on the source (grub2-editenv - set kernelopts=...) and replicate again",
            )
        )
        return text
    return body + "#" * (_ENVIRONMENT_SIZE - len(body.encode("utf-8", "surrogateescape")))


def _sub_words(pattern: re.Pattern[str], text: str, names: Names, wanted: Wanted, findings: list[Finding]) -> str:
    def rewrite(found: re.Match[str]) -> str:
        mine = wanted if "root=" in found[2] else Wanted()
        return found[1] + adapt_words(found[2], names, mine, findings)

    return pattern.sub(rewrite, text)


def present_words(tree: Tree) -> set[str]:
    """Every word that any boot loader of the copy gives to a kernel."""
    found: set[str] = set()
    for path in _files(tree, (DEFAULTS, DROP_INS, *MENUS, *ENTRIES, *SYSLINUX, *ENVIRONMENTS, *PLAIN)):
        found.update(re.split(r"[\s\"']+", tree.read(path) or ""))
    return found


def _files(tree: Tree, patterns: Sequence[str]) -> list[str]:
    """The files that match, each real file once."""
    found = {tree.real(path): None for pattern in patterns for path in tree.glob(pattern) if tree.is_file(path)}
    return list(found)

# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One image by its name: imported from an object, waited for, deleted.

ImportImage takes no ClientToken, so the name is what tells that an image is there already; a run continues what an
interrupted one began. What the image was made of is in its description.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..findings import Refusal, refuse
from ..import_failures import failed_import
from .errors import CloudError
from .images import Image, Images, ImportRequest, Supported
from .waiter import DummyWaiter, Waiter

# Values of ImageState in the China site's model (SDK 3.1.195); the international one lists none.
WORKING = ("CREATING", "IMPORTING", "SYNCING")
FAILED = ("IMPORTFAILED", "CREATEFAILED")
READY = "NORMAL"
# Seconds after which an import whose answer was lost, or had no id, and of which nothing shows has not begun.
UNSEEN_PATIENCE = 60.0
LONGEST_NAME = 60
LONGEST_DESCRIPTION = 256
OTHER = "Other Linux"

Tell = Callable[[str, float], None]


@dataclass(frozen=True)
class Outcome:
    """``changed`` says whether this run, or one that it continued, imported or deleted the image."""

    image: Image | None
    changed: bool
    history: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Context:
    """What explains a failure: the notice that the user read, and what is known of the image file."""

    notice: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def choose_system(
    supported: Sequence[Supported], *, os_type: str, os_version: str, architecture: str, fallback: bool
) -> tuple[str, str]:
    """OsType and OsVersion for ImportImage as the cloud writes them, or with *fallback* those of ``Other Linux``.

    Raises :class:`Refusal` for what the cloud does not list.
    """
    by_name = {entry.name.lower(): entry for entry in supported}
    problem = ""
    for wanted, version in ((os_type, os_version), *(((OTHER, ""),) if fallback else ())):
        entry = by_name.get(wanted.lower())
        if entry is None:
            problem = problem or f"The cloud does not import {wanted or 'an unknown system'}."
        elif architecture not in entry.architectures:
            problem = problem or f"The cloud does not import {entry.name} for {architecture}."
        else:
            listed = version if version in entry.versions else version.split(".")[0]
            if not version and len(entry.versions) == 1:
                listed = entry.versions[0]
            if listed in entry.versions:
                return entry.name, listed
            problem = problem or f"The cloud does not import version {version or 'unknown'} of {entry.name}."
    raise _unsupported(problem, supported)


def _unsupported(cause: str, supported: Sequence[Supported]) -> Refusal:
    return refuse(
        "IMAGE_OS_UNSUPPORTED",
        "image",
        cause,
        "Set os_type, os_version and architecture to what the evidence lists.",
        supported={entry.name: list(entry.versions) for entry in supported},
    )


def check_name(name: str) -> None:
    """Refuse a name that the API would refuse."""
    if not 1 <= len(name) <= LONGEST_NAME:
        raise refuse(
            "IMAGE_NAME_INVALID",
            name[:LONGEST_NAME],
            f"The image name has {len(name)} characters.",
            f"Use 1 to {LONGEST_NAME}.",
        )


class Importer:
    """Takes the image of one name to where it is wanted."""

    def __init__(
        self,
        images: Images,
        name: str,
        waiter: Waiter | DummyWaiter,
        *,
        context: Context | None = None,
        tell: Tell = lambda state, waited: None,
    ) -> None:
        check_name(name)
        self._images = images
        self._name = name
        self._waiter = waiter
        self._context = context or Context()
        self._tell = tell
        self._history: list[tuple[float, str]] = []

    def present(self, make_request: Callable[[], ImportRequest], *, content: str | None, force: bool) -> Outcome:
        """Have the image, made of *content* (None when that is not known).

        *make_request* is asked when an import has to begin, and for each one anew: a signed URL serves once. Raises
        :class:`Refusal`.
        """
        image = self._look()
        changed = image is not None and image.state in WORKING
        if image is not None and image.state in FAILED and not self._context.notice:
            # Its name is taken until it is gone; what made it fail has had its chance to be mended.
            self._images.delete(image.image_id)
            image = None
        if image is not None and image.state not in FAILED:
            self._check_content(image, content)
        if image is None:
            image, changed = self._begin(make_request()), True
        while image.state in WORKING:
            if not self._waiter.pause():
                if not self._waiter.patient:
                    break
                raise self._out_of_time(image)
            image = self._look() or self._gone(image)
        if image.state in FAILED:
            raise Refusal(
                failed_import(
                    self._name,
                    notice=self._context.notice,
                    facts=self._context.facts,
                    force=force,
                    evidence=self._evidence(image),
                )
            )
        if image.state not in (READY, *WORKING):
            raise refuse(
                "IMAGE_STATE_UNKNOWN",
                self._name,
                f"The image {image.image_id} is in state {image.state}, which this version does not know.",
                "Look at it in the console; when it is NORMAL, run again.",
                **self._evidence(image),
            )
        return Outcome(image, changed, tuple(self._history))

    def absent(self, *, check_mode: bool = False) -> Outcome:
        """Have no image of the name."""
        image = self._look()
        if image is None or check_mode:
            return Outcome(image, image is not None)
        while image.state in WORKING:
            if not self._waiter.pause():
                raise self._out_of_time(image)
            seen = self._look()
            if seen is None:
                return Outcome(None, False, tuple(self._history))
            image = seen
        self._images.delete(image.image_id)
        return Outcome(image, True, tuple(self._history))

    def _begin(self, request: ImportRequest) -> Image:
        image_id, lost = self._order(request)
        self._waiter.hasten()
        if image_id:
            return Image(image_id, self._name, "IMPORTING")
        begun = self._waiter.waited
        # The international site tells no id, and a lost answer tells nothing: the name does.
        while True:
            image = self._look()
            if image is not None:
                return image
            if not self._waiter.patient:
                if lost:
                    raise lost
                return Image("", self._name, "IMPORTING")
            if self._waiter.waited - begun > UNSEEN_PATIENCE or not self._waiter.pause():
                raise lost or self._out_of_time(Image("", self._name, "not listed"))

    def _order(self, request: ImportRequest) -> tuple[str | None, CloudError | None]:
        """The image's id where the site tells one, and what became of an answer that was lost on its way."""
        try:
            return self._images.start_import(request), None
        except CloudError as refusal:
            if refusal.is_network:
                return None, refusal
            if refusal.code == "UnknownParameter" and request.data_urls:
                raise _no_data_disks(refusal, request) from None
            raise

    def _look(self) -> Image | None:
        image = self._images.named(self._name)
        state = image.state if image else "absent"
        if not self._history or self._history[-1][1] != state:
            self._history.append((round(self._waiter.waited, 1), state))
        self._tell(state, self._waiter.waited)
        return image

    def _gone(self, image: Image) -> Image:
        raise refuse(
            "IMAGE_GONE",
            self._name,
            f"The image {image.image_id} vanished while it was being imported.",
            "Somebody deleted it, or the cloud gave it up: run again.",
            **self._evidence(image),
        )

    def _check_content(self, image: Image, content: str | None) -> None:
        if content is not None and image.description and content not in image.description:
            raise refuse(
                "IMAGE_NAME_TAKEN",
                self._name,
                f"The image {image.image_id} has this name and was made of something else: {image.description!r}.",
                "Choose another image name, or delete that image with state absent.",
                image_id=image.image_id,
                wanted=content,
            )

    def _evidence(self, image: Image) -> dict[str, Any]:
        return {
            "image_id": image.image_id,
            "image_name": self._name,
            "state": image.state,
            "waited_seconds": round(self._waiter.waited, 1),
            "history": [list(entry) for entry in self._history],
        }

    def _out_of_time(self, image: Image) -> Refusal:
        return refuse(
            "IMAGE_IMPORT_TIMEOUT",
            self._name,
            f"After {self._waiter.waited:.0f} s the image {image.image_id or self._name} is {image.state}.",
            "Run again to go on waiting (nothing is imported twice), or raise wait_timeout. If it does not end, open a"
            " ticket with the vendor's support and attach the evidence file.",
            **self._evidence(image),
        )


def _no_data_disks(error: CloudError, request: ImportRequest) -> Refusal:
    """What an unknown parameter means here; the API's own words are its evidence."""
    return refuse(
        "IMAGE_DATA_DISKS_UNSUPPORTED",
        request.name,
        "This site's ImportImage takes no data disks.",
        "Write them onto attached disks from a landing instead (fleetlift_offline_data_disks: landing).",
        api_code=error.code,
        api_message=error.message,
        request_id=error.request_id,
    )

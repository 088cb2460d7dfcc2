# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one place that talks to the cloud's API, through the vendor's SDK."""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..findings import refuse
from .errors import MALFORMED, CloudError
from .request_rate import Unpaced

try:
    from tencentcloud.common.common_client import CommonClient
    from tencentcloud.common.credential import Credential
    from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException
    from tencentcloud.common.profile.client_profile import ClientProfile
    from tencentcloud.common.profile.http_profile import HttpProfile
except ImportError:
    SDK_IMPORT_ERROR: str | None = traceback.format_exc()
else:
    SDK_IMPORT_ERROR = None

SDK_PACKAGE = "tencentcloud-sdk-python-common"

VERSIONS = {"cvm": "2017-03-12", "cbs": "2017-03-12", "vpc": "2017-03-12"}

# Seconds before each further attempt; several hosts share one account's rate, hence the spread of random_wait.
RETRY_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)

UNPACED = Unpaced()

# Seconds in which a server that is there accepts a connection; its answer may take longer.
CONNECT_TIMEOUT = 10


@dataclass(frozen=True)
class Access:
    """Who asks, where, and how long an answer may take. ``endpoint`` is a URL, ``endpoint_domain`` a root domain."""

    secret_id: str
    secret_key: str
    region: str
    token: str | None = None
    endpoint: str | None = None
    endpoint_domain: str | None = None
    api_timeout: int = 60

    def __post_init__(self) -> None:
        for name in ("secret_id", "secret_key", "region"):
            if not getattr(self, name):
                variable = f"TENCENTCLOUD_{name.upper()}"
                raise refuse("CLOUD_ACCESS_MISSING", "cloud", f"No {name} is set.", f"Set {name} or {variable}.")
        if self.endpoint:
            url = urlsplit(self.endpoint)
            if url.scheme not in ("http", "https") or not url.hostname or url.path not in ("", "/"):
                raise refuse(
                    "CLOUD_ENDPOINT_INVALID",
                    "cloud",
                    f"endpoint {self.endpoint!r} is not the URL of a server.",
                    "Set it to a form like http://10.98.0.10:80, or leave it out for the vendor's own hosts.",
                )

    def __repr__(self) -> str:
        return f"Access(region={self.region!r}, endpoint={self.endpoint!r})"


class CloudClient:
    """Calls actions of the API, retries what may be retried, and turns every failure into a :class:`CloudError`.

    Each request waits for its turn in *pace*.
    """

    def __init__(
        self,
        access: Access,
        *,
        pace: Unpaced = UNPACED,
        sleep: Callable[[float], None] = time.sleep,
        random_wait: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._access = access
        self._pace = pace
        self._sleep = sleep
        self._random_wait = random_wait
        self._clients: dict[str, Any] = {}
        self.request_ids: list[str] = []

    def call(
        self,
        service: str,
        action: str,
        params: Mapping[str, Any],
        *,
        expect: Sequence[str] = (),
        idempotent: bool = True,
    ) -> dict[str, Any]:
        """The fields inside ``Response`` of *action*.

        *expect* names fields that the action always returns: one that is absent or null is an error, because the SDK
        takes an error with an unusual Content-Type for a success. An action that is not *idempotent* is repeated only
        after a refusal for its rate, never when its answer was lost. Raises :class:`CloudError`.
        """
        for wait in RETRY_WAITS:
            try:
                return self._call_once(service, action, params, expect)
            except CloudError as error:
                if not (error.is_throttle or (error.is_network and idempotent)):
                    raise
                if error.is_throttle:
                    self._pace.refused(service, action)
            self._sleep(self._random_wait(wait / 2, wait))
        return self._call_once(service, action, params, expect)

    def _call_once(self, service: str, action: str, params: Mapping[str, Any], expect: Sequence[str]) -> dict[str, Any]:
        self._pace.wait(service, action)
        with _sdk_errors(action):
            response = self._client(service).call_json(action, dict(params))["Response"]
        request_id = str(response.get("RequestId") or "")
        if request_id:
            self.request_ids.append(request_id)
        if response.get("Error"):
            error = response["Error"]
            raise CloudError(str(error.get("Code")), str(error.get("Message")), request_id, action)
        missing = [field for field in (*expect, "RequestId") if response.get(field) is None]
        if missing:
            raise CloudError(MALFORMED, f"no {', '.join(missing)} in the answer", request_id, action)
        return dict(response)

    def _client(self, service: str) -> Any:
        if service not in self._clients:
            access = self._access
            # The SDK hands this to requests, which takes the two apart.
            timeouts = (min(CONNECT_TIMEOUT, access.api_timeout), access.api_timeout)
            http = HttpProfile(reqTimeout=timeouts, rootDomain=access.endpoint_domain)
            if access.endpoint:
                url = urlsplit(access.endpoint)
                http = HttpProfile(protocol=url.scheme, endpoint=url.netloc, reqTimeout=timeouts)
            self._clients[service] = CommonClient(
                service,
                VERSIONS[service],
                Credential(access.secret_id, access.secret_key, access.token),
                access.region,
                ClientProfile(httpProfile=http, language="en-US", request_client="fleetlift"),
            )
        return self._clients[service]


@contextmanager
def _sdk_errors(action: str) -> Iterator[None]:
    """Turns what the SDK raises inside into :class:`CloudError`; it lets a body it cannot read out as bare errors."""
    try:
        yield
    except TencentCloudSDKException as error:
        message = error.get_message()
        text = message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message)
        raise CloudError(str(error.get_code()), text[:500], str(error.get_request_id() or ""), action) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CloudError(MALFORMED, f"{type(error).__name__}: {error}", "", action) from error

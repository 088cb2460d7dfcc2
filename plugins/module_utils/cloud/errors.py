# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the cloud's error codes mean for a migration, and what to do about each."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..findings import Finding, Refusal

# The SDK's own codes for a request that got no usable answer (tencentcloud.common.http.request, abstract_client).
NETWORK_CODES = ("ClientNetworkError", "ServerNetworkError")
# A body that is no answer of this API; the code is this collection's own.
MALFORMED = "ResponseMalformed"

# An object's repr in the text of an exception says nothing to a reader.
_OBJECT = re.compile(r"<[^<>]* at 0x[0-9a-f]+>[,:]? ?")


@dataclass(frozen=True)
class Meaning:
    """The collection's code, cause and next step for a family of API codes."""

    code: str
    cause: str
    action: str


_OTHER = Meaning("CLOUD_REQUEST_FAILED", "The cloud refused the request.", "Follow the API's message in the evidence.")

# Matched by the longest prefix that ends at a dot or the whole code.
# Codes: the common and per-action error lists of the vendor's API reference.
_MEANINGS = {
    "AuthFailure": Meaning(
        "CLOUD_AUTH_FAILED",
        "The cloud does not accept the API key.",
        "Check secret_id, secret_key and, for a temporary key, token.",
    ),
    "AuthFailure.SecretIdNotFound": Meaning(
        "CLOUD_AUTH_FAILED",
        "The cloud does not know this secret_id.",
        "Check secret_id; the key may have been deleted or disabled, or belong to the other site (China or"
        " international), which needs endpoint_domain.",
    ),
    "AuthFailure.InvalidSecretId": Meaning(
        "CLOUD_AUTH_FAILED",
        "The secret_id is not one of an API key.",
        "Use the SecretId of an API key, not an account's or a product's own key.",
    ),
    "AuthFailure.SignatureFailure": Meaning(
        "CLOUD_AUTH_FAILED",
        "The signature does not fit: secret_key does not belong to secret_id.",
        "Check secret_key for a missing or extra character.",
    ),
    "AuthFailure.SignatureExpire": Meaning(
        "CLOUD_CLOCK_SKEW",
        "The clock of the controller is more than five minutes away from the cloud's, so signatures are refused.",
        "Set the controller's clock (chronyc makestep, or enable NTP) and run again.",
    ),
    "AuthFailure.TokenFailure": Meaning(
        "CLOUD_AUTH_FAILED",
        "The session token is wrong or has expired.",
        "Get a new temporary key and set secret_id, secret_key and token together.",
    ),
    "AuthFailure.MFAFailure": Meaning(
        "CLOUD_AUTH_FAILED", "The account asks for a second factor.", "Use a key that needs none for these actions."
    ),
    "AuthFailure.UnauthorizedOperation": Meaning(
        "CLOUD_PERMISSION_DENIED",
        "The key's user may not do this.",
        "Give it a CAM policy that allows the action in the evidence (QcloudCVMFullAccess allows all that is needed).",
    ),
    "UnauthorizedOperation": Meaning(
        "CLOUD_PERMISSION_DENIED",
        "The key's user may not do this.",
        "Give it a CAM policy that allows the action in the evidence (QcloudCVMFullAccess allows all that is needed).",
    ),
    "UnsupportedRegion": Meaning(
        "CLOUD_REGION_WRONG", "The cloud does not know this region.", "Set region, for example ap-guangzhou."
    ),
    "InvalidInstanceId.NotFound": Meaning(
        "TARGET_NOT_FOUND",
        "No such instance in this region.",
        "Check the instance id and region; an instance of another account is not found either.",
    ),
    "InvalidInstanceId.Malformed": Meaning(
        "TARGET_NOT_FOUND", "This is not an instance id.", "Instance ids look like ins-xxxxxxxx."
    ),
    "InvalidParameterValue.InstanceIdMalformed": Meaning(
        "TARGET_NOT_FOUND", "This is not an instance id.", "Instance ids look like ins-xxxxxxxx."
    ),
    "InvalidPassword": Meaning(
        "LANDING_PASSWORD_INVALID",
        "The cloud does not accept the landing's password.",
        "Use 8 to 30 characters with at least two of: lower case, upper case, digits, punctuation.",
    ),
    "InvalidParameterValue.InvalidPassword": Meaning(
        "LANDING_PASSWORD_INVALID",
        "The cloud does not accept the landing's password.",
        "Use 8 to 30 characters with at least two of: lower case, upper case, digits, punctuation.",
    ),
    "MutexOperation.TaskRunning": Meaning(
        "TARGET_BUSY", "Another operation runs on the instance.", "Wait until it has ended and run again."
    ),
    "OperationDenied.InstanceOperationInProgress": Meaning(
        "TARGET_BUSY", "Another operation runs on the instance.", "Wait until it has ended and run again."
    ),
    "ResourceInUse": Meaning(
        "TARGET_BUSY", "The resource is in use.", "Wait until its operation has ended and run again."
    ),
    "UnsupportedOperation.ArmArchitecture": Meaning(
        "TARGET_ARM",
        "The cloud has no rescue mode for ARM instances.",
        "Choose an x86 instance as the target.",
    ),
    "UnsupportedOperation.StoppedModeStopCharging": Meaning(
        "TARGET_STOPPED_NO_CHARGE",
        "The instance was stopped without charging, and has no host to land on.",
        "Start it and run again.",
    ),
    "UnsupportedOperation.SpecialInstanceType": Meaning(
        "TARGET_TYPE_UNSUPPORTED", "This instance type has no rescue mode.", "Choose another type for the target."
    ),
    "UnsupportedOperation.EdgeZoneNotSupportCloudDisk": Meaning(
        "TARGET_TYPE_UNSUPPORTED",
        "Instances of this edge zone have no rescue mode.",
        "Choose a target in another zone.",
    ),
    "InvalidInstance.NotSupported": Meaning(
        "TARGET_TYPE_UNSUPPORTED", "This instance does not support the operation.", "Choose another target."
    ),
    "UnsupportedOperation.InstanceReinstallFailed": Meaning(
        "TARGET_STATE", "The last reinstallation of the instance failed.", "Reinstall it in the console and run again."
    ),
    "ResourceInsufficient": Meaning(
        "TARGET_SOLD_OUT",
        "The zone has no stock of what is to be created.",
        "Choose another instance_type, disk type or zone; the API's message in the evidence says which is sold out.",
    ),
    "ResourcesSoldOut": Meaning(
        "TARGET_SOLD_OUT",
        "The zone has no stock of what is to be created.",
        "Choose another instance_type, disk type or zone; the API's message in the evidence says which is sold out.",
    ),
    "ResourceUnavailable.InstanceType": Meaning(
        "TARGET_SOLD_OUT",
        "This instance type cannot be had in the zone at present.",
        "Choose another instance_type or zone.",
    ),
    "InvalidParameterValue.InsufficientOffering": Meaning(
        "TARGET_SOLD_OUT",
        "The zone does not offer this instance type in this size or for this way to pay.",
        "Choose another instance_type, zone or charge_type.",
    ),
    "InvalidParameterValue.InstanceTypeNotFound": Meaning(
        "TARGET_SHAPE_INVALID", "There is no such instance type.", "Correct instance_type, for example S5.MEDIUM4."
    ),
    "InvalidInstanceType.Malformed": Meaning(
        "TARGET_SHAPE_INVALID", "This is not an instance type.", "Correct instance_type, for example S5.MEDIUM4."
    ),
    "InvalidImageId": Meaning(
        "TARGET_SHAPE_INVALID",
        "The account has no such image in this region.",
        "Correct image_id; any Linux image of the right architecture will do, since its disks are overwritten.",
    ),
    "InvalidZone.MismatchRegion": Meaning(
        "TARGET_SHAPE_INVALID", "The zone is not in this region.", "Correct zone or region."
    ),
    "InvalidSecurityGroupId.NotFound": Meaning(
        "TARGET_SHAPE_INVALID", "There is no such security group in this region.", "Correct security_groups."
    ),
    "FailedOperation.NoAvailableIpAddressCountInSubnet": Meaning(
        "TARGET_SUBNET_FULL", "The subnet has no free address left.", "Choose another subnet_id."
    ),
    "InvalidAccount.InsufficientBalance": Meaning(
        "ACCOUNT_BALANCE_LOW",
        "The account's balance does not cover the price of the instance.",
        "Top the account up and run again.",
    ),
    "InvalidParameterValue.InsufficientPrice": Meaning(
        "TARGET_PRICE_REFUSED",
        "The price offered for the instance is below what it costs.",
        "Choose charge_type POSTPAID_BY_HOUR or PREPAID, which are sold at the list price.",
    ),
    "FailedOperation.InquiryPriceFailed": Meaning(
        "TARGET_PRICE_REFUSED",
        "The cloud finds no price for this combination of type, disks, bandwidth and way to pay.",
        "Correct the shape: a combination that the console sells has a price.",
    ),
    "InstancesQuotaLimitExceeded": Meaning(
        "ACCOUNT_QUOTA_REACHED",
        "The account may not have more instances of this kind.",
        "Ask the vendor for a larger quota, or use another zone.",
    ),
    "LimitExceeded": Meaning(
        "ACCOUNT_QUOTA_REACHED",
        "A quota of the account is used up.",
        "Ask the vendor for a larger quota; the API's message in the evidence says which.",
    ),
    "AccountQualificationRestrictions": Meaning(
        "ACCOUNT_NOT_QUALIFIED",
        "The account may not buy this yet.",
        "Complete the account's verification in the console.",
    ),
    "ImageQuotaLimitExceeded": Meaning(
        "IMAGE_QUOTA",
        "The account has as many images of its own in this region as it may have.",
        "Delete images that are no longer needed, or have the quota raised, and run again.",
    ),
    "InvalidImageName.Duplicate": Meaning(
        "IMAGE_NAME_TAKEN",
        "Another image has this name already.",
        "Choose another image name, or delete that image.",
    ),
    "InvalidImageOsType.Unsupported": Meaning(
        "IMAGE_OS_UNSUPPORTED",
        "The cloud does not import this operating system.",
        "Set os_type and os_version to what cloud_image_info lists, for example to Other Linux.",
    ),
    "InvalidImageOsVersion.Unsupported": Meaning(
        "IMAGE_OS_UNSUPPORTED",
        "The cloud does not import this version of the operating system.",
        "Set os_version to what cloud_image_info lists.",
    ),
    "InvalidParameter.InvalidParameterUrlError": Meaning(
        "IMAGE_URL_REFUSED",
        "The cloud does not accept the link to the image.",
        "Use an object in a COS bucket of the same region.",
    ),
    "InvalidParameterValue.ISOMustImportByForce": Meaning(
        "IMAGE_FORMAT_UNSUPPORTED",
        "An ISO file is no disk image.",
        "Import a qcow2, vhd, vmdk or raw image of an installed system.",
    ),
    "InvalidParameterValue.InvalidImageState": Meaning(
        "IMAGE_NOT_READY",
        "The image is not in the state NORMAL.",
        "Wait until its import has ended; one that failed has to be imported again.",
    ),
    "InvalidImageId.IncorrectState": Meaning(
        "IMAGE_NOT_READY",
        "The image is being worked on.",
        "Wait until its import has ended and run again.",
    ),
    "RegionAbilityLimit.UnsupportedToImportImage": Meaning(
        "IMAGE_REGION_UNSUPPORTED",
        "Images cannot be imported in this region.",
        "Import in another region and copy the image (SyncImages), or migrate online.",
    ),
    "RequestLimitExceeded": Meaning(
        "CLOUD_RATE_LIMITED",
        "More requests per second than the account may send, and retries did not get through.",
        "Run again: what else uses the account, such as another controller, has taken its rate. Or lower forks.",
    ),
    "UnknownParameter": Meaning(
        "CLOUD_REQUEST_FAILED",
        "This site's API does not know a parameter of the request.",
        "Check endpoint_domain: the China and the international site differ.",
    ),
    "InternalError": Meaning(
        "CLOUD_INTERNAL_ERROR",
        "The cloud failed internally.",
        "Run again; give the request id to the vendor's support.",
    ),
    "InternalServerError": Meaning(
        "CLOUD_INTERNAL_ERROR",
        "The cloud failed internally.",
        "Run again; give the request id to the vendor's support.",
    ),
    "ClientNetworkError": Meaning(
        "CLOUD_UNREACHABLE",
        "The controller got no answer from the cloud's API.",
        "Check endpoint, DNS, proxy variables (HTTPS_PROXY, NO_PROXY) and the route from the controller.",
    ),
    "ServerNetworkError": Meaning(
        "CLOUD_UNREACHABLE",
        "What answered at the API's address did not answer 200.",
        "Check endpoint and proxy variables (HTTPS_PROXY, NO_PROXY).",
    ),
    MALFORMED: Meaning(
        "CLOUD_RESPONSE_MALFORMED",
        "What answered at the API's address does not speak this API.",
        "Check endpoint, and whether a proxy changes answers on the way.",
    ),
}

_STATE_ERROR = "UnsupportedOperation.InstanceState"
_BUSY = Meaning(
    "TARGET_BUSY",
    "The instance is changing its state, which does not allow the operation.",
    "Look at its state with target_info, let the operation on it end, and run again.",
)
_GONE = Meaning(
    "TARGET_STATE",
    "The instance is in a state from which it does not come back by itself.",
    "Choose another target, or restore this one in the console.",
)
_LOCKED = Meaning(
    "TARGET_ISOLATED",
    "The vendor has locked the instance.",
    "Clear the reason in the console (arrears, a return, a security lock), or choose another target.",
)
_LIVE_MIGRATION = Meaning(
    "TARGET_IN_LIVE_MIGRATION",
    "The instance is in the vendor's own online migration.",
    "Finish or clean up that migration first (the vendor's tool has --clean), then run again.",
)
# What follows _STATE_ERROR; every other state is one that passes.
_STATE_ERRORS = {
    "Banning": _LOCKED,
    "Corrupted": _GONE,
    "EnterServiceLiveMigrate": _LIVE_MIGRATION,
    "ExitServiceLiveMigrate": _LIVE_MIGRATION,
    "Freezing": _LOCKED,
    "Isolating": _LOCKED,
    "LaunchFailed": _GONE,
    "ServiceLiveMigrate": _LIVE_MIGRATION,
    "Shutdown": _GONE,
    "Terminated": _GONE,
    "Terminating": _GONE,
}


def meaning_of(code: str) -> Meaning:
    """The meaning of the API's *code*."""
    if code.startswith(_STATE_ERROR):
        return _STATE_ERRORS.get(code[len(_STATE_ERROR) :], _BUSY)
    family = code
    while family:
        if family in _MEANINGS:
            return _MEANINGS[family]
        family = family.rpartition(".")[0]
    return _OTHER


class CloudError(Refusal):
    """The API's refusal of one *action*, or the failure to ask it.

    ``code``, ``message`` and ``request_id`` are the API's own; ``finding`` says what they mean.
    """

    def __init__(self, code: str, message: str, request_id: str, action: str, subject: str = "cloud") -> None:
        meaning = meaning_of(code)
        happened = "" if code in (*NETWORK_CODES, MALFORMED) else f" was answered with {code}"
        cause = f"{meaning.cause} {action}{happened}: {_OBJECT.sub('', message).strip().rstrip('.')}."
        evidence = {"api_action": action, "api_code": code, "api_message": message, "request_id": request_id}
        super().__init__(Finding(meaning.code, "blocker", subject, cause, meaning.action, evidence))
        self.code = code
        self.message = message
        self.request_id = request_id
        self.action = action

    @property
    def is_throttle(self) -> bool:
        """The request was turned away at the door: nothing was done."""
        return self.code.partition(".")[0] == "RequestLimitExceeded"

    @property
    def is_network(self) -> bool:
        """No usable answer: the request may or may not have been carried out."""
        return self.code in NETWORK_CODES

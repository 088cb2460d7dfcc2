# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.image_info: brings the agent's parsers along."""

from __future__ import annotations

from ..plugin_utils.image_action import ImageAction


class ActionModule(ImageAction):
    pass

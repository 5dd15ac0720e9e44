"""The transport suite on every host of the matrix: minutes, so only ``./dev matrix`` runs it."""

from __future__ import annotations

import os

if os.environ.get("RTKIT_MATRIX"):
    from tests.transport.test_conversation import *  # noqa: F403
    from tests.transport.test_drain import *  # noqa: F403
    from tests.transport.test_ends import *  # noqa: F403
    from tests.transport.test_python_client import *  # noqa: F403

    # Last, so that it replaces the hosts that these modules choose for themselves.
    from tests.hosts.conftest import host  # noqa: F401  # isort: skip

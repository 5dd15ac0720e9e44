"""As a plug-in would have it: assertions of the kit show what they compared."""

import pytest

pytest.register_assert_rewrite("rtkit.testing.conformance")

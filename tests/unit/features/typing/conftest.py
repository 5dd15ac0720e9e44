"""The world of the hub's tests: hubs in virtual time, and the proof that nothing is left of them."""

from tests.unit.hub.conftest import errors, no_error_is_logged, world

__all__ = ["errors", "no_error_is_logged", "world"]

"""What tests share: services that may be missing, servers to talk to."""

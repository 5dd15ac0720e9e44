"""What rooms can have besides their messages. Each is independent of the others, and the hub knows none of them."""

"""What is in ``mistakes/`` is for type checkers only; ``programs/handler_test.py`` is a test like any other."""

collect_ignore = ["mistakes"]

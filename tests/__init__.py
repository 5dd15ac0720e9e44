"""The tests: unit/ mirrors src/rtkit; what several of them need is in support/."""

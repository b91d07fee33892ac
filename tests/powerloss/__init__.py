"""Every state that a disk may hold after a power cut, started again: see `tests.powerloss.__main__`."""

"""What the NVIDIA driver's error numbers (XIDs) mean for whoever gives the device away."""

RESET = "let what is on it end, reset it (`nvidia-smi --gpu-reset`) and uncordon it; if this comes back, replace it"
REBOOT = "restart the machine, then uncordon it; if this comes back, look at its seat, power and cooling"
NVLINK = "look at its links (`nvidia-smi nvlink --errorcounters`); reset all devices they join, then uncordon it"

DOUBLE_BIT = 48
CRITICAL: dict[int, tuple[str, str]] = {
    DOUBLE_BIT: ("memory error that could not be corrected", RESET),
    62: ("its internal controller halted", RESET),
    63: ("failing memory was noted, to be replaced by spare memory at the next reset", RESET),
    64: ("failing memory could not be replaced by spare memory", RESET),
    74: ("NVLink error", NVLINK),
    79: ("it has fallen off the bus", REBOOT),
    94: ("memory error that cost one program", RESET),
    95: ("memory error that may have reached every program on it", RESET),
    119: ("its system processor does not answer", RESET),
    120: ("its system processor failed", RESET),
    140: ("memory error that was not recovered from", RESET),
}
"""Errors after which nothing new is to be put on a device: what happened, and what an operator does about it."""

PROGRAMS: dict[int, str] = {
    13: "a program's kernel failed",
    31: "a program used memory it does not have",
    43: "a program's work was stopped",
    45: "a program's work was cleared away after it ended",
    68: "a program's video decoding failed",
    109: "a program's work did not let go in time",
}
"""Errors that a faulty program causes; the device is none the worse."""

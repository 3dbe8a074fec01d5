"""Where readings of devices come from: the NVIDIA driver, the host's memory, the configuration."""

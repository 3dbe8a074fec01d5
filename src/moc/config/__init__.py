"""One `moc.yaml`, every key also an environment variable; unknown keys are refused where they stand.

Order: command-line options over `MOC_SECTION__KEY` over the file over the defaults here.
"""

from moc.config.config import STARTER_NAME, Config, Origin, load
from moc.config.devices import DeviceChoice
from moc.config.document import PREFIX
from moc.config.settings import Settings

__all__ = ["PREFIX", "STARTER_NAME", "Config", "DeviceChoice", "Origin", "Settings", "load"]

"""Engines that speak HTTP: requests in the gateway's words out, answers and pieces of answers back.

Whoever needs it imports it when first used, for it brings an HTTP client along.
"""

from moc.workers.upstream.options import UpstreamOptions
from moc.workers.upstream.upstream import Upstream

__all__ = ["Upstream", "UpstreamOptions"]

"""Aliases as routes of requests: joins the book that keeps them and the gateway that follows them."""

from moc.inference.routing import Route, Shadow, Target
from moc.models.alias import Alias
from moc.models.aliases import AliasBook


class AliasRoutes:
    """Implements `inference.ports.Routes`: what a request asks is one look into a table."""

    def __init__(self, aliases: AliasBook) -> None:
        self._routes: dict[str, Route] = {}
        aliases.on_change(self._changed)

    def route(self, name: str) -> Route | None:
        """See `inference.ports.Routes`."""
        return self._routes.get(name)

    def _changed(self, name: str, alias: Alias | None) -> None:
        if alias is None:
            self._routes.pop(name, None)
        else:
            self._routes[name] = _route(name, alias)


def _route(name: str, alias: Alias) -> Route:
    shadows = [Shadow(reference, percent) for reference, percent in alias.shadow.items()]
    return Route(
        name=name,
        targets=tuple(Target(reference, weight) for reference, weight in alias.versions.items()),
        fallback=alias.fallback,
        policy=alias.policy,
        sticky=alias.sticky,
        shadow=shadows[0] if shadows else None,
        hedge=alias.hedge,
    )

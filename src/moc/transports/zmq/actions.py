"""Everything that can be asked."""

from collections.abc import Mapping

from moc.service.services import Services
from moc.transports.zmq.call import Action
from moc.transports.zmq.description import description_actions
from moc.transports.zmq.inference import inference_actions
from moc.transports.zmq.jobs import job_actions
from moc.transports.zmq.limits import Limits
from moc.transports.zmq.management import management_actions


def actions_of(services: Services, limits: Limits) -> Mapping[str, Action]:
    """Every action by its name."""
    actions: dict[str, Action] = {}
    actions |= inference_actions(services.inference)
    actions |= management_actions(services)
    actions |= job_actions(services.jobs)
    actions |= description_actions(services, limits, actions)
    return actions

"""The services, together."""

from dataclasses import dataclass

from moc.security.authenticator import Authenticator
from moc.service.aliases import AliasesService
from moc.service.audit import AuditService
from moc.service.configuration import ConfigurationService
from moc.service.devices import DevicesService
from moc.service.evaluations import EvaluationsService
from moc.service.files import FilesService
from moc.service.inference import InferenceService
from moc.service.jobs import JobsService
from moc.service.keys import KeysService
from moc.service.leases import LeasesService
from moc.service.models import ModelsService
from moc.service.rollouts import RolloutsService
from moc.service.system import SystemService


@dataclass(frozen=True, slots=True)
class Services:
    """All that a transport may call."""

    authenticator: Authenticator
    inference: InferenceService
    models: ModelsService
    aliases: AliasesService
    rollouts: RolloutsService
    devices: DevicesService
    leases: LeasesService
    jobs: JobsService
    evaluations: EvaluationsService
    files: FilesService
    keys: KeysService
    audit: AuditService
    configuration: ConfigurationService
    system: SystemService

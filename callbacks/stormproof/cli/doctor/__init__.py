"""Checks an installation or a checkpoint folder for risks of data loss."""

from stormproof.cli.doctor.checkpoints import checkpoint_risks
from stormproof.cli.doctor.file_system import address_risks, file_system_risks
from stormproof.cli.doctor.installation import installation_risks
from stormproof.cli.doctor.object_store import object_store_risks
from stormproof.cli.doctor.risk import Risk

__all__ = ["Risk", "address_risks", "checkpoint_risks", "file_system_risks", "installation_risks", "object_store_risks"]

"""What, in an installation or a folder of checkpoints, would lose work: looked for before it does."""

from stormproof.doctor.checkpoints import checkpoint_risks
from stormproof.doctor.file_system import address_risks, file_system_risks
from stormproof.doctor.installation import installation_risks
from stormproof.doctor.risk import Risk

__all__ = ["Risk", "address_risks", "checkpoint_risks", "file_system_risks", "installation_risks"]

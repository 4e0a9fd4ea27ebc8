"""``nlhf certify``: how exploitable a policy is, from samples."""

from nlhf_zoo.cli.certify.command import main
from nlhf_zoo.cli.certify.records import Certificate

__all__ = ["Certificate", "main"]

"""What type checkers see of the names that are imported when they are asked for."""

from nlhf_zoo.algorithms import *
from nlhf_zoo.callbacks import *
from nlhf_zoo.data import *
from nlhf_zoo.errors import DivergenceError as DivergenceError
from nlhf_zoo.errors import OracleStoppedError as OracleStoppedError
from nlhf_zoo.errors import UserError as UserError
from nlhf_zoo.game import *
from nlhf_zoo.health import HealthCheck as HealthCheck
from nlhf_zoo.health import ReferenceFingerprint as ReferenceFingerprint
from nlhf_zoo.metrics import *
from nlhf_zoo.oracles import *
from nlhf_zoo.policies import *
from nlhf_zoo.preference_models import *
from nlhf_zoo.records import *
from nlhf_zoo.solvers import Solution as Solution
from nlhf_zoo.solvers import solve as solve

__version__: str
FOLDERS: tuple[str, ...]
MOVED: dict[str, str]

def public_names() -> dict[str, str]: ...

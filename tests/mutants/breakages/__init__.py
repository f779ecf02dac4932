"""One-line breakages, each with the tests that claim to notice: data for run.py.

`old` stands exactly once in `file`; `tests` are functions, all of whose parameters run.
"""

from .masks import MASKS
from .method import METHOD
from .methods import METHODS
from .page import PAGE
from .reproduce import REPRODUCE
from .rows import Mutant as Mutant
from .rules import RULES
from .sampling import SAMPLING
from .shared import SHARED

MUTANTS = [*METHODS, *METHOD, *MASKS, *RULES, *SAMPLING, *REPRODUCE, *SHARED, *PAGE]

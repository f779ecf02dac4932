"""The methods by the names that `--method` takes and that a concept file is tagged with.

Custom Diffusion, DreamBooth and Textual Inversion need no classes of their own: they are EqDiff
with parts of it off, see `eqdiff/settings/methods.py`.
"""

from collections.abc import Mapping
from typing import Any

from eqdiff.method import EQDIFF, Method
from eqdiff.methods.ico import ICO
from eqdiff.methods.infusion import INFUSION

METHODS: dict[str, Method] = {
    "eqdiff": EQDIFF,
    "custom_diffusion": EQDIFF,
    "dreambooth": EQDIFF,
    "textual_inversion": EQDIFF,
    "infusion": INFUSION,
    "ico": ICO,
}


def method_in(settings: Mapping[str, Any]) -> Method:
    """The method that a concept's settings name; files of before the first others are EqDiff's.

    Whether the settings are good is not checked here: of an unknown method it is EqDiff too.
    """
    return METHODS.get(str(settings.get("method", "eqdiff")), EQDIFF)

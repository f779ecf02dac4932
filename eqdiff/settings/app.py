"""The settings of the page in the browser, `app/serve.py`."""

import dataclasses

from eqdiff.errors import require
from eqdiff.settings.options import Role, check_fields, opt
from eqdiff.settings.places import BASE_HELP


@dataclasses.dataclass(frozen=True)
class AppConfig:
    """Teach, draw and compare in the browser, on this machine alone."""

    pretrained_model_name_or_path: str | None = opt(None, BASE_HELP, role=Role.FIRST)
    host: str = opt(
        "127.0.0.1", "address to listen at; 0.0.0.0: whoever reaches this machine may use it"
    )
    port: int = opt(7860, "port to listen at", 1, 65535)

    def __post_init__(self) -> None:
        check_fields(self)
        plain = self.host and self.host.isprintable() and "/" not in self.host
        require(plain, f"--host {self.host!r}: give an address, such as 127.0.0.1")

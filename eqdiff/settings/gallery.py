"""The settings of `make_gallery.py`."""

import dataclasses

from eqdiff.settings.options import Role, check_fields, opt


@dataclasses.dataclass(frozen=True)
class GalleryConfig:
    """Write a page that shows a run, or several side by side, and opens without a server."""

    runs: tuple[str, ...] = opt(
        (),
        "folders that train_eqdiff.py or test_eqdiff.py wrote (default: the newest under outputs/)",
        role=Role.FIRST,
    )
    output: str | None = opt(
        None,
        "the page (default: gallery.html beside the pictures; of several runs, above them)",
        role=Role.FIRST,
    )
    embed: bool = opt(
        True, "pictures in the page itself; off: in a folder beside it, which goes with it"
    )
    overwrite: bool = opt(False, "replace a page or pictures of others at the places of ours")

    def __post_init__(self) -> None:
        check_fields(self)

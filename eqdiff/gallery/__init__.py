"""A page for a run or several: photos, masks, previews, pictures in one file, without a server."""

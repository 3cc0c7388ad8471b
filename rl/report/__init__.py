"""The page of a run: read its folder, compact it, choose thumbnails within a budget, write one HTML file or serve it."""

"""The report of a run: its folder read and compacted, thumbnails within a budget, one HTML file, or served live."""

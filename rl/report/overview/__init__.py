"""Several runs on one page, served live: listed, their curves compared, their evaluations browsed."""

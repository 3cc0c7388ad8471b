"""Published data sets: from downloaded files to a checked folder (`dynframe prepare`)."""

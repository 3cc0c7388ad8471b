"""What FlexiVideo's encoder costs on clips: `dynframe encode-stats`."""

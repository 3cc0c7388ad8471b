"""Reading answers: one grammar for references and for what a policy writes."""

"""A Griffe extension: our docstrings' sections follow each other without an empty line, which Griffe's parser wants."""

import re

import griffe

SECTION = re.compile(r"(?<!\n)\n(Args|Returns|Raises|Yields):\n")


class Sections(griffe.Extension):
    """Puts the empty line there before the docstring is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Called with every module, class, function and attribute that has been read."""
        if obj.docstring:
            obj.docstring.value = SECTION.sub(r"\n\n\1:\n", obj.docstring.value)

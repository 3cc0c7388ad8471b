"""A stranger's tool, as a user would write it: one file, nothing of it known anywhere else."""

from rl.trajectory import MalformedCall, RefusedCall, ToolCall


class Length:
    """`<length>s</length>` or `<length>ms</length>`: tells how long the clip is."""

    name = "length"
    tags = ("<length>", "</length>")
    nothing = "no length"

    def parse(self, text, clip):
        """Text is the request, tags included."""
        unit = text.removeprefix("<length>").removesuffix("</length>").strip()
        if not unit.isalpha():
            return MalformedCall("the unit is not a word")
        return ToolCall("length", {"unit": unit}) if unit in ("s", "ms") else RefusedCall(f"no such unit: {unit}")

    def tokens(self, call, clip):
        """At most."""
        return clip.text_tokens(self.insert(call, clip))

    def insert(self, call, clip):
        """Text."""
        factor = 1 if call.arguments["unit"] == "s" else 1000
        return f"The clip lasts {clip.duration_s * factor:.0f} {call.arguments['unit']}."

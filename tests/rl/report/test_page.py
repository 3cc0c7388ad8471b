"""Data in the page is only ever data: nothing in it can end a script element, and the page's policy allows no more."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from rl.report.page import content_policy, json_part, packed_part, render, script_safe_json, write_page

HOSTILE = ["</script>", "<!--", "<script>alert(1)</script>", "]]>", "\u2028", "</ScRiPt\t>", '"><img src=x onerror=1>']
texts = st.one_of(st.text(), st.sampled_from(HOSTILE), st.builds("".join, st.lists(st.sampled_from(HOSTILE))))


class Scripts(HTMLParser):
    """The script elements of a page, as a browser cuts them, and every other tag."""

    def __init__(self):
        super().__init__()
        self.scripts, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append((dict(attributes), ""))

    def handle_data(self, data):
        if self.scripts and self.lasttag == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)


def parsed(page):
    scripts = Scripts()
    scripts.feed(page)
    return scripts


@settings(deadline=None)
@given(st.recursive(texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=8))
def test_no_data_can_close_the_script_element_or_change_on_the_way(data):
    text = script_safe_json(data)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == data


@settings(deadline=None)
@given(texts)
def test_a_page_with_hostile_data_has_the_elements_of_one_without(hostile):
    inert = parsed(render("run", [json_part("clip-0", {"a": "b"}), packed_part("run", b"gzip")], live=False))
    page = parsed(render(hostile, [json_part("clip-0", {hostile: hostile}), packed_part("run", b"gzip")], live=False))
    assert page.tags == inert.tags
    attributes, text = page.scripts[0]
    assert attributes == {"type": "application/json", "id": "clip-0"}
    assert json.loads(text.strip()) == {hostile: hostile}


def test_only_our_own_script_and_style_may_run_and_nothing_may_be_fetched():
    page = render("run", [], live=False)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    assert policy == content_policy(live=False)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["connect-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    script, style = (re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1] for tag in ("script", "style"))
    for rule, text in (("script-src", script), ("style-src", style)):
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_our_script_parses_no_markup_and_names_no_address():
    page = render("run", [], live=False)
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert forbidden not in page
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {"http://www.w3.org/2000/svg"}  # a name, not a place


def test_a_page_is_replaced_in_one_piece(tmp_path):
    out = tmp_path / "new" / "report.html"
    assert write_page(out, "first", []) == out.stat().st_size
    write_page(out, "second", [])
    assert "<title>second</title>" in out.read_text() and list(out.parent.iterdir()) == [out]

"""Labels that try to break an answer."""

HOSTILE_LABELS = [
    'the "red" cup', '<point x="1" y="2">', '</points> & <b> x2="3" y2="4"', "two\nlines\r\n\ttabs", "x" * 1000,
    "\u202eright to left", "\u05d0\u05d1 \u0627\u0644", "👩\u200d👩\u200d👧 🇩🇪" * 40, 'back\\slash \\n \\" %regex{}',
    "<loc0001><loc0002><loc0003><loc0004> ; ", "\0\x1b[31m", "e\u0301 ﬀ \u2028 \u0085", "none", "", " ",
    "</s><s><image>", "start: /a/", "&amp;quot;", "[0.1, 0.2, 0.3, 0.4]", "{}[]()|*+?^$%#@!~`", "1" * 50,
]  # fmt: skip

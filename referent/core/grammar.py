"""Grammars of answers in text: what a model may write (llguidance's Lark), and how it is read back.

A label is the caller's text. It is escaped, and the grammar forces it, so that no label can break or extend an answer.
Every list is closed: the limit on its instances is part of the grammar, so that no limit on tokens cuts it.
"""

import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from referent.core.answers import Gives

Lead = Literal["", " "]
NONE = "none"  # what a model writes where nothing is there, if it was taught so
PERCENT, LOC_STEPS = 100, 1024
MAX_INSTANCES = 64
GENERATION_FILE = "generation.json"


class Written(NamedTuple):
    """A referent as it stands in an answer."""

    values: tuple[float, ...]  # cx, cy, w, h of a box, or x, y of a point; shares of the box frame
    span: tuple[int, int]  # of its bytes in the answer


class _Grammar(BaseModel, ABC):
    model_config = ConfigDict(extra="forbid", frozen=True)
    gives: ClassVar[Gives] = "boxes"
    several: ClassVar[bool] = True

    none: bool = Field(False, description="whether the model was taught to say that nothing is there")

    @abstractmethod
    def tokens(self, label_tokens: int, most: int) -> int:
        """The most tokens an answer has up to its last choice; what the grammar forces after it is not computed."""

    def tail(self, label_tokens: int) -> int:
        """How many more tokens are needed to see whether the model would continue beyond the limit."""
        return 0


class BoxGrammar(_Grammar):
    """One box: `[0.12, 0.30, 0.45, 0.80]`, or `none`."""

    several: ClassVar[bool] = False

    form: Literal["boxes"] = "boxes"
    order: Literal["xyxy", "cxcywh"]
    decimals: int = Field(2, ge=1, le=6)
    lead: Lead = Field("", description="what stands between the prompt and the answer")

    def lark(self, label: str, most: int) -> str:
        """The grammar; neither the label nor the number of referents matters."""
        rules = [f'box: "{self.lead}[" n ", " n ", " n ", " n "]"']
        rules += [rf"n: /0\.[0-9]{{{self.decimals}}}|1\.0{{{self.decimals}}}/"]
        return "\n".join([f'start: box | "{self.lead}{NONE}"' if self.none else "start: box", *rules])

    def tokens(self, label_tokens: int, most: int) -> int:
        return len(self.lead) + 4 * (self.decimals + len("0., "))

    def read(self, text: str) -> list[Written]:
        """The box if it has an area, else an empty list."""
        number = rb"(\d\.\d{%d})" % self.decimals
        match = re.fullmatch(rb" ?\[" + b", ".join([number] * 4) + rb"\]", text.encode())
        return _boxes([] if match is None else [match], self.order)

    def write(self, box_cxcywh: Sequence[float]) -> str:
        """The answer that a model is trained to give for cx, cy, w, h in 0..1."""
        cx, cy, w, h = box_cxcywh
        values = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2) if self.order == "xyxy" else (cx, cy, w, h)
        numbers = (f"{min(max(value, 0.0), 1.0):.{self.decimals}f}" for value in values)
        return f"{self.lead}[{', '.join(numbers)}]"


class PointGrammar(_Grammar):
    """`<point x="39.04" y="39.16" alt="sky">sky</point>`, `<points x1=... y1=... x2=...>` or `none`; percent."""

    gives: ClassVar[Gives] = "points"

    form: Literal["points"] = "points"
    decimals: Literal[1, 2] = Field(2, description="at most; at least one is written")
    lead: Lead = Field("", description="what stands between the prompt and the answer")

    def lark(self, label: str, most: int) -> str:
        """The grammar of up to `most` points of a label; each place of the list is a rule, so that the list ends."""
        label = escape(label)
        tail = json.dumps(f' alt="{label}">{label}', ensure_ascii=False)
        starts = ["one", *(["many"] if most > 1 else []), *([f'"{self.lead}{NONE}"'] if self.none else [])]
        rules = [
            f"start: {' | '.join(starts)}",
            rf'one: "{self.lead}<point x=\"" c "\" y=\"" c "\"" {tail} "</point>"',
            rf"c: /([0-9]|[1-9][0-9])\.[0-9]{'[0-9]?' if self.decimals > 1 else ''}|100\.0/",
        ]
        if most > 1:
            rules.append(rf'many: "{self.lead}<points x1=\"" c "\" y1=\"" c "\"" p2 {tail} "</points>"')
        for i in range(2, most + 1):
            rules.append(rf'p{i}: " x{i}=\"" c "\" y{i}=\"" c "\""' + (f" p{i + 1}?" if i < most else ""))
        return "\n".join(rules)

    def tokens(self, label_tokens: int, most: int) -> int:
        return len(self.lead) + len("<points") + most * len(' x64="100.0" y64="100.0"')

    def read(self, text: str) -> list[Written]:
        """The points in the order in which they were written."""
        head = text.encode().partition(b" alt=")[0]
        matches = re.finditer(rb' x\d*="([\d.]+)" y\d*="([\d.]+)"', head)
        return [Written(tuple(float(value) / PERCENT for value in m.groups()), m.span()) for m in matches]

    def write(self, points: Sequence[Sequence[float]], label: str) -> str:
        """The answer that a model is trained to give for points x, y in 0..1."""
        label, many = escape(label), len(points) > 1
        if not points:
            return f"{self.lead}{NONE}"
        pairs = "".join(
            f' x{i if many else ""}="{self._percent(x)}" y{i if many else ""}="{self._percent(y)}"'
            for i, (x, y) in enumerate(points, 1)
        )
        tag = "points" if many else "point"
        return f'{self.lead}<{tag}{pairs} alt="{label}">{label}</{tag}>'

    def _percent(self, share: float) -> str:
        number = f"{PERCENT * min(max(share, 0.0), 1.0):.{self.decimals}f}"
        return number[:-1] if self.decimals > 1 and number.endswith("0") else number


class BoxOrPointsGrammar(_Grammar):
    """A box or points, as the expression asks: "the cup", "point to all cups". A point is read as a box of size 0."""

    gives: ClassVar[Gives] = "boxes or points"

    form: Literal["box_or_points"] = "box_or_points"
    box: BoxGrammar
    points: PointGrammar

    def lark(self, label: str, most: int) -> str:
        """Both grammars; their rules have different names, and `none` is the box's or the points'."""
        rules = [grammar.lark(label, most).split("\n") for grammar in (self.box, self.points)]
        starts = dict.fromkeys(way for first, *_ in rules for way in first.removeprefix("start: ").split(" | "))
        return "\n".join([f"start: {' | '.join(starts)}", *(rule for _, *rest in rules for rule in rest)])

    def tokens(self, label_tokens: int, most: int) -> int:
        return max(grammar.tokens(label_tokens, most) for grammar in (self.box, self.points))

    def read(self, text: str) -> list[Written]:
        """The box that has an area, or the points in the order in which they were written."""
        return self.box.read(text) or [
            Written((*written.values, 0.0, 0.0), written.span) for written in self.points.read(text)
        ]


class DetectionGrammar(_Grammar):
    """PaliGemma's `<loc0123>` x 4 and the label, several joined by ` ; `; the answer is empty if nothing is there.

    The numbers are ymin, xmin, ymax, xmax in 1024ths.
    """

    form: Literal["detections"] = "detections"
    first_loc_id: int = Field(ge=0, description="the token <loc0000>; the others follow it")

    def lark(self, label: str, most: int) -> str:
        """The grammar of up to `most` detections of a label."""
        tail = json.dumps(f" {escape(label)}", ensure_ascii=False)
        found = "det" + (f' (" ; " det){{0,{most - 1}}}' if most > 1 else "")
        token = f"<[{self.first_loc_id}-{self.first_loc_id + LOC_STEPS - 1}]>"
        return f"start: {f'({found})?' if self.none else found}\ndet: l l l l {tail}\nl: {token}"

    def tokens(self, label_tokens: int, most: int) -> int:
        return most * 4 + (most - 1) * (label_tokens + len(" ; "))

    def tail(self, label_tokens: int) -> int:
        return label_tokens

    def read(self, text: str) -> list[Written]:
        """The boxes that have an area, in the order in which they were written."""
        return _boxes(re.finditer(rb"<loc(\d{4})>" * 4, text.encode()), "yxyx", LOC_STEPS)


Grammar = Annotated[BoxGrammar | PointGrammar | DetectionGrammar | BoxOrPointsGrammar, Field(discriminator="form")]


class Generation(BaseModel):
    """How a model's answers are written: the part of its spec that the decoder needs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    grammar: Grammar
    eos_token_id: int
    max_instances: int = Field(1, ge=1, le=MAX_INSTANCES, description="of an expression, if the request has no limit")
    bidirectional: bool = Field(False, description="whether prompt tokens attend to later ones, as in PaliGemma")


class GenerationFile(Generation):
    """<generator>/<version>/generation.json: also how much the cache holds."""

    slots: int = Field(ge=1, description="rows at a time")
    columns: int = Field(ge=1, description="tokens of a row: its prompt and its answers")


def escape(label: str) -> str:
    """A label as it stands in an answer: one line, and no character that means something there."""
    spaced = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in label)
    line = " ".join(spaced.split())
    return line.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def _boxes(matches: Iterable[re.Match[bytes]], order: str, steps: int = 1) -> list[Written]:
    """Boxes from four numbers each, in steps of the frame's side. A box without area is left out, and so is one with
    swapped corners."""
    found = []
    for match in matches:
        a, b, c, d = (float(number) / steps for number in match.groups())
        if order == "cxcywh":
            box = (a, b, c, d)
        else:
            x1, y1, x2, y2 = (a, b, c, d) if order == "xyxy" else (b, a, d, c)
            box = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        if box[2] > 0 and box[3] > 0:
            found.append(Written(box, match.span()))
    return found

import random
from html import unescape

import pytest
from llguidance import LLMatcher, LLTokenizer
from pydantic import TypeAdapter, ValidationError

from referent.core.grammar import BoxGrammar, BoxOrPointsGrammar, DetectionGrammar, Grammar, PointGrammar, escape
from tests.support.hostile_labels import HOSTILE_LABELS
from tests.support.text_tokenizer import FIRST_LOC_ID, TEXT_VOCABULARY, text_tokenizer

GRAMMARS = [
    BoxGrammar(order="xyxy", lead=" "),
    BoxGrammar(order="cxcywh", decimals=3, none=True),
    PointGrammar(),
    PointGrammar(none=True),
    DetectionGrammar(first_loc_id=FIRST_LOC_ID),
    DetectionGrammar(first_loc_id=FIRST_LOC_ID, none=True),
    PointGrammar(decimals=1),
    BoxOrPointsGrammar(box=BoxGrammar(order="xyxy", lead=" ", none=True), points=PointGrammar(decimals=1, none=True)),
]


@pytest.fixture(scope="module")
def tokenizer() -> LLTokenizer:
    return text_tokenizer()


def write_at_random(tokenizer: LLTokenizer, lark: str, generator: random.Random, limit: int = 6000) -> str:
    """An answer of a model to which all tokens are equally likely."""
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(lark))
    assert not matcher.is_error(), matcher.get_error()
    ids: list[int] = []
    while not matcher.is_stopped():
        assert len(ids) < limit, "the answer does not end"
        if forced := matcher.compute_ff_tokens():
            ids += forced
            assert matcher.consume_tokens(forced)
            continue
        mask = matcher.compute_bitmask()
        token = generator.choice([i for i in range(TEXT_VOCABULARY) if mask[i // 8] >> (i % 8) & 1])
        assert matcher.consume_token(token)
        if token != tokenizer.eos_token:
            ids.append(token)
    return str(tokenizer.decode_str(ids))


@pytest.mark.parametrize("grammar", GRAMMARS, ids=repr)
@pytest.mark.parametrize("most", [1, 2, 5])
def test_every_answer_ends_and_is_read_whatever_the_label(tokenizer: LLTokenizer, grammar: Grammar, most: int) -> None:
    generator = random.Random(most)
    for label in HOSTILE_LABELS:
        text = write_at_random(tokenizer, grammar.lark(label, most), generator)
        found = grammar.read(text)
        assert len(found) <= most
        assert all(0 <= value <= 1 for written in found for value in written.values)
        if isinstance(grammar, PointGrammar) and text != "none":
            assert len(found) == text.partition(" alt=")[0].count(" x") >= 1
            assert unescape(text.partition(' alt="')[2].partition('"')[0]) == unescape(escape(label))
        if isinstance(grammar, DetectionGrammar):
            assert text.count("<loc") % 4 == 0


def test_a_box_is_read_in_its_order_and_with_its_bytes() -> None:
    (written,) = BoxGrammar(order="xyxy", lead=" ").read(" [0.10, 0.20, 0.50, 1.00]")
    assert written.values == pytest.approx((0.3, 0.6, 0.4, 0.8))
    assert written.span == (0, 25)
    (written,) = BoxGrammar(order="cxcywh", decimals=3).read("[0.512, 0.300, 0.200, 1.000]")
    assert written.values == (0.512, 0.3, 0.2, 1.0)


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (BoxGrammar(order="xyxy"), "[0.50, 0.20, 0.10, 1.00]"),  # corners out of order: never turned
        (BoxGrammar(order="xyxy"), "[0.50, 0.20, 0.50, 1.00]"),
        (BoxGrammar(order="cxcywh"), "[0.50, 0.20, 0.00, 1.00]"),
        (BoxGrammar(order="cxcywh", decimals=3), "[0.50, 0.20, 0.10, 1.00]"),  # another number of decimals
        (BoxGrammar(order="cxcywh", none=True), "none"),
        (DetectionGrammar(first_loc_id=0), "<loc0500><loc0100><loc0400><loc0200> cup"),
        (DetectionGrammar(first_loc_id=0, none=True), ""),
        (PointGrammar(none=True), "none"),
    ],
)
def test_what_is_no_referent(grammar: Grammar, text: str) -> None:
    assert grammar.read(text) == []


def test_points_and_detections_keep_their_order_and_places() -> None:
    text = '<points x1="39.04" y1="9.1" x2="100.0" y2="0.0" alt="ä">ä</points>'
    found = PointGrammar().read(text)
    assert [written.values for written in found] == [pytest.approx((0.3904, 0.091)), (1.0, 0.0)]
    assert [text[slice(*written.span)] for written in found] == [' x1="39.04" y1="9.1"', ' x2="100.0" y2="0.0"']
    text = "<loc0000><loc0256><loc0512><loc1023> é ; <loc0512><loc0000><loc0768><loc0256> é"
    found = DetectionGrammar(first_loc_id=0).read(text)
    assert found[1].values == (0.125, 0.625, 0.25, 0.25)
    assert text.encode()[slice(*found[1].span)] == b"<loc0512><loc0000><loc0768><loc0256>"


def test_a_label_stands_as_one_line_and_comes_back() -> None:
    label = 'a "b"\n<c> &amp; d'
    assert escape(label) == "a &quot;b&quot; &lt;c&gt; &amp;amp; d"
    assert unescape(escape(label)) == 'a "b" <c> &amp; d'


@pytest.mark.parametrize("order", ["xyxy", "cxcywh"])
@pytest.mark.parametrize("decimals", [2, 3])
def test_what_is_trained_is_what_the_grammar_reads(order: str, decimals: int) -> None:
    grammar = TypeAdapter(Grammar).validate_python({"form": "boxes", "order": order, "decimals": decimals, "lead": " "})
    for box in [(0.3, 0.6, 0.4, 0.8), (0.5, 0.5, 1.0, 1.0), (0.99, 0.01, 0.02, 0.02)]:
        (written,) = grammar.read(grammar.write(box))
        assert written.values == pytest.approx(box, abs=10**-decimals)
    points = PointGrammar()
    for given in [[(0.5, 0.25)], [(0.0, 1.0), (0.3333, 0.1)]]:
        assert [w.values for w in points.read(points.write(given, "a <b>"))] == [
            pytest.approx(p, abs=1e-4) for p in given
        ]
    assert points.write([], "cup") == "none"
    assert (
        PointGrammar(decimals=1).write([(0.5, 0.25), (1.0, 0.3333)], "a").startswith('<points x1="50.0" y1="25.0" x2')
    )


def test_a_box_or_points_as_the_text_has_it() -> None:
    grammar = BoxOrPointsGrammar(box=BoxGrammar(order="xyxy", none=True), points=PointGrammar(none=True))
    (box,) = grammar.read("[0.10, 0.20, 0.50, 1.00]")
    assert box.values == pytest.approx((0.3, 0.6, 0.4, 0.8))
    points = grammar.read('<points x1="40.0" y1="9.1" x2="100.0" y2="0.0" alt="a">a</points>')
    assert [written.values for written in points] == [pytest.approx((0.4, 0.091, 0, 0)), (1.0, 0.0, 0.0, 0.0)]
    assert grammar.read("none") == grammar.read("[0.50, 0.20, 0.50, 1.00]") == []


def test_a_grammar_that_is_none_of_these_is_refused() -> None:
    for spec in ({"form": "circles"}, {"form": "boxes"}, {"form": "boxes", "order": "xyxy", "lead": "\n"}):
        with pytest.raises(ValidationError):
            TypeAdapter(Grammar).validate_python(spec)

/** What needs no browser: where labels go, and what happens to the page's state. */
import { expect, test } from "@playwright/test";
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { zoomed, panned, type Box } from "../src/boxes";
import { placeLabels, versions, type Label } from "../src/labels";
import type { Picture } from "../src/pictures";
import type { Question } from "../src/questions";
import { reduce, START, type Action, type State } from "../src/state";

interface Layout {
  name: string;
  size: [number, number];
  marks: { box_xyxy: Box; is_dot: boolean; is_first: boolean; sizes: [number, number][] }[];
  places: ({ version: number; x: number; y: number; is_led: boolean } | null)[];
}

// the Python side writes it: python -m tests.support.label_layouts
const file = resolve(import.meta.dirname, "../../tests/client/label_layouts.json");
const { layouts, texts } = JSON.parse(readFileSync(file, "utf8")) as {
  layouts: Layout[];
  texts: { asked: [string, number | null, number, number | null]; versions: string[] }[];
};

const sized = ([width, height]: [number, number]) => ({ width, height });

for (const { name, size, marks, places } of layouts)
  test(`labels go where those of the API's own drawing go: ${name}`, () => {
    const found = placeLabels(
      sized(size),
      marks.map(({ box_xyxy, is_dot, is_first, sizes }) => ({
        box: box_xyxy,
        isDot: is_dot,
        isFirst: is_first,
        sizes: sizes.map(sized),
      })),
    );
    const told = (label: Label | null) => label && { version: label.version, is_led: label.isLed };
    const expected = places.map((place) => place && { version: place.version, is_led: place.is_led });
    expect(found.map(told)).toEqual(expected);
    for (const [index, place] of places.entries()) {
      expect(found[index]?.x ?? 0).toBeCloseTo(place?.x ?? 0, 4);
      expect(found[index]?.y ?? 0).toBeCloseTo(place?.y ?? 0, 4);
    }
  });

test("labels say what those of the API's own drawing say", () => {
  for (const { asked, versions: expected } of texts) expect(versions(...asked)).toEqual(expected);
});

const picture = (url: string) => ({ name: "a.jpg", url, width: 10, height: 10 }) as Picture;
const after = (...actions: Action[]): State => actions.reduce(reduce, START);
const typed: Action = { type: "typed", row: 0, text: "the cat" };
const question = (id: number, url = "a"): Question => ({
  id,
  picture: picture(url),
  expressions: ["the cat"],
  isTyped: true,
  models: [],
  options: START.options,
  outcomes: {},
});
const answered = (id: number): Action => ({
  type: "answered",
  id,
  model: "mini",
  outcome: { response: {} as never },
});

test("lines that are pasted become rows, and there is always one", () => {
  expect(after({ type: "typed", row: 0, text: "a\n\n b\n" }).rows).toEqual(["a", " b"]);
  expect(after(typed, { type: "added", text: "" }, { type: "typed", row: 1, text: "x\ny" }).rows).toEqual([
    "the cat",
    "x",
    "y",
  ]);
  expect(after(typed, { type: "removed", row: 0 }).rows).toEqual([""]);
  expect(after({ type: "added", text: "the dog" }).rows).toEqual(["the dog"]);
});

test("what a person typed is known to be, until nothing of it is left", () => {
  expect(after(typed).isTyped).toBe(true);
  expect(after(typed, { type: "typed", row: 0, text: " " }).isTyped).toBe(false);
  expect(after({ type: "filled", rows: ["the cat"] }).isTyped).toBe(false);
});

test("the answer before stays until there is one, and another picture ends both", () => {
  const asked = after({ type: "asked", question: question(1) }, answered(1), {
    type: "asked",
    question: question(1.5),
  });
  expect(asked.shownId).toBe(null); // another picture object
  const again = after({ type: "asked", question: question(1) }, answered(1));
  const same = reduce(again, { type: "asked", question: { ...question(2), picture: again.picture! } });
  expect([same.shownId, same.isAsking]).toEqual([1, true]);
  expect(reduce(same, answered(2)).shownId).toBe(2);
  const other = reduce(same, { type: "shown", picture: picture("b") });
  expect([other.shownId, other.isAsking, other.questions.length]).toEqual([null, false, 2]);
});

test("a view keeps the point that it is zoomed at, and stays inside the picture", () => {
  const [whole, size]: [Box, { width: number; height: number }] = [[0, 0, 200, 100], { width: 200, height: 100 }];
  const closer = zoomed(whole, [50, 25], 2, size)!;
  expect(closer).toEqual([25, 12.5, 125, 62.5]);
  expect(zoomed(closer, [50, 25], 0.5, size)).toBe(null);
  expect(zoomed(whole, [0, 0], 2, size)).toEqual([0, 0, 100, 50]);
  const [x1, , x2] = zoomed(whole, [100, 50], 1e6, size)!;
  expect(x2 - x1).toBeCloseTo(200 / 12);
  expect(panned(closer, [500, -500], size)).toEqual([100, 0, 200, 50]);
});

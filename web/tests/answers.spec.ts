/** Shapes of answers that no shipped model gives: the page's own requests are answered by hand. */
import type { Page } from "@playwright/test";
import { join } from "node:path";
import { contains, type Box, type Point } from "../src/boxes";
import type { Answer, GroundResponse, Model, Referent } from "../src/service";
import {
  ask,
  checkAxe,
  copied,
  expect,
  onScreen,
  picture,
  rows,
  SAMPLES,
  saved,
  test,
  words,
  type Stack,
} from "./stack";

const SCENE = "scene-2.jpg";
const SIZE = { width: 175, height: 288 };
const PHONE = { width: 360, height: 740 };

const NOTHING = { box_xyxy: null, box_cxcywh_normalized: null, point_xy: null };

const boxed = (box_xyxy: Box, score: number | null = null) => ({ ...NOTHING, box_xyxy, score });
const pointed = (point_xy: Point, score: number | null = null) => ({ ...NOTHING, point_xy, score });

/** An answer of the referents, best first. */
function answer(expression: string, places: Omit<Referent, "expression" | "present">[], more: Partial<Answer> = {}) {
  const referents = places.map((place) => ({ expression, present: true, ...place }));
  const best = referents[0] ?? { expression, present: false, score: null, ...NOTHING };
  return { ...best, referents, ...more };
}

/** Serves these models, by their names, in place of mini. They find what is in `answers`, and nothing else. */
async function fake(page: Page, models: Record<string, Partial<Model>>, answers: Record<string, Answer[]>) {
  await page.route("**/v1/models", async (route) => {
    const response = await route.fetch();
    const [mini] = ((await response.json()) as { models: Model[] }).models;
    const entries = Object.entries(models).map(([name, entry], index) => ({
      ...mini!,
      default: index === 0,
      ...entry,
      name,
    }));
    await route.fulfill({ response, json: { models: entries } });
  });
  await page.route("**/v1/ground", async (route) => {
    const form = await new Response(new Uint8Array(route.request().postDataBuffer()!), {
      headers: { "Content-Type": route.request().headers()["content-type"]! },
    }).formData();
    const model = String(form.get("model"));
    const known = new Map(answers[model]!.map((answer) => [answer.expression, answer]));
    const response: GroundResponse = {
      model,
      version: "1",
      digest: "sha256:0",
      image: SIZE,
      results: form.getAll("expression").map((words) => known.get(String(words)) ?? answer(String(words), [])),
      timings_ms: { queue: 1, decode: 1, preprocess: 1, inference: 30, postprocess: 1, total: 34 },
    };
    await route.fulfill({ json: response });
  });
}

/** Asks one model, which answers with these. */
async function answered(page: Page, stack: Stack, model: Partial<Model>, answers: Answer[]) {
  await fake(page, { other: model }, { other: answers });
  await ask(
    page,
    stack,
    SCENE,
    answers.map(({ expression }) => expression),
  );
}

const lines = (page: Page) => page.locator(".box .line");
const points = (page: Page) => page.locator(".point");
const status = (page: Page, text: string | RegExp) => page.getByRole("status").filter({ hasText: text });

for (const [device, size] of [
  ["desktop", { width: 1280, height: 800 }],
  ["phone", PHONE],
] as const) {
  test(`a point is a dot in a ring, where the API says: ${device}`, async ({ page, one }) => {
    await page.setViewportSize(size);
    const places: Point[] = [
      [40, 60],
      [170, 280],
      [0, 0],
    ];
    await answered(
      page,
      one,
      { gives: "points" },
      places.map((point, index) => answer(`thing ${index}`, [pointed(point, 0.9 - index / 10)])),
    );
    await expect(points(page)).toHaveCount(3);
    await expect(lines(page)).toHaveCount(0);
    for (const [index, [x, y]] of places.entries()) {
      const off = async () => {
        const { width, height, ...corner } = (await points(page).nth(index).boundingBox())!;
        const [left, top] = await onScreen(page, [x, y, x, y], SIZE);
        expect(width).toBeGreaterThan(17); // on every screen
        return Math.hypot(corner.x + width / 2 - left, corner.y + height / 2 - top);
      };
      await expect.poll(off).toBeLessThan(1.5);
      await expect(rows(page).nth(index)).toContainText((0.9 - index / 10).toFixed(2));
    }
    await expect(page.getByRole("img", { name: "Points: thing 0, thing 1, thing 2" })).toBeVisible();
    const frame = (await page.locator(".frame").boundingBox())!;
    for (const label of await page.locator(".label").all()) {
      const { x, y, width, height } = (await label.boundingBox())!;
      expect(x).toBeGreaterThanOrEqual(frame.x - 1);
      expect(y).toBeGreaterThanOrEqual(frame.y - 1);
      expect(x + width).toBeLessThanOrEqual(frame.x + frame.width + 1);
      expect(y + height).toBeLessThanOrEqual(frame.y + frame.height + 1);
    }
    expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBe(size.width);
  });
}

test("a point can be pointed at, looked at closely, and told to be in the true box", async ({ page, one }) => {
  const truth: Box = [33, 84, 121, 173];
  const [inside, outside]: Point[] = [
    [80, 130],
    [150, 30],
  ];
  expect(contains(truth, inside!)).toBe(true);
  await answered(page, one, { gives: "points" }, [
    answer("the pumpkin", [pointed(inside!, 0.8)]),
    answer("the swan", [pointed(outside!, 0.7)]),
  ]);
  await points(page).nth(1).hover();
  await expect(rows(page).nth(1)).toHaveClass(/active/);
  await expect(points(page).nth(0)).toHaveClass(/faded/);

  const before = (await picture(page).boundingBox())!.width;
  await page.getByRole("button", { name: "Look closely at the swan" }).click();
  await expect.poll(async () => (await picture(page).boundingBox())!.width).toBeGreaterThan(2 * before);
  await page.keyboard.press("Escape");

  for (const [index, expression, verdict] of [
    [0, "the pumpkin", "inside the true box"],
    [1, "the swan", "outside the true box"],
  ] as const) {
    await page.getByRole("button", { name: `Draw the true box of ${expression}` }).click();
    const [x1, y1, x2, y2] = await onScreen(page, truth, SIZE);
    await page.mouse.move(x1, y1);
    await page.mouse.down();
    await page.mouse.move(x2, y2, { steps: 5 });
    await page.mouse.up();
    await expect(rows(page).nth(index)).toContainText(verdict);
  }
});

for (const [gives, place, marks] of [
  ["boxes", (x: number, score: number | null) => boxed([x, 40, x + 30, 90], score), lines],
  ["points", (x: number, score: number | null) => pointed([x, 60], score), points],
] as const) {
  test(`several referents stand under their expression, best first: ${gives}`, async ({ page, one }) => {
    await answered(page, one, { gives, several: true, present_threshold: 0.3 }, [
      answer("a card", [place(20, 0.91), place(90, 0.75), place(140, 0.4)]),
      answer("the swan", [place(60, 0.6)]),
    ]);
    await expect(page.getByRole("heading", { name: "2 of 2 found" })).toBeVisible();
    await expect(rows(page).nth(0)).toContainText("3 found");
    const places = page.getByRole("list", { name: "Places of a card" }).getByRole("listitem");
    await expect(places).toHaveText([/1\s*0\.91/, /2\s*0\.75/, /3\s*0\.40/]);
    await expect(marks(page)).toHaveCount(4);
    await expect(page.locator(".label")).toHaveText([/1 a card 0\.91/, /^2/, /^3/, /the swan 0\.60/]);
    await expect(rows(page).nth(1).getByRole("list")).toHaveCount(0);
    await expect(status(page, "a card: 3 found, score 0.91")).toHaveCount(1);

    await places.nth(1).hover(); // one of them
    await expect(page.locator(".label:not(.faded)")).toHaveText(/^2/);
    await words(page).first().hover(); // all of them
    await expect(page.locator(".label:not(.faded)")).toHaveCount(3);

    const before = (await picture(page).boundingBox())!.width;
    await page.getByRole("button", { name: "Look closely at a card, place 3 0.40" }).click();
    await expect.poll(async () => (await picture(page).boundingBox())!.width).toBeGreaterThan(2 * before);
    await page.getByRole("button", { name: "Whole picture" }).click();

    await page.getByRole("slider").fill("0.7");
    await expect(page.getByRole("heading", { name: "1 of 2 found" })).toBeVisible();
    await expect(marks(page)).toHaveCount(2);
    await expect(rows(page).nth(0)).toContainText("2 found");
    await expect(places).toHaveCount(2);
    await expect(rows(page).nth(1)).toContainText("not in the picture 0.60");
  });
}

test("many referents without scores fit a phone", async ({ page, one }) => {
  await page.setViewportSize(PHONE);
  const places = Array.from({ length: 64 }, (_, index) => {
    const [x, y] = [(index % 8) * 21, Math.floor(index / 8) * 35];
    return boxed([x + 2, y + 2, x + 19, y + 33]);
  });
  await answered(page, one, { several: true, present_threshold: null }, [answer("a seed", places)]);
  await expect(lines(page)).toHaveCount(64);
  await expect(rows(page).nth(0)).toContainText("64 found");
  await expect(page.getByRole("slider")).toHaveCount(0);
  await expect(page.getByRole("list", { name: "Places of a seed" }).getByRole("listitem")).toHaveCount(64);
  expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBe(PHONE.width);
  await checkAxe(page);
});

test("nothing found has no mark, and nothing to look at", async ({ page, one }) => {
  await answered(page, one, { several: true }, [
    answer("the rocket", [], { score: 0.02 }),
    answer("the comet", []),
    answer("the moon", [], { present: null, text: "[0.90, 0.10, 0.20, 0.30]", finish_reason: "stop" }), // no box
  ]);
  await expect(page.getByRole("heading", { name: "0 of 3 found" })).toBeVisible();
  await expect(rows(page)).toHaveText([
    /the rocket\s*not in the picture 0\.02/,
    /the comet\s*not in the picture/,
    /the moon\s*no place in the answer/,
  ]);
  await expect(page.locator(".box, .point, .label")).toHaveCount(0);
  await expect(page.getByRole("button", { name: "Look closely at the rocket" })).toBeDisabled();
  await page.getByRole("slider").fill("0"); // finds no more
  await expect(page.getByRole("heading", { name: "0 of 3 found" })).toBeVisible();
  await page.getByRole("button", { name: "Draw the true box of the rocket" }).click();
  await page.keyboard.press("ArrowUp");
  await page.keyboard.press("Enter");
  await expect(page.locator(".truth")).toHaveCount(1);
  expect(JSON.parse(await copied(page, "COCO")).annotations).toEqual([]);
});

test("the text of a generator is shown, and how its answer ended", async ({ page, one }) => {
  const long = `<points ${"x1=1 y1=2 ".repeat(40)}>`;
  await answered(page, one, { kind: "generator", present_threshold: 0 }, [
    answer("the pumpkin", [boxed([33, 84, 121, 173], 0.8)], { text: "[0.1, 0.3, 0.5, 0.7]", finish_reason: "stop" }),
    answer("the swan", [boxed([100, 20, 170, 90], 0.5)], { text: long, finish_reason: "length" }),
    answer("the rocket", [], { present: null, finish_reason: "error" }),
    answer("the <b>moon</b>", [], { text: "<img src=x> none", finish_reason: "stop" }),
  ]);
  await expect(page.getByRole("heading", { name: "2 of 4 found" })).toBeVisible();
  await expect(rows(page).nth(0)).toContainText("[0.1, 0.3, 0.5, 0.7]");
  await expect(rows(page).nth(0)).not.toContainText("cut");
  await expect(rows(page).nth(1)).toContainText("the list was cut off at the limit");
  await rows(page).nth(1).locator("summary").click();
  expect((await rows(page).nth(1).locator(".text").innerText()).replaceAll(/[…\s]/g, "")).toBe(
    long.replaceAll(/\s/g, ""),
  );
  await expect(rows(page).nth(2)).toContainText("this expression failed");
  await expect(rows(page).nth(2)).not.toContainText("not in the picture");
  await expect(rows(page).nth(3)).toContainText("<img src=x> none");
  await expect(lines(page)).toHaveCount(2);
  await expect(
    status(page, /the swan: found, score 0\.50, the list was cut off at the limit.*the rocket: this expression failed/),
  ).toHaveCount(1);
});

test("a model of points and one of several boxes are compared", async ({ page, one }) => {
  await fake(
    page,
    {
      pointer: { kind: "generator", gives: "points", present_threshold: 0, knows: "what people point at" },
      finder: { kind: "referents", gives: "boxes", several: true, present_threshold: 0.5 },
    },
    {
      pointer: [
        answer("a card", [pointed([80, 130], 0.8)], { text: "80 130", finish_reason: "stop" }),
        answer("the swan", [], { present: null, finish_reason: "error" }),
      ],
      finder: [
        answer("a card", [boxed([33, 84, 121, 173], 0.9), boxed([110, 20, 170, 80], 0.7)]),
        answer("the swan", []),
      ],
    },
  );
  await page.goto(one.url);
  await expect(
    page.getByText("pointer knows what people point at. It gives one point for each expression."),
  ).toBeVisible();
  await page.getByRole("checkbox", { name: "finder" }).check();
  await page.getByLabel("Picture file").setInputFiles(join(SAMPLES, SCENE));
  await words(page).first().fill("a card\nthe swan");
  await page.getByRole("button", { name: "Find" }).click();
  const figure = (model: string) => page.getByRole("figure").filter({ hasText: model });
  await expect(figure("pointer").locator(".point")).toHaveCount(1);
  await expect(figure("finder").locator(".line")).toHaveCount(2);
  await expect(rows(page).nth(1)).toHaveText(/pointer\s*this expression failed\s*finder\s*not in the picture/);
  await page.getByLabel("All models on one picture").check();
  await expect(page.getByRole("img", { name: "Boxes: a card. Points: a card" })).toBeVisible();
  const colours = await page
    .locator(".line, .point")
    .evaluateAll((marks) => marks.map((mark) => getComputedStyle(mark)[mark.matches(".point") ? "color" : "stroke"]));
  expect(new Set(colours).size).toBe(2);
  await page.locator("summary", { hasText: "pointer" }).click();
  await expect(page.getByText("Gives one point for each expression. Knows: what people point at")).toBeVisible();

  await page.getByRole("button", { name: "Sample 1" }).click(); // and back by the visit's history
  await page.getByRole("button", { name: `${SCENE}: a card, the swan` }).click();
  await expect(page.locator(".line, .point")).toHaveCount(3);
});

test("a model may give boxes or points, as it is asked", async ({ page, one }) => {
  const gives = "boxes or points";
  await fake(page, { one: { gives }, all: { gives, several: true } }, {});
  await page.goto(one.url);
  await expect(page.getByText("It gives one box or point for each expression.")).toBeVisible();
  await page.getByRole("checkbox", { name: "all several boxes or points" }).check();
  await expect(page.getByText("It gives any number of boxes or points for each expression.")).toBeVisible();
});

test("what is copied has every referent, points too", async ({ page, one }) => {
  const card: Box[] = [
    [10, 20, 40, 60],
    [100, 20, 130, 70],
  ];
  const answers = [
    answer("a card", [boxed(card[0]!, 0.9), boxed(card[1]!, 0.4)]),
    answer("the swan", [pointed([150, 30], null)]),
    answer("the rocket", []),
  ];
  await answered(page, one, { several: true, present_threshold: 0.3 }, answers);
  expect(JSON.parse(await copied(page, "JSON")).results).toEqual(answers);
  const coco = JSON.parse(await copied(page, "COCO"));
  const common = { image_id: 1, iscrowd: 0, model: "other" };
  const box = { ...common, category_id: 1, keypoints: [0, 0, 0], num_keypoints: 0 };
  const first = { ...box, id: 1, bbox: [10, 20, 30, 40], area: 1200, score: 0.9 };
  const swan = { ...common, category_id: 2, bbox: [150, 30, 0, 0], area: 0, keypoints: [150, 30, 2], num_keypoints: 1 };
  expect(coco.annotations).toEqual([
    first,
    { ...box, id: 2, bbox: [100, 20, 30, 50], area: 1500, score: 0.4 },
    { ...swan, id: 3 },
  ]);
  expect(coco.categories).toEqual([
    { id: 1, name: "a card" },
    { id: 2, name: "the swan", keypoints: ["point"], skeleton: [] },
    { id: 3, name: "the rocket" },
  ]);
  await page.getByRole("slider").fill("0.5");
  expect(JSON.parse(await copied(page, "COCO")).annotations).toEqual([first, { ...swan, id: 2 }]);
  expect(await copied(page, "Python")).toContain("referent.box_xyxy or referent.point_xy");
  for (const command of ["curl", "Python"]) expect(await copied(page, command)).not.toContain("max_instances");
});

test("a limit and a heat map are asked for where the model has them", async ({ page, one }) => {
  const cells = Array.from({ length: 6 }, (_, y) => Array.from({ length: 6 }, (_, x) => (x === 4 && y === 1 ? 1 : 0)));
  const warm = { heatmap: cells, heatmap_xyxy: [-56.5, 0, 231.5, 288] };
  const answers = [answer("the cards", [boxed([10, 20, 40, 60], 0.9)], warm), answer("the swan", [])];
  await answered(page, one, { several: true, heatmaps: true, knows: `${"many things and ".repeat(20)}more` }, answers);
  const asked = page.waitForRequest("**/v1/ground");
  await page.getByLabel("At most").fill("5");
  await page.getByLabel("Show where it looked").check(); // and asks again
  const form = await new Response(new Uint8Array((await asked).postDataBuffer()!), {
    headers: { "Content-Type": (await asked).headers()["content-type"]! },
  }).formData();
  expect([form.get("max_instances"), form.get("heatmap")]).toEqual(["5", "true"]);
  await expect(page.locator("canvas.heat")).toHaveCount(1);
  await page.getByLabel("At most").fill("7"); // not asked yet
  expect(await copied(page, "curl")).toContain("-F max_instances=5");
  expect(await copied(page, "Python")).toContain(", model=model, max_instances=5)");
  const [x1, y1, x2, y2] = await onScreen(page, [-56.5, 0, 231.5, 288], SIZE);
  const heat = (await page.locator("canvas.heat").boundingBox())!;
  for (const [side, expected] of [
    [heat.x, x1],
    [heat.y, y1],
    [heat.width, x2 - x1],
    [heat.height, y2 - y1],
  ] as const)
    expect(Math.abs(side - expected)).toBeLessThan(1);
  await expect(page.getByText("knows many things and")).toBeVisible();
  await page.getByText("Everything it knows").click();
  await expect(page.locator("form details[open]")).toContainText("and more");
  expect((await saved(page, "PNG")).content.length).toBeGreaterThan(10_000);
});

test("where there is no room for words, labels are numbers, and rows have the same", async ({ page, one }) => {
  const long = (index: number) => `the one of many things in the middle, that has the number ${index}`;
  const answers = Array.from({ length: 14 }, (_, index) => answer(long(index), [boxed([80, 140, 90, 150], 0.5)]));
  await page.setViewportSize(PHONE);
  await answered(page, one, {}, answers);
  const labels = page.locator(".label");
  await expect(labels).toHaveCount(14);
  const boxes = await Promise.all((await labels.all()).map(async (label) => (await label.boundingBox())!));
  for (const [index, a] of boxes.entries())
    for (const b of boxes.slice(index + 1))
      expect(a.x + a.width <= b.x + 1 || b.x + b.width <= a.x + 1 || a.y + a.height <= b.y + 1 || b.y + b.height <= a.y + 1).toBe(true); // prettier-ignore
  await expect(rows(page).nth(13).locator(".number")).toHaveText("14");
  const { content } = await saved(page, "PNG");
  expect(content.readUInt32BE(20)).toBeGreaterThan(SIZE.height); // a legend below
});

for (const colorScheme of ["light", "dark"] as const) {
  test(`axe finds nothing serious in any kind of answer: ${colorScheme}`, async ({ page, one }) => {
    await page.emulateMedia({ colorScheme });
    await answered(page, one, { gives: "points", several: true, knows: "what people point at" }, [
      answer("a card", [pointed([80, 130], 0.8), pointed([160, 30], 0.6)], { text: "80 130", finish_reason: "length" }),
      answer("the moon", [pointed([20, 30], 0.6)], { text: "none ".repeat(60), finish_reason: "stop" }),
      answer("the swan", [], { present: null, finish_reason: "error" }),
      answer("the rocket", [], { score: 0.1 }),
    ]);
    await checkAxe(page);
    await page.getByRole("list", { name: "Places of a card" }).getByRole("button").first().focus();
    await rows(page).nth(1).locator("summary").click();
    await checkAxe(page);
  });
}

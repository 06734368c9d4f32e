/** The page in a real browser against the real service. */
import type { Locator, Page } from "@playwright/test";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { iou, type Box } from "../src/boxes";
import { ask, BIN, ROOT, checkAxe, copied, expect, onScreen, picture, rows, SAMPLES, test, words } from "./stack";

const SCENE = "scene-2.jpg";
const WORDS = ["the pumpkin", "the swan", "the truck"]; // the last one is not there

const lines = (page: Page) => page.locator(".box .line");
const notice = (page: Page) => page.getByRole("alert");

async function corners(box: Locator): Promise<Box> {
  const { x, y, width, height } = (await box.boundingBox())!;
  return [x, y, x + width, y + height];
}

/** The JPEG with an EXIF orientation, as phones write it. */
function oriented(jpeg: Buffer, orientation: number): Buffer {
  const tiff = [0x4d, 0x4d, 0, 42, 0, 0, 0, 8, 0, 1, 0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0, 0, 0, 0, 0];
  const segment = [...Buffer.from("Exif\0\0"), ...tiff];
  return Buffer.concat([
    jpeg.subarray(0, 2),
    Buffer.from([0xff, 0xe1, 0, segment.length + 2, ...segment]),
    jpeg.subarray(2),
  ]);
}

for (const [shape, image, words] of [
  ["tall", SCENE, ["the pumpkin", "the swan"]],
  ["wide", "scene-3.jpg", ["the peach", "the turtle"]],
  ["turned by its EXIF", oriented(readFileSync(join(SAMPLES, SCENE)), 6), ["the pumpkin"]],
] as const) {
  test(`boxes are on the screen where the API says: ${shape}`, async ({ page, one }) => {
    await ask(page, one, image as string | Buffer, [...words]);
    await page.getByRole("slider").fill("0"); // all of them, sure or not
    const answer = await one.ask(image as string | Buffer, [...words]);
    for (const [index, found] of answer.results.entries()) {
      const shown = await corners(page.locator(`[data-expression="${index}"] .line`));
      const expected = await onScreen(page, found.box_xyxy as Box, answer.image);
      for (const side of [0, 1, 2, 3]) expect(Math.abs(shown[side]! - expected[side]!)).toBeLessThan(5);
      await expect(rows(page).nth(index)).toContainText(found.score!.toFixed(2));
    }
  });
}

test("colours are those of the API's own drawing", async ({ page, one }) => {
  const words = ["the motorcycle", "the peach"];
  await ask(page, one, "scene-3.jpg", words);
  const { results } = await one.ask("scene-3.jpg", words);
  const body = new FormData();
  body.append("image", new Blob([readFileSync(join(SAMPLES, "scene-3.jpg"))]));
  for (const expression of words) body.append("expression", expression);
  const drawn = await fetch(`${one.url}/v1/ground`, { method: "POST", body, headers: { Accept: "image/png" } });
  const png = Buffer.from(await drawn.arrayBuffer()).toString("base64");
  for (const [index, { box_xyxy }] of results.entries()) {
    const [x1, y1, , y2] = box_xyxy as Box;
    const pixel = await page.evaluate(
      async ([png, x, y]) => {
        const image = new Image();
        image.src = `data:image/png;base64,${png}`;
        await image.decode();
        const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d")!;
        pen.drawImage(image, -x, -y);
        return `rgb(${[...pen.getImageData(0, 0, 1, 1).data.slice(0, 3)].join(", ")})`;
      },
      [png, Math.round(x1), Math.round((y1 + y2) / 2)] as const,
    );
    await expect(lines(page).and(page.locator(`[data-expression="${index}"] *`))).toHaveCSS("stroke", pixel);
  }
});

test("what is not in the picture is said, and has no box", async ({ page, one }) => {
  await ask(page, one, SCENE, WORDS);
  await expect(page.getByRole("heading", { name: "2 of 3 found" })).toBeVisible();
  await expect(rows(page).nth(2)).toContainText("not in the picture");
  await expect(lines(page)).toHaveCount(2);
  await expect(page.getByRole("status").filter({ hasText: "the truck: not in the picture" })).toHaveCount(1);
});

for (const way of ["a file", "a sample"]) {
  test(`words that are typed while the picture of ${way} is read stay`, async ({ page, one }) => {
    await page.addInitScript(() => {
      const decode = Image.prototype.decode;
      const isReleased = new Promise<void>((resolve) => addEventListener("released", () => resolve()));
      Image.prototype.decode = async function () {
        await isReleased;
        return decode.call(this);
      };
    });
    await page.goto(one.url);
    if (way === "a file") await page.getByLabel("Picture file").setInputFiles(join(SAMPLES, SCENE));
    else await page.getByRole("button", { name: "Sample 2" }).click();
    await words(page).first().fill("the swan");
    await page.evaluate(() => dispatchEvent(new Event("released")));
    await expect(page.getByRole("button", { name: "Find" })).toBeEnabled();
    await expect(words(page)).toHaveCount(1);
    await expect(words(page).first()).toHaveValue("the swan");
  });
}

test("the threshold starts at the model's own and decides what is in the picture", async ({ page, one }) => {
  const { models } = await (await fetch(`${one.url}/v1/models`)).json();
  await ask(page, one, SCENE, WORDS);
  const slider = page.getByRole("slider");
  expect(Number(await slider.inputValue())).toBeCloseTo(models[0].present_threshold, 2);
  await slider.fill("1");
  await expect(page.getByRole("heading", { name: "0 of 3 found" })).toBeVisible();
  await expect(lines(page)).toHaveCount(0);
  await slider.fill("0");
  await expect(lines(page)).toHaveCount(3);
  await page.getByRole("button", { name: "Reset" }).click();
  await expect(lines(page)).toHaveCount(2);
});

test("list and boxes point at each other", async ({ page, one }) => {
  await ask(page, one, SCENE, WORDS);
  await rows(page).nth(0).hover();
  await expect(page.locator('.box[data-expression="1"]')).toHaveClass(/faded/);
  await expect(page.locator('.box[data-expression="0"]')).not.toHaveClass(/faded/);
  await page.locator('.box[data-expression="1"] .line').hover();
  await expect(rows(page).nth(1)).toHaveClass(/active/);
});

test("a small box can be looked at closely", async ({ page, one }) => {
  await ask(page, one, "scene-4.jpg", ["the hedgehog", "the bear"]);
  const small = page.locator('.box[data-expression="0"] .line');
  const before = (await small.boundingBox())!.width;
  await page.getByRole("button", { name: "Look closely at the hedgehog" }).click();
  await expect.poll(async () => (await small.boundingBox())!.width).toBeGreaterThan(3 * before);
  await page.getByRole("button", { name: "Whole picture" }).click();
  await expect.poll(async () => (await small.boundingBox())!.width).toBeCloseTo(before, 0);
});

for (const zoom of ["whole", "part"]) {
  test(`a true box drawn by hand gives the IoU: on the ${zoom} picture`, async ({ page, one }) => {
    await ask(page, one, SCENE, WORDS);
    const truth: Box = [33, 84, 121, 173]; // of tests/samples/samples.json
    const { results, image } = await one.ask(SCENE, WORDS);
    if (zoom === "part") await page.getByRole("button", { name: "Look closely at the pumpkin" }).click();
    await page.getByRole("button", { name: "Draw the true box of the pumpkin" }).click();
    const [x1, y1, x2, y2] = await onScreen(page, truth, image);
    await page.mouse.move(x1, y1);
    await page.mouse.down();
    await page.mouse.move(x2, y2, { steps: 5 });
    await page.mouse.up();
    const shown = /IoU (\d\.\d\d)/.exec(await rows(page).nth(0).innerText())![1];
    expect(Math.abs(Number(shown) - iou(truth, results[0]!.box_xyxy as Box))).toBeLessThan(0.02);
    await expect(rows(page).nth(1)).not.toContainText("IoU");
    await page.getByRole("button", { name: "Remove the true box of the pumpkin" }).click();
    await expect(rows(page).nth(0)).not.toContainText("IoU");
  });
}

test("two models are compared, side by side and on one picture", async ({ page, two }) => {
  await page.goto(two.url);
  await page.getByRole("checkbox", { name: "strict" }).check();
  await page.getByLabel("Picture file").setInputFiles(join(SAMPLES, SCENE));
  await words(page).first().fill("the pumpkin\nthe swan");
  await expect(page.getByRole("button", { name: "Find" })).toBeEnabled();
  await page.keyboard.press("Enter");
  await expect(page.locator("[data-model=strict].score").first()).toBeVisible();
  await expect(page.getByRole("figure")).toHaveText([/^mini/, /^strict/]);
  for (const model of ["mini", "strict"]) {
    const { results } = await two.ask(SCENE, ["the pumpkin", "the swan"], model);
    const there = results.filter(({ present }) => present).length;
    await expect(page.getByRole("figure").filter({ hasText: model }).locator(".line")).toHaveCount(there);
    for (const [index, found] of results.entries()) {
      const score = rows(page).nth(index).locator(`[data-model=${model}]`);
      await expect(score).toContainText(found.score!.toFixed(2));
      if (found.present) await expect(score).not.toContainText("not in the picture");
      else await expect(score).toContainText("not in the picture");
    }
  }
  const strokes = await lines(page).evaluateAll((all) => new Set(all.map((line) => line.getAttribute("stroke"))).size);
  expect(strokes).toBe(2);
  await page.getByLabel("All models on one picture").check();
  await expect(page.getByRole("figure")).toHaveCount(1);
  await expect(page.locator(".timings h3")).toHaveText([/mini/, /strict/]);
});

test("figures and names of the models are those that the service gives", async ({ page, two }) => {
  const { models } = await (await fetch(`${two.url}/v1/models`)).json();
  await page.goto(two.url);
  for (const { name, version, evaluation } of models) {
    const details = page.getByRole("group").filter({ hasText: `${name} version ${version}` });
    await details.locator("summary").click();
    const sets: [string, Record<string, number>][] = Object.entries(evaluation);
    expect(sets.length).toBeGreaterThan(0);
    await expect(details.getByRole("row", { name: "mean iou" }).getByRole("cell")).toHaveText(
      sets.map(([, figures]) => figures.mean_iou!.toFixed(3)),
    );
  }
});

test("stages of the time are those of the answer", async ({ page, one }) => {
  const answered = page.waitForResponse(/ground/);
  await ask(page, one, SCENE, WORDS);
  const { total, ...stages } = (await (await answered).json()).timings_ms;
  await expect(page.locator(".timings h3")).toContainText(`${total < 10 ? total.toFixed(1) : total.toFixed(0)} ms`);
  await expect(page.locator(".timings li")).toHaveText(Object.keys(stages).map((stage) => new RegExp(stage)));
});

test("files are pasted, dropped, and taken by the camera", async ({ page, one }) => {
  await page.goto(one.url);
  for (const type of ["paste", "drop"]) {
    await page.evaluate(
      async ([type, base64]) => {
        const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], `${type}.jpg`, { type: "image/jpeg" }));
        const event =
          type === "paste"
            ? new ClipboardEvent(type, { clipboardData: transfer, bubbles: true, cancelable: true })
            : new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true });
        document.body.dispatchEvent(event);
      },
      [type, readFileSync(join(SAMPLES, SCENE)).toString("base64")] as const,
    );
    await expect(picture(page)).toHaveAccessibleName(`The picture, ${type}.jpg`);
  }
  await page.getByRole("button", { name: "Camera", exact: true }).click();
  await page.getByRole("button", { name: "Take the picture" }).click();
  await expect(picture(page)).toHaveAccessibleName("The picture, camera.jpg");
});

test("a picture taken while another is asked about stays", async ({ page, one }) => {
  await ask(page, one, SCENE, WORDS);
  let release = () => {};
  await page.route("**/v1/ground", async (route) => {
    await new Promise<void>((resolve) => (release = resolve));
    await route.continue().catch(() => {}); // the page has given it up
  });
  await page.getByRole("button", { name: "Find" }).click();
  await expect(page.getByRole("button", { name: "Looking…" })).toBeVisible();
  await expect(page.getByRole("heading", { name: "2 of 3 found" })).toBeVisible(); // the answer before
  await page.getByLabel("Picture file").setInputFiles(join(SAMPLES, "scene-1.jpg"));
  await expect(page.getByRole("button", { name: "Find" })).toBeVisible();
  release();
  await expect(picture(page)).toHaveAccessibleName("The picture, scene-1.jpg");
  await expect(page.getByRole("heading", { name: "What to look for" })).toBeVisible();
});

test("the visit is remembered", async ({ page, one }) => {
  await ask(page, one, SCENE, WORDS);
  await page.getByRole("button", { name: "Sample 3" }).click();
  await expect(page.getByRole("button", { name: "scene-3.jpg: " })).toHaveAttribute("aria-current", "true");
  await page.getByRole("button", { name: `${SCENE}: ${WORDS.join(", ")}` }).click();
  await expect(rows(page)).toHaveCount(WORDS.length);
  for (const [index, expression] of WORDS.entries()) await expect(words(page).nth(index)).toHaveValue(expression);
  await expect(lines(page)).toHaveCount(2);
});

test("what is copied is the answer, and commands that give it again", async ({ page, one }) => {
  await ask(page, one, SCENE, WORDS);
  const answer = await one.ask(SCENE, WORDS);
  const near = (box: number[], other: number[]) => box.forEach((side, i) => expect(side).toBeCloseTo(other[i]!, 0));

  const json = JSON.parse(await copied(page, "JSON"));
  expect(json.results.map(({ expression }: { expression: string }) => expression)).toEqual(WORDS);
  near(json.results[0].box_xyxy, answer.results[0]!.box_xyxy!);

  const coco = JSON.parse(await copied(page, "COCO"));
  expect(coco.images).toEqual([{ id: 1, file_name: SCENE, ...answer.image }]);
  expect(coco.categories).toEqual(WORDS.map((name, index) => ({ id: index + 1, name })));
  expect(coco.annotations.map(({ category_id }: { category_id: number }) => category_id)).toEqual([1, 2]);
  expect(coco.annotations[0]).not.toHaveProperty("keypoints");
  const [x1, y1, x2, y2] = answer.results[1]!.box_xyxy as Box;
  near(coco.annotations[1].bbox, [x1, y1, x2 - x1, y2 - y1]);

  const curl = execFileSync("bash", ["-c", await copied(page, "curl")], { cwd: SAMPLES, encoding: "utf8" });
  near(JSON.parse(curl).results[0].box_xyxy, answer.results[0]!.box_xyxy!);
  const python = execFileSync(join(BIN, "python"), ["-c", await copied(page, "Python")], {
    cwd: SAMPLES,
    encoding: "utf8",
  });
  expect(python).toContain("mini the pumpkin (");
});

test("copying works where browsers withhold the clipboard, over plain http", async ({ page, one }) => {
  await page.addInitScript(() => Object.defineProperty(navigator, "clipboard", { value: undefined }));
  await ask(page, one, SCENE, WORDS);
  await page.getByRole("group", { name: "Copy as" }).getByRole("button", { name: "JSON" }).click();
  await words(page).first().focus();
  await page.keyboard.press("ControlOrMeta+a");
  await page.keyboard.press("ControlOrMeta+v"); // a row for each line
  const typed = () => words(page).evaluateAll((fields) => fields.map((field) => (field as HTMLTextAreaElement).value));
  await expect.poll(async () => (await typed()).join()).toContain('"digest": "sha256:');
});

test("what is no picture is refused in plain words", async ({ page, one }) => {
  await page.goto(one.url);
  await page
    .getByLabel("Picture file")
    .setInputFiles({ name: "notes.txt", mimeType: "text/plain", buffer: Buffer.from("x") });
  await expect(notice(page)).toHaveText(
    "notes.txt can't be shown as a picture. Choose a JPEG, PNG, WebP or AVIF file.",
  );
});

test("a problem of the service is shown with what to do", async ({ page, one }) => {
  await page.goto(one.url);
  const gif = Buffer.from("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7", "base64"); // browsers show it
  await page.getByLabel("Picture file").setInputFiles({ name: "dot.gif", mimeType: "image/gif", buffer: gif });
  await words(page).first().fill("the dot");
  await page.getByRole("button", { name: "Find" }).click();
  await expect(notice(page)).toContainText("Not an image of a supported format");
  await expect(notice(page)).toContainText("Change the picture or the words");
  await expect(notice(page)).toContainText("request ");
  await page.getByRole("button", { name: "Sample 1" }).click(); // and the next is answered
  await expect(page.getByRole("heading", { name: /found/ })).toBeVisible();
});

test("a service that goes away is said to be, and found again", async ({ page, start }) => {
  const first = await start();
  await ask(page, first, SCENE, WORDS);
  await first.stop();
  await page.getByRole("button", { name: "Find" }).click();
  await expect(notice(page)).toContainText("No answer from the service");
  await start({}, undefined, first.port);
  await expect(page.getByRole("region", { name: "Picture" }).getByRole("alert")).toHaveCount(0);
  await page.getByRole("button", { name: "Try again" }).click();
  await expect(page.getByRole("heading", { name: "2 of 3 found" })).toBeVisible();
});

test("a key is asked for, and Retry-After is waited for", async ({ page, start }) => {
  const file = join(mkdtempSync(join(tmpdir(), "referent-")), "keys");
  const key = execFileSync(join(BIN, "python"), ["-m", "gateway.keys", "me", "--file", file], {
    cwd: ROOT,
    encoding: "utf8",
  });
  const stack = await start({ REFERENT_KEYS_FILE: file, REFERENT_RATE_LIMIT: "1/3second" });
  await page.goto(stack.url);
  await expect(notice(page)).toContainText("A key is needed");
  await page.getByLabel("Key").fill(key.trim());
  await page.getByRole("button", { name: "Use it" }).click();
  await page.getByRole("button", { name: "Sample 1" }).click();
  await expect(page.getByRole("heading", { name: /found/ })).toBeVisible();
  await page.getByRole("button", { name: "Find" }).click();
  await expect(notice(page)).toContainText("Too many requests");
  await expect(page.getByRole("button", { name: /Try again in \d s/ })).toBeDisabled();
  await page.getByRole("button", { name: "Try again", exact: true }).click();
  await expect(page.getByRole("heading", { name: /found/ })).toBeVisible();
});

test("all of it works by keys, with the focus in sight", async ({ page, one }) => {
  await page.goto(one.url);
  await expect(page.getByText("mini version")).toBeVisible();
  const go = async (name: string | RegExp, role: "button" | "textbox" | "slider" = "button") => {
    const target = page.getByRole(role, { name }).first();
    for (let presses = 0; presses < 60; presses++) {
      if (await target.evaluate((element) => element === document.activeElement)) {
        await expect(target).toHaveCSS("outline-style", "solid");
        return;
      }
      await page.keyboard.press("Tab");
    }
    throw new Error(`no way to ${name} by keys`);
  };
  await go(/^Sample 2/);
  await page.keyboard.press("Enter");
  await expect(page.getByRole("heading", { name: /found/ })).toBeVisible();
  for (let count = 5; count > 1; count--) {
    await go("What to look for, 1", "textbox");
    await page.keyboard.press("ControlOrMeta+a");
    await page.keyboard.press("Backspace");
    await page.keyboard.press("Backspace"); // and the empty row
    await expect(rows(page)).toHaveCount(count - 1);
  }
  await page.keyboard.press("ControlOrMeta+a");
  await page.keyboard.type("the pumpkin");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("the swan");
  await page.keyboard.press("Enter");
  await expect(page.getByRole("heading", { name: "2 of 2 found" })).toBeVisible();
  await go("Look closely at the swan");
  await page.keyboard.press("Enter");
  await expect(page.getByRole("button", { name: "Whole picture" })).toBeVisible();
  await page.keyboard.press("Escape");
  await expect(page.getByRole("button", { name: "Whole picture" })).toHaveCount(0);
  await go("Draw the true box of the swan");
  await page.keyboard.press("Enter");
  for (const press of ["ArrowUp", "ArrowRight", "Shift+ArrowLeft", "Shift+ArrowUp", "Enter"])
    await page.keyboard.press(press);
  await expect(rows(page).nth(1)).toContainText("IoU");
  await go(/Lowest score that counts as found/, "slider");
  await page.keyboard.press("End");
  await expect(page.getByRole("heading", { name: "0 of 2 found" })).toBeVisible();
});

test("it fits a phone", async ({ page, two }) => {
  await page.setViewportSize({ width: 360, height: 740 });
  const fits = async () => expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBe(360);
  await page.goto(two.url);
  await expect(page.getByText("mini version")).toBeVisible();
  await fits();
  await page.getByRole("checkbox", { name: "strict" }).check();
  await page.getByRole("button", { name: "Sample 4" }).click();
  await expect(page.locator("[data-model=strict].score").first()).toBeVisible();
  await page.getByText("mini version").click();
  await fits();
  await words(page).first().fill("long".repeat(60));
  await page.getByRole("button", { name: "Find" }).click();
  await expect(page.getByRole("button", { name: "Find" })).toBeVisible();
  await fits();
});

for (const colorScheme of ["light", "dark"] as const) {
  test(`axe finds nothing serious: ${colorScheme}`, async ({ page, two }) => {
    await page.emulateMedia({ colorScheme });
    await page.goto(two.url);
    await expect(page.getByText("mini version")).toBeVisible();
    await checkAxe(page);
    await page.getByRole("button", { name: "Sample 2" }).click();
    await expect(page.getByRole("heading", { name: /found/ })).toBeVisible();
    await page.getByText("mini version").click();
    await page
      .getByRole("button", { name: /^Draw the true box/ })
      .first()
      .click();
    await checkAxe(page);
    await page.getByRole("checkbox", { name: "strict" }).check();
    await page.getByRole("button", { name: "Find" }).click();
    await expect(page.getByRole("figure")).toHaveCount(2);
    await page
      .getByLabel("Picture file")
      .setInputFiles({ name: "a.txt", mimeType: "text/plain", buffer: Buffer.from("x") });
    await expect(notice(page)).toBeVisible();
    await checkAxe(page);
  });
}

test("the theme follows the system unless one is chosen", async ({ page, one }) => {
  await page.emulateMedia({ colorScheme: "dark" });
  await page.goto(one.url);
  const ground = () => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
  const dark = await ground();
  await page.getByLabel("Theme").selectOption("light");
  expect(await ground()).not.toBe(dark);
  await page.reload();
  expect(await ground()).not.toBe(dark);
});

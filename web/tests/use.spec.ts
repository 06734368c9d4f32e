/** What people do with the page: on phones, with wheel and fingers, with files to take away. */
import type { Page } from "@playwright/test";
import { unzipSync } from "fflate";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { ask, checkAxe, expect, picture, rows, SAMPLES, saved, test, words } from "./stack";

const SCENE = "scene-2.jpg";
const SIZE = { width: 175, height: 288 };
const WORDS = ["the pumpkin", "the swan", "the truck"]; // the last one is not there
const notice = (page: Page) => page.getByRole("alert");
const width = async (page: Page) => (await picture(page).boundingBox())!.width;

test.describe("on a phone", () => {
  test.use({ viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true });

  test("a photograph, two expressions, a look and a PNG take six taps", async ({ page, one }) => {
    await page.goto(one.url);
    await expect(page.getByText("Tap to choose a picture")).toBeVisible();
    let taps = 0;
    const tap = async (name: string | RegExp) => {
      await page.getByRole("button", { name, exact: true }).tap();
      taps++;
    };
    await tap("Camera");
    await tap("Take the picture");
    await words(page).first().tap();
    taps++;
    await page.keyboard.type("the clock");
    await tap("Add an expression");
    await page.keyboard.type("the swan");
    await page.keyboard.press("Enter"); // of the phone's own keyboard
    taps++;
    await expect(page.getByRole("heading", { name: /of 2 found/ })).toBeVisible();
    await expect(words(page).first()).not.toBeFocused(); // the keyboard is gone
    for (const seen of [picture(page), rows(page).nth(0), rows(page).nth(1)]) await expect(seen).toBeInViewport();
    const downloading = page.waitForEvent("download");
    await tap("PNG");
    expect((await downloading).suggestedFilename()).toBe("camera.png");
    expect(taps).toBe(6);
  });

  test("picture and answers are seen together, and fields say what their key does", async ({ page, one }) => {
    await ask(page, one, SCENE, WORDS);
    for (const seen of [picture(page), ...(await rows(page).all())]) await expect(seen).toBeInViewport();
    await expect(words(page).first()).toHaveAttribute("enterkeyhint", "search");
    expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBe(360);
    await checkAxe(page);
  });

  test("two fingers zoom, one moves what is zoomed", async ({ page, one }) => {
    await ask(page, one, SCENE, WORDS);
    const before = await width(page);
    const { x, y, ...size } = (await page.locator(".frame").boundingBox())!;
    const middle = { x: x + size.width / 2, y: y + size.height / 2 };
    const browser = await page.context().newCDPSession(page);
    const touch = (type: "touchStart" | "touchMove" | "touchEnd", ...apart: number[]) =>
      browser.send("Input.dispatchTouchEvent", {
        type,
        touchPoints: apart.map((dx, id) => ({ x: middle.x + dx, y: middle.y, id })),
      });
    await touch("touchStart", -20, 20);
    for (const apart of [30, 40, 50, 60]) await touch("touchMove", -apart, apart);
    await touch("touchEnd");
    await expect.poll(() => width(page)).toBeGreaterThan(2 * before);
    const left = (await picture(page).boundingBox())!.x;
    await touch("touchStart", 0);
    for (const moved of [10, 20, 30]) await touch("touchMove", moved);
    await touch("touchEnd");
    await expect.poll(async () => (await picture(page).boundingBox())!.x).toBeGreaterThan(left + 20);
  });
});

test("the wheel zooms at the pointer, dragging moves, a double click shows all again", async ({ page, one }) => {
  await ask(page, one, SCENE, WORDS);
  const before = (await picture(page).boundingBox())!;
  const at = { x: before.x + before.width / 4, y: before.y + before.height / 4 };
  await page.mouse.move(at.x, at.y);
  await page.mouse.wheel(0, -400);
  await expect.poll(() => width(page)).toBeGreaterThan(1.5 * before.width);
  const zoomed = (await picture(page).boundingBox())!;
  expect((at.x - zoomed.x) / zoomed.width).toBeCloseTo(0.25, 1); // what was under the pointer is there still
  await page.mouse.down();
  await page.mouse.move(at.x - 40, at.y - 30, { steps: 4 });
  await page.mouse.up();
  const moved = (await picture(page).boundingBox())!;
  expect(moved.x - zoomed.x).toBeCloseTo(-40, 0);
  expect(moved.y - zoomed.y).toBeCloseTo(-30, 0);
  await page.mouse.dblclick(at.x, at.y);
  await expect.poll(() => width(page)).toBeCloseTo(before.width, 0);
  await page.getByRole("button", { name: "Zoom in" }).click();
  await expect.poll(() => width(page)).toBeGreaterThan(1.4 * before.width);
  await page.getByRole("button", { name: "Whole picture" }).click();
  await expect(page.getByRole("button", { name: "Zoom out" })).toBeDisabled();
});

test("a sample fills empty rows, and never takes the place of typed words", async ({ page, one }) => {
  await page.goto(one.url);
  await page.getByRole("button", { name: "Sample 2" }).click();
  await expect(words(page).first()).toHaveValue("the syringe");
  await page.getByRole("button", { name: "Sample 4" }).click(); // a sample's words make room for another's
  await expect(words(page).first()).not.toHaveValue("the syringe");
  for (let count = await rows(page).count(); count > 1; count--)
    await page
      .getByRole("button", { name: /^Remove/ })
      .last()
      .click();
  await words(page).fill("the medal of my aunt");
  await page.getByRole("button", { name: "Sample 2" }).click();
  await expect(page.getByRole("heading", { name: "of 1 found" })).toBeVisible();
  await expect(picture(page)).toHaveAccessibleName(/scene-2/);
  await expect(words(page)).toHaveValue("the medal of my aunt");
  await page.getByRole("group", { name: "Words that work here" }).getByRole("button", { name: "the swan" }).click();
  await expect(words(page).nth(1)).toHaveValue("the swan");
});

test("there is a sample like a photograph, and one of several things of a name", async ({ page, one }) => {
  await page.goto(one.url);
  await page.getByRole("button", { name: /^Sample 7/ }).click();
  await expect(page.getByRole("heading", { name: /[45] of 5 found/ })).toBeVisible();
  await page.getByRole("button", { name: /^Sample 8/ }).click();
  await expect(words(page).first()).toHaveValue("the leftmost cat"); // mini gives one
  await expect(page.getByRole("heading", { name: /[234] of 4 found/ })).toBeVisible();
});

test("the address of a picture is answered with what to do", async ({ page, one }) => {
  await page.goto(one.url);
  for (const [type, target] of [
    ["paste", "body"],
    ["drop", "body"],
    ["paste", "textarea"],
  ] as const) {
    await page.evaluate(
      ([type, target]) => {
        const transfer = new DataTransfer();
        transfer.setData("text/plain", "https://example.org/cat.jpg ");
        const event =
          type === "paste"
            ? new ClipboardEvent(type, { clipboardData: transfer, bubbles: true, cancelable: true })
            : new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true });
        document.querySelector(target)!.dispatchEvent(event);
      },
      [type, target] as const,
    );
    await expect(notice(page)).toContainText("https://example.org/cat.jpg is the address of a picture");
    await expect(notice(page)).toContainText("Copy the picture itself and paste it");
    await page.getByRole("button", { name: "Sample 1" }).click();
    await expect(notice(page)).toHaveCount(0);
  }
});

test("that nothing was found is explained, and the best guesses can be seen", async ({ page, one }) => {
  await ask(page, one, SCENE, ["the truck"]);
  await expect(page.getByRole("heading", { name: "0 of 1 found" })).toBeVisible();
  await expect(
    page.getByText(/best score is 0\.\d\d, for the truck; the lowest score that counts as found is 0\.\d\d/),
  ).toBeVisible();
  await expect(page.getByText("does not know these words")).toBeVisible();
  await page.getByRole("button", { name: "Show its best guesses" }).click();
  await expect(page.locator(".box .line")).toHaveCount(1);
});

test("answers are saved as a picture and in the formats of other tools", async ({ page, one }) => {
  await ask(page, one, SCENE, WORDS);
  const { results } = await one.ask(SCENE, WORDS);
  const [x1, y1, x2, y2] = results[0]!.box_xyxy as number[];

  const { name, content } = await saved(page, "PNG");
  expect(name).toBe("scene-2.png");
  expect([content.readUInt32BE(16), content.readUInt32BE(20)]).toEqual([SIZE.width, SIZE.height]);
  const pixel = await page.evaluate(
    async ([png, x, y]) => {
      const image = new Image();
      image.src = `data:image/png;base64,${png}`;
      await image.decode();
      const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d")!;
      pen.drawImage(image, -x, -y);
      return [...pen.getImageData(0, 0, 1, 1).data];
    },
    [content.toString("base64"), Math.round(x1!), Math.round((y1! + y2!) / 2)] as const,
  );
  expect(pixel[0]! - pixel[2]!).toBeGreaterThan(60); // the first expression's red

  expect(JSON.parse((await saved(page, "JSON")).content.toString()).results).toHaveLength(3);
  expect(JSON.parse((await saved(page, "COCO")).content.toString()).annotations).toHaveLength(2);

  const csv = (await saved(page, "CSV")).content.toString().trim().split("\r\n");
  expect(csv[0]).toBe("image,width,height,model,expression,referent,present,score,x1,y1,x2,y2,x,y,error");
  expect(csv[1]).toMatch(/^scene-2.jpg,175,288,mini,the pumpkin,1,yes,0\.\d+,/);
  expect(csv[3]).toMatch(/^scene-2.jpg,175,288,mini,the truck,,no,/);

  const yolo = await saved(page, "YOLO");
  expect(yolo.name).toBe("scene-2.yolo.zip");
  const files = unzipSync(yolo.content);
  expect(Buffer.from(files["images/scene-2.jpg"]!)).toEqual(readFileSync(join(SAMPLES, SCENE)));
  expect(Buffer.from(files["data.yaml"]!).toString()).toContain('  1: "the swan"');
  const labels = Buffer.from(files["labels/scene-2.txt"]!).toString().trim().split("\n");
  const [label, ...box] = labels[0]!.split(" ").map(Number);
  expect([labels.length, label]).toEqual([2, 0]);
  for (const [side, expected] of [(x1! + x2!) / 2 / 175, (y1! + y2!) / 2 / 288, (x2! - x1!) / 175].entries())
    expect(box[side]).toBeCloseTo(expected, 2);
});

for (const size of [360, 768, 1440])
  test(`it fits, with nothing serious for axe, at ${size} pixels`, async ({ page, one }) => {
    await page.setViewportSize({ width: size, height: 800 });
    await ask(page, one, SCENE, WORDS);
    for (const colorScheme of ["light", "dark"] as const) {
      await page.emulateMedia({ colorScheme });
      expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBe(size);
      await checkAxe(page);
    }
  });

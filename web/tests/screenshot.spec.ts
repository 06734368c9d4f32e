/** The picture of the page in the README: npm run screenshot */
import { writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { expect, test } from "./stack";

const FILE = resolve(import.meta.dirname, "../../docs/images/web.webp");

test("the page with a sample", async ({ page, one }) => {
  await page.goto(one.url);
  await page.getByRole("button", { name: "Sample 4" }).click();
  await expect(page.getByRole("heading", { name: /found/ })).toBeVisible();
  await page.getByRole("button", { name: "Sample 7" }).click();
  await expect(page.getByRole("img", { name: /the teapot/ })).toBeVisible();
  await page.mouse.move(0, 0);
  const browser = await page.context().newCDPSession(page);
  const { data } = await browser.send("Page.captureScreenshot", { format: "webp", quality: 90 });
  writeFileSync(FILE, Buffer.from(data, "base64"));
});

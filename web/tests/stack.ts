/** The real service: Triton, gateway and page, on free ports. */
import { test as base, expect, type Page } from "@playwright/test";
import axe from "axe-core";
import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import type { Box } from "../src/boxes";
import type { GroundResponse } from "../src/service";

export const ROOT = resolve(import.meta.dirname, "../..");
export const BIN = join(ROOT, ".venv/bin");
const SHIPPED = join(ROOT, "model_repository");
export const SAMPLES = join(ROOT, "tests/samples");

export class Stack {
  private constructor(
    private readonly process: ChildProcess,
    readonly url: string,
  ) {}

  /** Serves mini of a repository; settings are environment variables. */
  static async start(settings: Record<string, string> = {}, repository = SHIPPED, port = "0"): Promise<Stack> {
    const options = ["--port", port, "--grpc-port", "0", "--model-repository", repository];
    const serving = spawn(join(BIN, "referent"), ["serve", ...options], {
      cwd: ROOT,
      env: { ...process.env, REFERENT_METRICS_PORT: "0", REFERENT_MODELS: "mini", ...settings },
      stdio: ["ignore", "pipe", "pipe"],
    });
    let log = "";
    serving.stderr.on("data", (text) => (log += text));
    for await (const line of createInterface(serving.stdout)) {
      const url = /ready at (\S+)/.exec(line)?.[1];
      if (url) return new Stack(serving, url);
    }
    throw new Error(`referent serve ended before it was ready:\n${log}`);
  }

  get port() {
    return new URL(this.url).port;
  }

  async stop(): Promise<void> {
    if (this.process.exitCode !== null) return;
    const ended = new Promise((resolve) => this.process.once("exit", resolve));
    this.process.kill("SIGINT");
    await ended;
  }

  /** What the API itself answers. */
  async ask(picture: string | Buffer, expressions: string[], model = "mini"): Promise<GroundResponse> {
    const body = new FormData();
    const content = typeof picture === "string" ? readFileSync(join(SAMPLES, picture)) : picture;
    body.append("image", new Blob([new Uint8Array(content)]), "picture");
    body.append("model", model);
    for (const expression of expressions) body.append("expression", expression);
    const response = await fetch(`${this.url}/v1/ground`, { method: "POST", body });
    return (await response.json()) as GroundResponse;
  }
}

interface Stacks {
  one: Stack; // serves mini
  two: Stack; // serves mini and strict
}

/** `start` starts a stack for one test; `page` fails the test where a script broke, or where the browser refused
 * something by the Content-Security-Policy. */
export const test = base.extend<{ start: typeof Stack.start }, Stacks>({
  start: async ({}, use) => {
    const stacks: Stack[] = [];
    await use(async (...options) => {
      const stack = await Stack.start(...options);
      stacks.push(stack);
      return stack;
    });
    for (const stack of stacks) await stack.stop();
  },
  page: async ({ page }, use) => {
    const faults: string[] = [];
    page.on("pageerror", (error) => faults.push(error.message));
    page.on("console", (message) => {
      if (/Content Security Policy|React/.test(message.text())) faults.push(message.text());
    });
    await use(page);
    expect(faults).toEqual([]);
  },
  one: [
    async ({}, use) => {
      const stack = await Stack.start();
      await use(stack);
      await stack.stop();
    },
    { scope: "worker", timeout: 120_000 },
  ],
  two: [
    async ({}, use) => {
      const folder = mkdtempSync(join(tmpdir(), "referent-"));
      const repository = join(folder, "model_repository");
      execFileSync(join(BIN, "python"), [join(import.meta.dirname, "two_models.py"), repository], {
        cwd: ROOT,
        env: { ...process.env, PYTHONPATH: ROOT },
      });
      const stack = await Stack.start({ REFERENT_MODELS: "mini,strict" }, repository);
      await use(stack);
      await stack.stop();
      rmSync(folder, { recursive: true });
    },
    { scope: "worker", timeout: 120_000 },
  ],
});

/** Opens the page, puts a picture in (a sample's name, or a file's content), and asks. */
export async function ask(page: Page, stack: Stack, picture: string | Buffer, expressions: string[]): Promise<void> {
  await page.goto(stack.url);
  const file = typeof picture === "string" ? join(SAMPLES, picture) : { name: "p.jpg", mimeType: "", buffer: picture };
  await page.getByLabel("Picture file").setInputFiles(file);
  await words(page).first().fill(expressions.join("\n"));
  await expect(page.getByRole("button", { name: "Find" })).toBeEnabled();
  await page.keyboard.press("Enter");
  await expect(page.getByRole("heading", { name: new RegExp(`of ${expressions.length} found`) })).toBeVisible();
}

/** The fields of the expressions. */
export const words = (page: Page) => page.getByLabel(/^What to look for/);

/** The rows of the expressions with what was found. */
export const rows = (page: Page) => page.getByRole("list", { name: "Expressions" }).locator("> li");

export const picture = (page: Page) => page.getByRole("img", { name: "The picture" });

/** Where on the screen a box of the picture is. */
export async function onScreen(
  page: Page,
  [x1, y1, x2, y2]: Box,
  size: { width: number; height: number },
): Promise<Box> {
  const { x, y, width, height } = (await picture(page).boundingBox())!;
  const [right, down] = [width / size.width, height / size.height];
  return [x + x1 * right, y + y1 * down, x + x2 * right, y + y2 * down];
}

/** What the button of the format puts on the clipboard. */
export async function copied(page: Page, format: string): Promise<string> {
  await page.getByRole("group", { name: "Copy as" }).getByRole("button", { name: format, exact: true }).click();
  await expect(page.getByText(`${format} copied`)).toBeVisible();
  return page.evaluate(() => navigator.clipboard.readText());
}

/** The file that the button of the format saves. */
export async function saved(page: Page, format: string): Promise<{ name: string; content: Buffer }> {
  const downloading = page.waitForEvent("download");
  await page.getByRole("group", { name: "Save as" }).getByRole("button", { name: format, exact: true }).click();
  const download = await downloading;
  return { name: download.suggestedFilename(), content: readFileSync(await download.path()) };
}

export async function checkAxe(page: Page): Promise<void> {
  await page.evaluate(axe.source);
  const { violations, passes } = await page.evaluate<axe.AxeResults>("axe.run()");
  expect(passes.length).toBeGreaterThan(10);
  const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  expect(serious.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`)).toEqual([]);
}

export { expect };

import { defineConfig } from "@playwright/test";
import { execFileSync } from "node:child_process";

const CHROMIUM = execFileSync("sh", ["-c", "command -v chromium"], { encoding: "utf8" }).trim();
const IS_ROOT = process.getuid?.() === 0;

export default defineConfig({
  testDir: "tests",
  workers: 1, // the model server needs the processors too
  timeout: 120_000, // some start a service or two
  expect: { timeout: 15_000 },
  reporter: [["list"]],
  use: {
    viewport: { width: 1280, height: 800 },
    launchOptions: {
      executablePath: CHROMIUM,
      args: [
        ...(IS_ROOT ? ["--no-sandbox"] : []),
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
      ],
    },
    permissions: ["clipboard-read", "clipboard-write", "camera"],
    reducedMotion: "reduce",
  },
  projects: [
    { name: "page", testMatch: ["rules.spec.ts", "page.spec.ts", "answers.spec.ts", "use.spec.ts"] },
    { name: "screenshot", testMatch: "screenshot.spec.ts" },
  ],
});

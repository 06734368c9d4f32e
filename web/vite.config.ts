import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// The gateway answers at the page's own address; while developing, at another port.
const GATEWAY = process.env.REFERENT_URL ?? "http://127.0.0.1:8000";

export default defineConfig({
  base: "./", // so that it works behind any path of a proxy
  plugins: [react()],
  build: { assetsInlineLimit: 0 }, // files, as the Content-Security-Policy has it
  server: { fs: { allow: [".."] }, proxy: { "/v1": GATEWAY, "/readyz": GATEWAY } },
});

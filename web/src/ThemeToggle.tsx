/** Light, dark, or the system's theme. */
import { useEffect, useState } from "react";

const THEMES = { auto: "Auto", light: "Light", dark: "Dark" };
type Theme = keyof typeof THEMES;

const STORED = "referent-theme";

export function ThemeToggle() {
  const [theme, setTheme] = useState(() => (localStorage.getItem(STORED) ?? "auto") as Theme);
  useEffect(() => {
    localStorage.setItem(STORED, theme);
    document.documentElement.dataset.theme = theme;
  }, [theme]);
  return (
    <label className="theme">
      <span className="visually-hidden">Theme</span>
      <select value={theme} onChange={({ target }) => setTheme(target.value as Theme)}>
        {Object.entries(THEMES).map(([value, name]) => (
          <option key={value} value={value}>
            {name}
          </option>
        ))}
      </select>
    </label>
  );
}
